"""LongPPL: key tokens and scores against single passes in float64, and token spans on awkward texts."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from giraffe_jax import evals, inference, loading
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import run, stats
from giraffe_jax.evals.tasks import longppl
from giraffe_jax.inference import scoring
from giraffe_jax.tokenizer import ByteTokenizer, JsonTokenizer, SentencePieceTokenizer, load_tokenizer
from tests.close import ULP
from tests.evals.conftest import Begun

SHARED = Path(__file__).parents[3] / "shared" / "data"
LENGTH, WINDOW, STRIDE = 48, 8, 4
AWKWARD = [
    "Once upon a time, there was a giraffe.",
    "  two leading,  two inside, two trailing  ",
    "tabs\tand\nnew\n\n\nlines\n and\u00a0no-break",
    "emoji 🦒🧣 👩‍👩‍👧 flags 🇦🇹",
    "日本語のトークン 中文，测试。한국어",
    "a \ufffd replaced \ufffd\ufffd twice, and at the end \ufffd",
    "Zürich naïve Ελληνικά русский العربية עברית हिन्दी",
    "combining e\u0301 \u202ertl \ufeffbom",
]


@pytest.fixture(autouse=True)
def forget():
    longppl.key_tokens.cache_clear()


@pytest.fixture
def books(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("b", 100), ("a", 75), ("c", 20)):
        (tmp_path / f"{name}.txt").write_text("".join(rng.choice(list("abcdefgh \n"), size)))
    return tmp_path


def pick_with(monkeypatch, lm):
    """Loading gives this model for any source; the list that is returned grows with every load."""
    loads = []

    def load(source):
        loads.append(source)
        return lm

    monkeypatch.setattr(loading, "load", load)
    return loads


def other(lm, **changes):
    """Another random model than `lm`, that was trained at more tokens."""
    params = jax.tree.map(lambda x: x[..., ::-1] if x.ndim > 1 else x, lm.params)
    return dataclasses.replace(lm, params=params, config=dataclasses.replace(lm.config, original_len=64), **changes)


def make(books, **keys):
    given = dict(documents=[str(books)], window=WINDOW, stride=STRIDE, alpha=0.3, beta=-6.0, evaluator="other")
    return evals.build(dict(name="longppl", lengths=[LENGTH]) | given | keys)


def rows_of(lm, task, **keys):
    return list(run.evaluate(lm, [task], lambda length: lm.config.bind(length), **keys))


def alone(lm, tokens):
    """float64 nats of every token but the first, from a pass of these tokens and padding."""
    padded, segments = np.zeros((1, LENGTH), np.int32), np.zeros((1, LENGTH), np.int32)
    padded[0, : len(tokens)], segments[0, : len(tokens)] = tokens, 1
    nll, _ = inference.score(lm, padded, lm.config.bind(len(tokens)), segments)
    return np.asarray(nll, np.float64)[0, : len(tokens) - 1]


def keys_by_hand(lm, ids):
    """The definition, token by token: (index, whether it is key, how far the closer condition is from its limit)."""
    begin = list(lm.tokenizer.prefix)
    whole = alone(lm, begin + ids)
    for t in range(WINDOW, len(ids)):
        start = (t - WINDOW) // STRIDE * STRIDE
        assert WINDOW <= t - start < WINDOW + STRIDE
        short, full = alone(lm, begin + ids[start : t + 1])[-1], whole[len(begin) + t - 1]
        yield t, short - full > 0.3 and full < 6.0, min(abs(short - full - 0.3), abs(full - 6.0))


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Begun()], ids=["bytes", "begun"])
def test_key_tokens_and_scores_equal_single_passes(tiny, books, tokenizer, monkeypatch):
    lm = dataclasses.replace(tiny, tokenizer=tokenizer)
    picker = other(lm)
    pick_with(monkeypatch, picker)
    rows = rows_of(lm, make(books), tokens_per_batch=LENGTH)  # four short passes at a time
    begin = len(tokenizer.prefix)
    for row, name in zip(rows, ("a.txt", "b.txt"), strict=True):
        ids = list((books / name).read_bytes())[: LENGTH - begin]
        found = list(keys_by_hand(picker, ids))
        assert min(margin for *_, margin in found) > 1e-4  # no token is decided by rounding
        key = [t for t, is_key, _ in found if is_key]
        assert 3 < len(key) < len(found) - 3
        nll = alone(lm, [*tokenizer.prefix, *ids])
        assert row["metrics"]["tokens"] == len(key)
        assert row["metrics"]["nll"] == pytest.approx(nll[np.array(key) + begin - 1].mean(), rel=256 * ULP)
        assert row["plain_nll"] == pytest.approx(nll.mean(), rel=256 * ULP)
        assert (row["document"], row["protocol"], row["window"]) == (name, "longppl", 0)
    total = sum(r["metrics"]["nll"] * r["metrics"]["tokens"] for r in rows) / sum(r["metrics"]["tokens"] for r in rows)
    assert run.summary(rows)["longppl", LENGTH]["ppl"].value == pytest.approx(np.exp(total))
    assert stats.perplexity(rows).n == 2


def scripted(monkeypatch, short=WINDOW + STRIDE):
    """Losses by letter in a token: `k` 1 in a whole pass and 5 in a short one, `j` 3 and 9, `l` 1 and 2.9, others 1."""

    def score(lm, tokens, encoding=None, segments=None, positions=None, scored=None):
        nll = np.ones(tokens.shape, np.float32)
        for token in np.unique(tokens):
            for letter, losses in dict(k=(1, 5), j=(3, 9), l=(1, 2.9)).items():
                if letter in lm.tokenizer.decode([token]):
                    nll[tokens == token] = losses[tokens.shape[1] == short]
        return nll[:, 1:], nll[:, 1:] > 0

    monkeypatch.setattr("giraffe_jax.inference.scoring.score", score)


def test_known_losses_give_known_keys(tiny, tmp_path, monkeypatch):
    """The k's after the first 8 are key, also those at the seams of short passes (8, 12, 16) and the last; j and l
    miss one condition each."""
    text = "kajlkkkk" + "kajl" + "kkjl" + "aaak" + "a" * 27 + "k" + "kkkk"
    (tmp_path / "a.txt").write_text(text)
    pick_with(monkeypatch, other(tiny))
    scripted(monkeypatch)
    task = make(tmp_path, alpha=2.0, beta=-2.0)
    (row,) = rows_of(tiny, task)
    expected = [i for i, c in enumerate(text[:LENGTH]) if c == "k" and i >= 8]
    (keys,) = longppl.key_tokens(
        "other", (tmp_path / "a.txt",), LENGTH, WINDOW, STRIDE, 2.0, -2.0, run.TOKENS_PER_BATCH
    )
    assert keys.indices.tolist() == expected == [8, 12, 13, 19, 47]
    assert row["metrics"] == {"nll": 1.0, "tokens": 5}
    begun = dataclasses.replace(tiny, tokenizer=Begun())  # one token of text less, and all one further on
    assert rows_of(begun, task)[0]["metrics"] == {"nll": 1.0, "tokens": 4}
    assert rows_of(tiny, make(tmp_path, alpha=1.8, beta=-2.0))[0]["metrics"]["tokens"] == 7  # with both l's
    assert rows_of(tiny, make(tmp_path, alpha=2.0, beta=-4.0))[0]["metrics"]["tokens"] == 7  # with both j's
    with pytest.raises(ConfigError, match="none of the 1 documents has a key token within 48 tokens: other predicts"):
        rows_of(tiny, make(tmp_path, alpha=7.0, beta=-2.0))


def test_windows_without_keys_give_no_row(tiny, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a" * LENGTH)
    (tmp_path / "b.txt").write_text("a" * (LENGTH - 1) + "k")
    pick_with(monkeypatch, other(tiny))
    scripted(monkeypatch)
    (row,) = rows_of(tiny, make(tmp_path, alpha=2.0, beta=-2.0))
    assert (row["document"], row["example"]) == ("b.txt", 1)


def test_the_evaluator_runs_once_for_all_variants_and_lengths(tiny, books, monkeypatch):
    for name in "ab":
        path = books / f"{name}.txt"
        path.write_text(path.read_text().replace("h", "k"))
    picker = other(tiny)
    loads, asked = pick_with(monkeypatch, picker), []
    scripted(monkeypatch)
    score = scoring.score
    monkeypatch.setattr(
        "giraffe_jax.inference.scoring.score", lambda lm, *a, **k: asked.append(lm) or score(lm, *a, **k)
    )
    task = make(books, lengths=[30, LENGTH], alpha=2.0, beta=-2.0)
    first = rows_of(tiny, task)
    runs = asked.count(picker)
    assert rows_of(dataclasses.replace(tiny, params={}), task) == first
    assert loads == ["other"] and asked.count(picker) == runs > 1
    # What is key within a length does not depend on what follows.
    texts = [(books / f"{name}.txt").read_text() for name in "ab"]
    assert [r["metrics"]["tokens"] for r in first] == [t[WINDOW:n].count("k") for n in (30, LENGTH) for t in texts]


def byte_level(text):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator([text], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return JsonTokenizer(tok)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """A tokenizer of every kind."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text.txt").write_text("once upon a time there was a giraffe\n" * 50)
    spm.SentencePieceTrainer.Train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=300, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    found = {"bytes": ByteTokenizer(), "begun": Begun(), "bpe": byte_level("\n".join(AWKWARD * 3))}
    found["sentencepiece"] = SentencePieceTokenizer(folder / "m.model")
    for name in ("retriever", "stories260K"):
        if (SHARED / name).is_dir():
            found[name] = load_tokenizer(SHARED / name)
    return found


@pytest.mark.parametrize("text", AWKWARD + ["\n".join(AWKWARD)])
def test_spans_tile_the_text(tokenizers, text):
    for name, tokenizer in tokenizers.items():
        ids = tokenizer.encode(text)
        found = longppl.spans(tokenizer, ids, text)
        assert found[0, 0] == 0 and found[-1, 1] == len(text), name
        groups = [tuple(span) for i, span in enumerate(found) if i == 0 or tuple(span) != tuple(found[i - 1])]
        assert all(a[1] == b[0] for a, b in zip(groups, groups[1:], strict=False)), name
        for start, end in set(groups):  # the tokens of a span, and none else, are its text
            own = [i for i, span in zip(ids, found, strict=True) if tuple(span) == (start, end)]
            assert tokenizer.decode(own).strip() == text[start:end].strip() or start == end, name


def test_spans_of_bytes_are_their_characters():
    text = "aé🦒\ufffdz"
    owner = [i for i, c in enumerate(text) for _ in c.encode()]
    found = longppl.spans(ByteTokenizer(), list(text.encode()), text)
    # A replacement character is not told from an unfinished one until the next token.
    assert found.tolist() == [[i, i + 1] if i < 3 else [3, 5] for i in owner]
    for cut in range(1, 8):  # of a text that goes on, within a character or not
        ids = list(text.encode())[:cut]
        assert longppl.spans(ByteTokenizer(), ids, text).tolist() == [[i, i + 1] for i in owner[:cut]]


def test_keys_are_carried_to_another_tokenizer_by_their_text(tiny, tmp_path, monkeypatch):
    """The evaluator reads bytes, the evaluated model pieces that hold several, and the other way round."""
    path, text = tmp_path / "a.txt", "aaaaaaaa a 🦒 zebrka a giraffe " + "a zebrka " * 20
    path.write_text(text)
    pieces = byte_level("the giraffe was and the zebrka " * 50)
    ids = pieces.encode(text)
    assert text.encode().index(b"k") == 20 and pieces.decode(ids[:24]).count(" zebrka") == 2
    pick_with(monkeypatch, other(tiny))
    scripted(monkeypatch)
    (row,) = rows_of(dataclasses.replace(tiny, tokenizer=pieces), make(tmp_path, lengths=[24], alpha=2.0, beta=-2.0))
    assert row["metrics"] == {"nll": 1.0, "tokens": 1}  # the second zebra is beyond what the evaluator read

    window = longppl.Window("a.txt", path, np.array([256, *text.encode()], np.int32))
    giraffe, zebra = (
        [i for i, piece in enumerate(ids) if pieces.decode([piece]) == said][:1] for said in ("\ufffd", " zebrka")
    )
    keys = longppl.Keys(path, pieces, pieces.fingerprint, ids, np.array(giraffe + zebra))
    key = longppl.scored(keys, window, Begun())
    assert bytes(window.tokens[1:][key].astype(np.uint8)).decode() == "🦒 zebrka"
    assert not longppl.scored(dataclasses.replace(keys, indices=np.array([], int)), window, Begun()).any()


@pytest.mark.parametrize(
    "keys, match",
    [
        (dict(evaluator=None), r"longppl.evaluator: missing. Name the model .* reads 48 tokens well"),
        (dict(window=LENGTH), "longppl.window: expected less than the shortest length, 48.* got 48"),
        (dict(stride=0), ">= 1"),
        (dict(lengths=[LENGTH, 500]), r"at length 500: .* got 100 from .*b\.txt"),
        (dict(lengths=[70]), "other was trained at 64 tokens and has no position methods for more"),
    ],
)
def test_wrong_requests_say_what_is_wrong(tiny, books, keys, match, monkeypatch):
    pick_with(monkeypatch, other(tiny))
    with pytest.raises(ConfigError, match=match):
        rows_of(tiny, make(books, **keys))


def test_text_that_is_not_text_is_named(tiny, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff" * 200)
    with pytest.raises(ConfigError, match=r"a\.txt is not UTF-8"):
        longppl.examples(make(tmp_path), ByteTokenizer(), LENGTH)


class Lower(ByteTokenizer):
    """A tokenizer that does not give back its text."""

    def encode(self, text):
        return super().encode(text.lower())


def test_a_tokenizer_that_changes_the_text_is_refused():
    for text in ("abc DEF", "abc DEF" * 100):
        with pytest.raises(ConfigError, match=r"a\.txt: its tokens do not decode to its text: expected 'DEF.*got 'd"):
            longppl.spans(Lower(), Lower().encode(text), text, "a.txt")
