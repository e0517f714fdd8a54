"""A task whose prompts or scores change has another VERSION: by it experiments know which rows are of the same task."""

import types

import numpy as np
import pytest

from giraffe_jax import evals, records
from giraffe_jax.evals import run
from giraffe_jax.tokenizer import ByteTokenizer
from tests.evals import made
from tests.evals.test_scripted import FILES, TASKS

LENGTH, N = 2500, 3
ASKED = TASKS | {
    "copying": [dict(), dict(kind="text", documents="book")],
    "longppl": [dict(documents="book", evaluator="asked", window=200, stride=100)],
    "perplexity": [dict(documents="book", protocol=p, label=p) for p in ("aligned", "strided", "truncated", "chunked")],
}
# (task, VERSION): digest of the rows of tasks ASKED. A failure says what to write here; older versions may go.
DIGESTS = {
    ("copying", 2): "0b00e73949daae00",
    ("giraffe_qa", 2): "541a2cc826f6b866",
    ("key_values", 1): "c451a470a1dcde9a",
    ("lines", 1): "58c40887b73ec632",
    ("longppl", 1): "32e222397774960f",
    ("needle", 2): "1d46fb45c42a4393",
    ("passkey", 2): "b27d175429fe3840",
    ("perplexity", 1): "c58ffc1a66eec363",
    ("ruler", 2): "513ce6bf38900ae7",
    ("topics", 1): "96a2db2a53f2444e",
}


class Model:
    """Knows nothing, but its losses and answers follow from the tokens alone."""

    def __init__(self):
        self.tokenizer = ByteTokenizer()
        self.config = types.SimpleNamespace(original_len=LENGTH, positions=(), bind=lambda length: None)

    def score_rows(self, tokens, encoding=None, segments=None, scored=None):
        tokens = np.asarray(tokens)
        short = tokens.shape[1] < LENGTH  # what longppl's evaluator reads in parts
        return (tokens[:, 1:] % 8) / 4 + 8 * short, tokens[:, 1:] % 5 > 0

    def generate_rows(self, prompts, new, encoding=None, **_):
        return [list(prompt[: 40 * len(prompt) // 41][-new:]) for prompt in prompts]


def rows_of(name, folder, monkeypatch):
    model = Model()
    monkeypatch.setattr("giraffe_jax.loading.load", lambda source: model)
    for keys in ASKED[name]:
        files = {key: [getattr(made, keys[key])(folder)] for key in FILES if key in keys}
        yield from run.evaluate(model, [dict(name=name, lengths=[LENGTH], n=N) | keys | files], lambda length: None)


@pytest.mark.parametrize("name", evals.names())
def test_prompts_and_scores_are_those_of_the_version(name, tmp_path, monkeypatch):
    version = evals.module(name).Task.VERSION
    rows = [dict(row) for row in rows_of(name, tmp_path, monkeypatch)]
    for row in rows:  # which says no more than prompts and answers do
        row.pop("answer_tokens", None)
    found = records.digest([records.plain(row) for row in rows])
    assert DIGESTS.get((name, version)) == found, (
        f"Prompts or scores of {name!r} are not those of its VERSION {version}. If that is meant, raise VERSION in "
        f"giraffe_jax/evals/{name}.py, so that experiments measure it again, and write here: "
        f"({name!r}, {version + ((name, version) in DIGESTS)}): {found!r}"
    )
