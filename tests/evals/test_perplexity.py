"""Perplexity by protocol, against a float64 recomputation from full logits, and against counting by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax import evals
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import run, stats
from giraffe_jax.evals.tasks import perplexity
from giraffe_jax.model import Llama, logits
from giraffe_jax.tokenizer import ByteTokenizer
from tests.close import ULP
from tests.evals.conftest import Begun

LENGTH = 32


@pytest.fixture
def books(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("b", 100), ("a", 75), ("c", 20)):
        text = "".join(rng.choice(list("abcdefgh \n"), size))
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "ignored.bin").write_bytes(b"\xff" * 200)
    return tmp_path


def make(books, **keys):
    return evals.build(dict(name="perplexity", lengths=[LENGTH], documents=[str(books)], **keys))


def full_nll(lm, tokens):
    """Nats of every token but the first, in float64 from the whole [T V] of logits."""
    at = lm.config.bind(length=LENGTH).at(jnp.arange(float(len(tokens)))[None])
    hidden, _ = Llama(lm.config).apply({"params": lm.params}, jnp.asarray(tokens, jnp.int32)[None], at)
    full = np.asarray(logits(lm.params, hidden)[0], np.float64)[:-1]
    top = full.max(-1, keepdims=True)
    return (np.log(np.exp(full - top).sum(-1)) + top[:, 0]) - full[np.arange(len(full)), tokens[1:]]


def windows_by_hand(text, protocol, stride):
    """(tokens, first scored index) of every full window, as the papers' descriptions say, not as the code does it."""
    tokens = list(text.encode())
    if protocol == "truncated":
        return [(tokens[:LENGTH], 1)]
    if protocol == "chunked":
        return [(tokens[i : i + LENGTH], 1) for i in range(0, len(tokens) - LENGTH + 1, LENGTH)]
    starts = range(0, len(tokens) - LENGTH + 1, stride)
    return [(tokens[i : i + LENGTH], 1 if i == 0 else LENGTH - stride) for i in starts]


@pytest.mark.parametrize("protocol, stride", [("truncated", None), ("chunked", None), ("strided", 8), ("strided", 12)])
def test_protocols_equal_float64_recomputation(tiny, books, protocol, stride):
    task = make(books, protocol=protocol, n=None, **({"stride": stride} if stride else {}))
    rows = list(run.evaluate(tiny, [task], lambda length: tiny.config.bind(length=length), tokens_per_batch=3 * LENGTH))
    seen = 0
    for name in ("a.txt", "b.txt"):
        mine = [r for r in rows if r["document"] == name]
        for row, (tokens, first) in zip(
            mine, windows_by_hand((books / name).read_text(), protocol, stride), strict=True
        ):
            want = full_nll(tiny, tokens)[first - 1 :]
            assert row["metrics"]["tokens"] == len(want)
            assert row["metrics"]["nll"] == pytest.approx(want.mean(), rel=256 * ULP)
            assert sum(b[2] for b in row["bins"]) == pytest.approx(want.sum(), rel=256 * ULP)
            assert sum(b[3] for b in row["bins"]) == len(want)
            seen += 1
    assert seen == len(rows) and {r["protocol"] for r in rows} == {protocol}


def test_aligned_windows_equal_float64_recomputation_where_few_of_their_tokens_are_scored(tiny, tmp_path):
    """Longer than the fewest tokens that are scored alone, so that logits of the others are not computed."""
    text = "".join(f"{i} times {i} is {i * i}. " for i in range(20))
    (tmp_path / "a.txt").write_text(text)
    task = evals.build(dict(name="perplexity", lengths=[96], documents=[str(tmp_path)], stride=24, n=None))
    rows = list(run.evaluate(tiny, [task], lambda length: tiny.config.bind(length=length)))
    tokens = list(text.encode())
    assert len(rows) == (len(tokens) - 96) // 24 + 1
    for i, row in enumerate(rows):
        want = full_nll(tiny, tokens[24 * i : 24 * i + 96])[-24:]
        assert row["metrics"] == dict(nll=pytest.approx(want.mean(), rel=256 * ULP), tokens=24)


def test_strided_scores_every_token_once(books):
    windows = perplexity.examples(make(books, protocol="strided", stride=8, n=None), ByteTokenizer(), LENGTH)
    scored = [8 * w.index + i for w in windows if w.document == "b.txt" for i in range(w.first, LENGTH)]
    assert scored == list(range(1, max(scored) + 1))


@pytest.mark.parametrize("bos", ["none", "document", "window"])
@pytest.mark.parametrize("stride", [None, 7])
def test_aligned_scores_the_same_tokens_at_every_length(books, stride, bos):
    """By where they stand in the file: every length scores the same stretches, its windows ending where they end."""
    lengths = (16, 24, 64)
    where = {} if bos == "none" else dict(bos=bos)
    task = evals.build(dict(name="perplexity", lengths=lengths, documents=[str(books)], stride=stride, n=None) | where)
    assert task.protocol == "aligned"
    stretches = {}
    for length in lengths:
        stretches[length] = []
        for w in perplexity.examples(task, ByteTokenizer() if bos == "none" else Begun(), length):
            text = list((books / w.document).read_bytes())
            end = max(lengths) - (bos != "none") + w.index * (stride or 2)
            start = end - length + (bos == "window")
            assert [t for t in w.tokens.tolist() if t != 256] == text[max(start, 0) : end]
            stretches[length].append((w.document, end - (length - w.first), end))
    assert stretches[16] == stretches[24] == stretches[64]
    by_hand = [("a.txt", 75), ("b.txt", 100)]
    ends = sorted((d, e) for d, _, e in stretches[64])
    first = max(lengths) - (bos != "none")
    assert ends == [(d, e) for d, size in by_hand for e in range(first, size + 1, stride or 2)]
    assert all(end - begin == (stride or 2) for _, begin, end in stretches[64])


def test_bins_hold_the_tokens_with_that_much_context(tiny, books):
    task = make(books, n=1, bins=3, bin_spacing="uniform", protocol="truncated")
    (row,) = run.evaluate(tiny, [task], lambda length: tiny.config.bind(length=length))
    want = full_nll(tiny, list((books / "a.txt").read_bytes())[:LENGTH])
    edges = [1, 11, 22, 32]
    assert [b[:2] for b in row["bins"]] == [[a, b] for a, b in zip(edges, edges[1:], strict=False)]
    for low, high, total, n in row["bins"]:
        assert n == high - low and total == pytest.approx(want[low - 1 : high - 1].sum(), rel=256 * ULP)


def test_log_bins_widen_and_cover():
    edges = perplexity.bin_edges(16384, 16)
    assert edges[0] == 1 and edges[-1] == 16384 and all(np.diff(edges) > 0) and len(edges) == 17
    assert perplexity.bin_edges(4, 16) == [1, 2, 3, 4]


def test_every_length_scores_the_same_documents_and_n_goes_round(books):
    task = evals.build(dict(name="perplexity", lengths=[16, 64], documents=[str(books)], protocol="chunked", n=5))
    for length in (16, 64):
        names = [w.document for w in perplexity.examples(task, ByteTokenizer(), length)]
        assert set(names) == {"a.txt", "b.txt"} and names[:2] == ["a.txt", "b.txt"] and len(names) <= 5


def test_the_begin_token_stands_where_it_is_asked_for_if_texts_begin_with_one(books):
    def firsts(bos, tokenizer=Begun()):
        windows = perplexity.examples(make(books, protocol="chunked", n=None, bos=bos), tokenizer, LENGTH)
        assert {len(w.tokens) for w in windows} == {LENGTH}
        return [w.tokens[0] == 256 for w in windows if w.document == "b.txt"]

    assert firsts("window", ByteTokenizer()) == [False] * 3
    assert firsts("document") == [True, False, False]
    assert firsts("window") == [True] * 3


class Lines(ByteTokenizer):
    """Counts what it was asked to read."""

    read = 0

    def encode(self, text):
        self.read += len(text)
        return super().encode(text)


def test_head_is_a_prefix_and_reads_little():
    text = "some words\n" * 100_000
    tokenizer = Lines()
    assert perplexity.head(tokenizer, text, 500) == ByteTokenizer().encode(text)[:500]
    assert tokenizer.read < 20_000
    for text in ("some words " * 100_000, "山里有一个小女孩" * 100_000):
        tokenizer.read = 0
        assert perplexity.head(tokenizer, text, 5000) == ByteTokenizer().encode(text)[:5000]
        assert tokenizer.read < 20_000
    assert perplexity.head(tokenizer, "no line end" * 900, 5000) == ByteTokenizer().encode("no line end" * 900)[:5000]
    assert len(perplexity.head(tokenizer, "short", 500)) == 5


def test_no_document_long_enough_names_the_longest(books):
    task = evals.build(dict(name="perplexity", lengths=[16, 500], documents=[str(books)]))
    with pytest.raises(ConfigError, match=r"at length 500: .* got 100 from .*b\.txt"):
        perplexity.examples(task, ByteTokenizer(), 16)


@pytest.mark.parametrize(
    "keys, match",
    [
        (dict(documents=["/nowhere/x.txt"]), "no such file or directory: /nowhere/x.txt"),
        (dict(documents=[]), "the list is empty"),
        (dict(stride=4, protocol="chunked"), "only 'aligned' and 'strided' have one"),
        (dict(protocol="strided", stride=32), "expected 1 to length - 1 = 31, got 32"),
    ],
)
def test_wrong_requests_say_what_is_wrong(books, keys, match):
    with pytest.raises(ConfigError, match=match):
        task = evals.build(dict(name="perplexity", lengths=[LENGTH]) | dict(documents=[str(books)]) | keys)
        perplexity.examples(task, ByteTokenizer(), LENGTH)


def test_text_that_is_not_text_is_named(books):
    task = evals.build(dict(name="perplexity", lengths=[LENGTH], documents=[str(books / "ignored.bin")]))
    with pytest.raises(ConfigError, match=r"ignored\.bin is not UTF-8"):
        perplexity.examples(task, ByteTokenizer(), LENGTH)


def test_summary_is_the_token_weighted_perplexity(tiny, books):
    task = make(books, protocol="strided", stride=8, n=None)
    rows = list(run.evaluate(tiny, [task], lambda length: tiny.config.bind(length=length)))
    total = sum(r["metrics"]["nll"] * r["metrics"]["tokens"] for r in rows) / sum(r["metrics"]["tokens"] for r in rows)
    got = run.summary(rows)["perplexity", LENGTH]["ppl"]
    assert got.value == pytest.approx(np.exp(total))
    assert got.n == 2 and np.isnan(got.low), "two documents have no interval"
    assert stats.perplexity(rows, "window").value != pytest.approx(got.value, rel=1e-6)
