"""Copying probes: what is repeated, where, and that a model's right and wrong copies are counted as such."""

from pathlib import Path

import numpy as np
import pytest

import giraffe_jax
from giraffe_jax import evals
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import run
from giraffe_jax.evals.tasks import copying
from giraffe_jax.tokenizer import ByteTokenizer, load_tokenizer
from tests.close import close
from tests.evals.conftest import Begun

RETRIEVER = Path(__file__).parents[3] / "shared" / "data" / "retriever"
STORIES = RETRIEVER.parent / "stories260K"


@pytest.fixture
def books(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("long", 3000), ("longer", 5000), ("short", 100)):
        (tmp_path / f"{name}.txt").write_text("".join(rng.choice(list("abcdefgh \n"), size)))
    return tmp_path


def make(**keys):
    return evals.build(dict(name="copying", lengths=[64], n=6) | keys)


def scripted(monkeypatch, predict):
    """Stands in for the model: `predict(tokens [B T], t)` is its most likely token at t; nll is 0 if right, else 5."""

    def score(lm, tokens, encoding=None, segments=None, positions=None, scored=None):
        guesses = np.stack([predict(tokens, t) for t in range(1, tokens.shape[1])], axis=1)
        correct = guesses == tokens[:, 1:]
        return np.where(correct, 0.0, 5.0).astype(np.float32), correct

    monkeypatch.setattr("giraffe_jax.inference.scoring.score", score)


def rows_of(lm, task, **keys):
    return list(run.evaluate(lm, [task], lambda length: lm.config.bind(length), **keys))


@pytest.mark.parametrize("length", [64, 65, 301])
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Begun()], ids=["bytes", "begun"])
@pytest.mark.parametrize("kind", ["random", "text"])
def test_scored_tokens_are_those_of_one_distance_before(books, kind, tokenizer, length):
    keys = dict(documents=[str(books)], passage=20) if kind == "text" else {}
    task = make(kind=kind, lengths=[length], lead=3, **keys)
    begin = len(tokenizer.prefix)
    for copy in copying.examples(task, tokenizer, length):
        assert len(copy.tokens) == length and copy.tokens[:begin] == tokenizer.prefix
        repeated = (length - begin) // 2 if kind == "random" else 20
        assert copy.distance == length - begin - repeated
        assert copy.first == length - repeated + 3
        tail = copy.tokens[length - repeated :]
        assert tail == copy.tokens[length - repeated - copy.distance :][:repeated] == copy.tokens[begin:][:repeated]
        assert max(copy.tokens[begin:]) < 256


def test_examples_depend_on_their_own_number_and_seed_only(books):
    for keys in (dict(), dict(kind="text", documents=[str(books)], passage=20)):
        few, many = (copying.examples(make(n=n, **keys), ByteTokenizer(), 64) for n in (2, 6))
        assert many[:2] == few and len({c.tokens for c in many}) == 6
        assert few == copying.examples(make(n=2, **keys), ByteTokenizer(), 64)
        assert few != copying.examples(make(n=2, seed=1, **keys), ByteTokenizer(), 64)


def test_a_text_repeats_the_same_passages_at_every_length(books):
    task = make(kind="text", documents=[str(books)], passage=20, lengths=[64, 500])
    short, long = (copying.examples(task, ByteTokenizer(), length) for length in (64, 500))
    assert [c.tokens[:44] for c in short] == [c.tokens[:44] for c in long]
    assert [c.distance for c in short + long] == [44] * 6 + [480] * 6
    assert {c.document for c in short} == {"long.txt", "longer.txt"}
    for copy in long:
        assert ByteTokenizer().decode(copy.tokens[:480]) in (books / str(copy.document)).read_text()


def test_passages_come_from_a_document_that_is_just_long_enough(books):
    task = make(kind="text", documents=[str(books / "short.txt")], passage=20, lengths=[120])
    text = (books / "short.txt").read_text()
    assert {ByteTokenizer().decode(c.tokens[:100]) for c in copying.examples(task, ByteTokenizer(), 120)} == {text}


def test_a_perfect_copier_and_one_that_never_copies(tiny, books, monkeypatch):
    texts = dict(kind="text", documents=[str(books)], passage=20)
    for keys, distance in ((dict(), 32), (texts, 44)):

        def copier(tokens, t, distance=distance):
            return tokens[:, t - distance] if t >= distance else np.full(len(tokens), -1)

        scripted(monkeypatch, copier)
        for row in rows_of(tiny, make(**keys)):
            assert row["metrics"] == {"copied": 1.0, "copy_nll": 0.0}
            assert (row["first_nll"], row["distance"]) == (5.0, distance)
        scripted(monkeypatch, lambda tokens, t: np.full(len(tokens), -1))
        for row in rows_of(tiny, make(**keys)):
            assert row["metrics"] == {"copied": 0.0, "copy_nll": 5.0}


def test_only_tokens_after_the_lead_count(tiny, monkeypatch):
    """Right at the first four of the repeat and at the last one alone: 1 of 28."""
    scripted(monkeypatch, lambda tokens, t: tokens[:, t] if t in (32, 33, 34, 35, 63) else np.full(len(tokens), -1))
    for row in rows_of(tiny, make()):
        assert row["metrics"] == {"copied": pytest.approx(1 / 28), "copy_nll": pytest.approx(5 * 27 / 28)}


@pytest.mark.skipif(not RETRIEVER.is_dir(), reason="no shared data")
@pytest.mark.parametrize("kind", ["random", "text"])
def test_rows_of_a_trained_model_equal_its_scores_of_each_text_alone(kind):
    """The retriever answers questions of its own form only: of random tokens it copies none, of text what it knows."""
    lm = giraffe_jax.load(str(RETRIEVER))
    task = make(kind=kind, lengths=[128], passage=24, documents=[str(RETRIEVER.parent / "books")])
    rows, copies = rows_of(lm, task, tokens_per_batch=128), copying.examples(task, lm.tokenizer, 128)
    for row, copy in zip(rows, copies, strict=True):
        alone, first = lm.score(copy.tokens), 128 - (64 if kind == "random" else 24) + 4
        before = alone.nll[first - 1 - copy.distance : 127 - copy.distance]
        assert row["metrics"]["copied"] == alone.likeliest[first - 1 :].mean()
        close(row["metrics"]["copy_nll"], alone.nll[first - 1 :].mean(dtype=np.float64), 256)
        close(row["first_nll"], before.mean(dtype=np.float64), 256)
    found = run.summary(rows)[f"copying/{kind}", 128]
    independent = len({copy.document for copy in copies}) if kind == "text" else 6  # passages of one book are one
    assert set(found) == {"copied", "copy_nll"} and found["copied"].n == independent
    assert found["copied"].value < 0.05 if kind == "random" else found["copied"].value > 0.05


def test_ordinary_ids_are_what_texts_are_made_of(tmp_path):
    spm = pytest.importorskip("sentencepiece")
    assert copying.ordinary_ids(ByteTokenizer()).tolist() == list(range(256))
    (tmp_path / "text.txt").write_text("the giraffe ate all of the highest leaves\n" * 50)
    spm.SentencePieceTrainer.Train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "m"), vocab_size=300, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2, user_defined_symbols="<tag>",
        control_symbols="<pad>",
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "m.model")
    pieces = spm.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    left = set(range(tokenizer.vocab_size)) - set(copying.ordinary_ids(tokenizer).tolist())
    assert {pieces.IdToPiece(i) for i in left} == {"<unk>", "<s>", "</s>", "<pad>"}


@pytest.mark.skipif(not RETRIEVER.is_dir(), reason="no shared data")
@pytest.mark.parametrize("source, special", [(RETRIEVER, {0, 1, 2}), (STORIES, {0, 1, 2})], ids=["bpe", "llama"])
def test_ordinary_ids_leave_out_the_special_ones_of_a_tokenizer_json(source, special):
    tokenizer = load_tokenizer(source)
    assert set(copying.ordinary_ids(tokenizer).tolist()) == set(range(tokenizer.vocab_size)) - special


@pytest.mark.parametrize(
    "keys, match",
    [
        (dict(kind="text"), "copying.documents: kind 'text' repeats passages"),
        (dict(kind="text", documents=["x"], passage=4), "expected more than the 4 tokens that lead in"),
        (dict(kind="texts"), "Did you mean 'text'"),
        (dict(lengths=[9]), r"copying \(random\) at length 9: expected at least 10 tokens"),
        (dict(kind="text", documents=["{books}"]), r"copying \(text\) at length 64: expected at least 128"),
        (
            dict(kind="text", documents=["{books}"], lengths=[9000]),
            r"at length 9,000: .* got 5,064 from .*longer\.txt",
        ),
    ],
)
def test_wrong_requests_say_what_is_wrong(books, keys, match):
    keys = {k: [x.format(books=books) for x in v] if k == "documents" else v for k, v in keys.items()}
    with pytest.raises(ConfigError, match=match):
        task = make(**keys)
        copying.examples(task, ByteTokenizer(), task.lengths[0])


@pytest.mark.parametrize("space", [" ", ""])
def test_passages_of_a_document_of_one_line_are_not_all_its_first(tmp_path, space):
    text = space.join(f"{i:05}" for i in range(20_000))
    (tmp_path / "line.txt").write_text(text)
    task = make(kind="text", documents=[str(tmp_path)], passage=20, n=8)
    starts = [text.index(ByteTokenizer().decode(c.tokens[:44])) for c in copying.examples(task, ByteTokenizer(), 64)]
    assert len(set(starts)) == 8 and max(starts) > 20_000
    assert not space or all(start % 6 == 0 for start in starts)  # where a word begins
