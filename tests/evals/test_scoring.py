"""Scoring against models whose answers are known by construction; the largest prompt against counting up."""

import types

import numpy as np
import pytest

from giraffe_jax import evals, inference
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import filling, run, scoring
from giraffe_jax.evals.tasks import passkey
from giraffe_jax.tokenizer import ByteTokenizer
from tests.close import close, decided
from tests.forward import full_logits


class Joining(ByteTokenizer):
    """A tokenizer that joins 'is 1' into one token, as BPE merges may across any cut."""

    def encode(self, text):
        ids = []
        while text:
            ids, text = (ids + [300], text[4:]) if text.startswith("is 1") else (ids + [ord(text[0])], text[1:])
        return ids


def test_split_never_cuts_a_joined_token():
    tokenizer = Joining()
    prompt, answer = scoring.split(tokenizer, "key is", " 123")
    assert list(prompt + answer) == tokenizer.encode("key is 123")
    assert answer[0] == 300
    assert scoring.split(tokenizer, "key is", " 923") == (tuple(b"key is"), tuple(b" 923"))


@pytest.mark.parametrize("probe", [1, 7, 42, 1000])
@pytest.mark.parametrize("budget", [3, 4, 5, 40, 87, 88, 5000])
def test_largest_is_what_counting_up_finds(probe, budget):
    for cost in (lambda k: 3 + k * 2, lambda k: 3 + k // 3, lambda k: 3 + int(k**1.5)):
        best = max(k for k in range(16_000) if cost(k) <= budget)
        assert filling.largest(cost, budget, probe) == best
        assert filling.largest(cost, budget, probe, best + 1) == best == filling.largest(cost, budget, probe, best + 9)


def test_largest_looks_at_few():
    looked = []
    filling.largest(lambda k: looked.append(k) or 40 + k // 4, 16_384, 256)
    assert len(looked) < 12


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Joining()])
@pytest.mark.parametrize("length", [40, 333])
def test_prompts_are_filled_as_counting_up_fills_them(tokenizer, length):
    """Of many words, some of which a tokenizer joins over the space that the count cuts at."""
    task = evals.build(dict(name="passkey", lengths=[length]))
    fill = filling.Filler(task, tokenizer, length)
    for unit in ("is 1 and ", "one ", "x", "a word of some length which is 1, "):
        best = next(k for k in range(1100) if len(tokenizer.encode(unit * (k + 1) + "end 7")) > length)
        size, example = fill(lambda k, unit=unit: filling.Made(unit * k + "end", " 7", 7, 0.0))
        assert size == best and len(example.prompt) + len(example.answer) <= length


def test_what_does_not_fit_is_refused():
    task = evals.build(dict(name="passkey", lengths=[2]))
    with pytest.raises(ConfigError, match="passkey at length 2: 2 tokens are not enough, the shortest prompt takes 3"):
        filling.Filler(task, ByteTokenizer(), 2)(lambda k: filling.Made("x" * (k + 1), " 7", 7, 0.0))


def test_batches_are_as_full_as_they_can_be():
    assert scoring.batch_size(256, 8192, 1000) == 32
    assert [scoring.batch_size(256, 8192, n) for n in (1, 2, 3, 5, 32, 33)] == [1, 2, 4, 8, 32, 32]
    assert scoring.batch_size(16384, 8192, 10) == 1


def test_first_and_last_number():
    text = "The <REGISTER_CONTENT> in line 3a is <2416>, not 99."
    assert (scoring.first_number(text), scoring.last_number(text)) == (3, 99)
    assert scoring.first_number("none") is None and scoring.last_number("") is None


def scripted(say):
    """Replaces the model: it says `say(example)` and is sure of every token of it."""
    tokenizer = ByteTokenizer()
    task = evals.build(dict(name="passkey", lengths=[400], n=3, scoring=["generate", "teacher"], depths=[0.5]))
    examples = {e.prompt: e for e in passkey.examples(task, tokenizer, 400)}

    def score(tokens, encoding, segments, scored):
        nll, correct = np.full(tokens[:, 1:].shape, 2.0, np.float32), np.zeros(tokens[:, 1:].shape, bool)
        for row, prompt_len in enumerate(len(p) for p in examples):
            if row < len(tokens):
                said_all = say(examples[tuple(tokens[row, :prompt_len].tolist())]).encode()
                for k, said in enumerate(said_all[: tokens.shape[1] - prompt_len]):
                    hit = tokens[row, prompt_len + k] == said
                    correct[row, prompt_len + k - 1], nll[row, prompt_len + k - 1] = hit, 0.1 if hit else 5.0
        return nll, correct

    def generate(prompts, n, encoding, **_):
        return [list(say(examples[tuple(p)]).encode()) for p in prompts]

    lm = types.SimpleNamespace(tokenizer=tokenizer, score_rows=score, generate_rows=generate)
    return list(run.evaluate(lm, [task], lambda length: None, tokens_per_batch=3 * 400))


def test_a_model_that_knows_scores_one():
    for row in scripted(lambda e: f" {e.expected}"):
        assert row["metrics"] == {
            "generate": 1,
            "generate_last": 1,
            "teacher": 1,
            "answer_nll": pytest.approx(0.1, abs=1e-6),
        }


def test_a_model_that_rambles_is_right_by_the_first_number_only():
    for row in scripted(lambda e: f" {e.expected}. 7 is"):
        assert (row["metrics"]["generate"], row["metrics"]["generate_last"]) == (1, 0)


def test_every_answer_token_counts_for_the_teacher():
    for row in scripted(lambda e: f":{e.expected}"):
        assert (row["metrics"]["generate"], row["metrics"]["teacher"]) == (1, 0)


def test_one_wrong_digit_is_wrong():
    for row in scripted(lambda e: f" {e.expected // 10}{(e.expected + 1) % 10}"):
        assert (row["metrics"]["generate"], row["metrics"]["teacher"]) == (0, 0)
        assert row["metrics"]["answer_nll"] == pytest.approx((5 * 0.1 + 5.0) / 6, abs=1e-5)


def test_teacher_forcing_agrees_with_generating(tiny):
    # A model that has to be right sometimes: the answers are what it says itself.
    lm, encoding = tiny, tiny.config.bind(length=64)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 256, 40).tolist() for _ in range(6)]
    said = inference.generate(lm, prompts, 5, encoding, length=64, stop=())
    sure = [decided(full_logits(lm, p + a, encoding)[-6:-1]).all() for p, a in zip(prompts, said, strict=True)]
    assert sum(sure) > 1
    wrong = [[*row[:4], (row[4] + 1) % 256] for row in said]
    for answers, right in ((said, True), (wrong, False)):
        rows = [p + a for p, a in zip(prompts, answers, strict=True)]
        for clear, (_, correct) in zip(sure, scoring.scores(lm, rows, 64, encoding, 4), strict=True):
            assert not clear or bool(correct[-5:].all()) is right


@pytest.mark.parametrize("most", [3, 40])
def test_the_loss_of_some_tokens_is_theirs_among_all(tiny, most):
    """Of rows of several lengths, the last batch not full; none is given for the other tokens."""
    rng, encoding = np.random.default_rng(1), tiny.config.bind(length=96)
    rows = [rng.integers(0, 256, n).tolist() for n in (96, 70, 41)]
    needed = [
        np.sort(rng.choice(np.arange(1, len(row)), k, replace=False)) for row, k in zip(rows, (most, 1, 2), strict=True)
    ]
    every, some = (list(scoring.scores(tiny, rows, 96, encoding, 2, *args)) for args in ((), (needed,)))
    for row, indices, (nll, correct), (want, sure) in zip(rows, needed, some, every, strict=True):
        asked = np.isin(np.arange(1, len(row)), indices)
        assert nll.shape == want.shape == (len(row) - 1,)
        np.testing.assert_array_equal(np.isfinite(nll), asked)
        close(nll[asked], want[asked], ulps=256)
        assert not correct[~asked].any() and (correct == sure)[asked].all()
