"""A model that always answers right scores 1 on every task, one that never does scores 0: whatever asks questions."""

import dataclasses

import numpy as np
import pytest

from giraffe_jax import evals
from giraffe_jax.evals import run, stats
from giraffe_jax.tokenizer import ByteTokenizer
from tests.evals import made

LENGTH, N = 2500, 4
# What each task that asks questions needs beside its length; a new one is to be added here.
TASKS = {
    "giraffe_qa": [dict(kind=k, questions="questions", scoring=["teacher", "generate"]) for k in ("free_form",)]
    + [dict(kind="altered_numeric", questions="questions", label="altered")],
    "key_values": [dict(scoring=["teacher", "generate"])],
    "lines": [dict(scoring=["teacher", "generate"]), dict(style="compact", label="compact")],
    "needle": [dict(documents="book", depths=[0.5], distractors=2, scoring=["teacher", "generate"])],
    "passkey": [dict(depths=[0.5], scoring=["teacher", "generate"])],
    "ruler": [dict(kind=k, documents="book") for k in ("niah_single_2", "niah_multiquery", "vt", "fwe")]
    + [dict(kind="qa_1", documents="squad", scoring=["teacher", "generate"]), dict(kind="qa_2", documents="hotpot")],
    "topics": [dict(conversations="conversations", scoring=["teacher", "generate"])],
}
FILES = ("documents", "questions", "conversations")


@dataclasses.dataclass(frozen=True)
class Scripted:
    """What a model is asked for, answered from the examples themselves or never."""

    tokenizer: ByteTokenizer
    answers: dict[tuple[int, ...], tuple[int, ...]]
    right: bool

    def score_rows(self, tokens, encoding=None, segments=None, scored=None):
        right = np.full((tokens.shape[0], tokens.shape[1] - 1), self.right)
        return np.where(right, 0.0, 9.0), right

    def generate_rows(self, prompts, new, encoding=None, **_):
        wrong = self.tokenizer.encode(" q, q")
        return [list(self.answers[tuple(p)]) if self.right else wrong for p in prompts]


def test_every_task_that_asks_is_here():
    asking = {name for name in evals.names() if "teacher" in evals.metrics_of([name])}
    assert set(TASKS) == asking


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("name", TASKS)
def test_who_answers_right_scores_one_and_who_never_does_nothing(name, right, tmp_path, monkeypatch):
    tokenizer = ByteTokenizer()
    for keys in TASKS[name]:
        files = {k: [getattr(made, keys[k])(tmp_path)] for k in FILES if k in keys}
        task = evals.build(dict(name=name, lengths=[LENGTH], n=N) | keys | files)
        examples = evals.module(name).examples(task, tokenizer, LENGTH)
        assert len(examples) == N and all(len(e.prompt) + len(e.answer) <= LENGTH for e in examples)
        model = Scripted(tokenizer, {e.prompt: e.answer for e in examples}, right)
        rows = list(run.evaluate(model, [task], lambda length: None))
        assert [row["question"] for row in rows] == [tokenizer.decode(e.prompt[-200:]) for e in examples]
        measured = {metric for row in rows for metric in row["metrics"]}
        assert measured <= set(evals.metrics_of([name]))
        for metric in measured:
            e = stats.mean(rows, metric)
            assert e.value == (float(right) if metric != "answer_nll" else (0.0 if right else 9.0)), (keys, metric)
