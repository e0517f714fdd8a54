"""A loaded model as a person uses it: text in, scores and text out; against transformers on what it exports."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax import hf, load
from giraffe_jax.config import ConfigError
from giraffe_jax.model import Llama, logits
from tests.close import close
from tests.tokenizer.test_prefix import Begun

README = Path(__file__).parents[2] / "README.md"
YARN = [dict(name="yarn", factor=4.0)]
PROMPTS = ("line apple 17\nline stone 42\nask apple", "It is a truth universally", "def main():\n", "In the beginning")


@pytest.fixture(scope="module")
def lm():
    return load("giraffe-mini")


def full(lm, tokens, scaling):
    """float64 [T V] log probabilities of one pass over the tokens."""
    encoding = lm.config.bind(float(len(tokens)), scaling=scaling).at(jnp.arange(len(tokens), dtype=jnp.float32)[None])
    hidden, _ = Llama(lm.config).apply({"params": lm.params}, jnp.asarray([tokens], jnp.int32), encoding)
    found = np.asarray(logits(lm.params, hidden)[0], np.float64)
    return (
        found
        - np.log(np.exp(found - found.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - found.max(-1, keepdims=True)
    )


@pytest.mark.parametrize("scaling", [None, YARN, [dict(name="dynamic", factor=2.0)]], ids=["own", "yarn", "dynamic"])
def test_scores_are_those_of_one_pass_over_the_text(lm, scaling):
    text = README.read_text()[:1500]
    scores = lm.score(text, positions=scaling)
    tokens = lm.tokenizer.encode(text)
    want = full(lm, tokens, scaling if scaling is not None else ())
    nll = -want[np.arange(len(tokens) - 1), tokens[1:]]
    close(scores.nll, nll, ulps=4096)
    assert scores.tokens.tolist() == tokens and scores.nll.shape == scores.likeliest.shape == (len(tokens) - 1,)
    assert scores.perplexity == pytest.approx(np.exp(nll.mean()), rel=1e-5)
    sure = np.sort(want[:-1], axis=-1)
    sure = sure[:, -1] - sure[:, -2] > 1e-3
    assert (scores.likeliest == (want[:-1].argmax(-1) == tokens[1:]))[sure].all()
    assert lm.score(tokens).nll.tolist() == lm.score(text).nll.tolist()


def test_it_answers_what_it_was_trained_for(lm):
    prompt = "line apple 17\nline stone 42\nask apple"
    assert re.match(r" ?17\b", lm.generate(prompt, 4))
    assert lm.generate(lm.encode(prompt), 4) == lm.generate(prompt, 4)
    one, two = (lm.generate("The", 8, temperature=1.0, seed=seed) for seed in (1, 2))
    assert one != two and one == lm.generate("The", 8, temperature=1.0, seed=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: lm.score("a"), "has 1, at least 2"),
        (lambda lm: lm.generate(""), "has 0, at least 1"),
        (lambda lm: lm.score([1, 99_999]), r"ids are 0 to \d+, got 1 to 99999"),
        (lambda lm: lm.score([1, lm.config.vocab_size]), "ids are 0 to"),
        (lambda lm: lm.generate([-1]), "got -1 to -1"),
        (lambda lm: lm.score("some text", positions=[dict(name="yran")]), "Did you mean 'yarn'"),
        (lambda lm: lm.generate("some text", 0), "n must be at least 1"),
    ],
)
def test_what_cannot_be_scored_or_continued_is_refused(lm, call, message):
    with pytest.raises(ConfigError, match=message):
        call(lm)


def test_the_readme_s_python_runs(monkeypatch, capsys):
    section = README.read_text()
    section = section[section.index("## In Python") :]
    code = section[section.index("```python\n") + 10 :]
    monkeypatch.chdir(README.parent)
    exec(code[: code.index("```")], {})
    said = capsys.readouterr().out
    assert re.match(r" ?17\b", said) and "perplexity" in said


@pytest.mark.oracle
@pytest.mark.parametrize("positions", [[], YARN, [dict(name="ntk", factor=2.0)]], ids=["plain", "yarn", "ntk"])
def test_it_continues_a_prompt_as_transformers_does_the_exported_model(lm, positions, tmp_path):
    """Tokenised, begun and continued greedily by transformers alone, for as long as no two tokens are as good."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ours = dataclasses.replace(lm, config=dataclasses.replace(lm.config, positions=tuple(positions)))
    hf.save(ours.params, ours.config, ours.tokenizer, tmp_path / "hf", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for prompt in PROMPTS:
        ids = words(prompt, return_tensors="pt")
        assert ids.input_ids[0].tolist() == ours.encode(prompt)
        out = theirs.generate(
            **ids, max_new_tokens=48, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        new = out.sequences[0, ids.input_ids.shape[1] :]
        best = [torch.topk(scores[0], 2).values for scores in out.scores]
        sure = next((i for i, (a, b) in enumerate(best) if a - b < 1e-3), len(new))
        stop = [i for i in range(sure) if new[i] == words.eos_token_id]
        sure = stop[0] if stop else sure
        assert sure >= 8 or stop
        cut = words.decode(new[:sure], skip_special_tokens=False)
        assert ours.generate(prompt, 48)[: len(cut)] == cut


@pytest.fixture
def asked(monkeypatch):
    """What LM.generate asks of the function that does it: (prompts, n, encoding, settings) of each call."""
    calls: list = []

    def generate(lm, prompts, n, encoding, **settings):
        calls.append((prompts, n, encoding, settings))
        return [[97]]

    monkeypatch.setattr("giraffe_jax.inference.generation.generate", generate)
    return calls


def test_the_begin_token_of_a_text_is_scored_and_continued_once_and_ids_are_as_given(lm, asked):
    begun = dataclasses.replace(lm, tokenizer=Begun())
    assert begun.encode("ab") == [256, 97, 98]
    for text, ids in (("ab", [256, 97, 98]), ([97, 98], [97, 98])):
        assert begun.score(text).tokens.tolist() == ids
        begun.generate(text)
        assert asked.pop()[0] == [ids]


def test_it_generates_as_it_is_asked_to(lm, asked):
    lm.generate([1, 2], 7, positions=YARN, temperature=0.5, seed=3, policy="running")
    (prompts, n, encoding, settings), plain = asked.pop(), lm.config.bind()
    assert (prompts, n, settings["policy"], settings["temperature"]) == ([[1, 2]], 7, "running", 0.5)
    assert jax.random.key_data(settings["key"]).tolist() == jax.random.key_data(jax.random.key(3)).tolist()
    np.testing.assert_array_equal(encoding.inv_freq, lm.config.bind(scaling=YARN).inv_freq)
    assert not np.array_equal(encoding.inv_freq, plain.inv_freq)
    lm.generate([1, 2])
    _, n, encoding, settings = asked.pop()
    assert (n, settings["policy"], settings["temperature"]) == (64, "pinned", 0.0)
    np.testing.assert_array_equal(encoding.inv_freq, plain.inv_freq)
