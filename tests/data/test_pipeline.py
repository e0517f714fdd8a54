"""The pipeline: batches are a function of (config, step), shared by processes row by row, mixed as weighed."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from giraffe_jax.config import ConfigError, build
from giraffe_jax.data import DataConfig, SourceConfig, StageConfig, SyntheticConfig, make_pipeline
from giraffe_jax.data.synthetic import KINDS, synthetic_document, text_of
from giraffe_jax.tokenizer import ByteTokenizer, JsonTokenizer

QUESTIONS = rb"(?m)^(line|ask|set|get) |pass key|grass"
ASKING = ("records", "lines", "passkey")
KEYS = {"tokens": np.int32, "targets": np.int32, "segments": np.int32, "weights": np.float32, "positions": np.float32}


@pytest.fixture
def texts(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(7):
        words = rng.integers(0, 1000, size=int(rng.integers(5, 120)))
        (tmp_path / f"{i}.txt").write_text(f"doc {i}: " + " ".join(f"w{w}" for w in words))
    return tmp_path


@pytest.fixture(scope="module")
def small_bpe():
    """A byte-level BPE with single digits, trained on synthetic documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = np.random.default_rng(0)
    made = [text_of(synthetic_document(rng, KINDS[i % 3], 2000, len)) for i in range(120)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|bos|>", "<|eos|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(made, trainer)
    return JsonTokenizer(tokenizer, bos="<|bos|>", eos="<|eos|>")


def config_of(texts, **changes):
    sources = (
        SourceConfig("text", str(texts), weight=1.0),
        SourceConfig("synthetic", weight=3.0, synthetic=SyntheticConfig(kinds=ASKING, min_len=80, answer_weight=2.0)),
    )
    return dataclasses.replace(DataConfig(sources=sources, seq_len=160, batch_size=8), **changes)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_shapes_and_types(texts):
    batch = make_pipeline(config_of(texts), ByteTokenizer()).batch(3)
    assert {name: array.dtype for name, array in batch.items()} == {k: np.dtype(v) for k, v in KEYS.items()}
    assert all(array.shape == (8, 160) for array in batch.values())


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_a_batch_depends_on_the_step_alone(texts, packing):
    config = config_of(texts, packing=packing)
    forward = make_pipeline(config, ByteTokenizer())
    batches = [forward.batch(step) for step in range(12)]
    backward = make_pipeline(config, ByteTokenizer())
    for step in reversed(range(12)):
        assert equal(backward.batch(step), batches[step])
    assert not equal(batches[0], batches[1])
    ahead = itertools.islice(make_pipeline(config, ByteTokenizer()).iterate(5), 7)
    for got, want in zip(ahead, batches[5:], strict=True):
        assert equal(got, want)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_share_the_global_batch(texts, processes):
    config = config_of(texts)
    whole = make_pipeline(config, ByteTokenizer()).batch(4)
    parts = [make_pipeline(config, ByteTokenizer(), process=(i, processes)).batch(4) for i in range(processes)]
    assert equal({k: np.concatenate([part[k] for part in parts]) for k in whole}, whole)
    rows = make_pipeline(config, ByteTokenizer()).batch(4, rows=range(2, 5))
    assert equal(rows, {k: v[2:5] for k, v in whole.items()})


def test_mixture_follows_the_weights_and_an_epoch_reads_everything_once(texts):
    pipeline = make_pipeline(config_of(texts, batch_size=4), ByteTokenizer())
    batches = [pipeline.batch(step) for step in range(40)]
    text_rows = [
        row for b in batches for row, segments in zip(b["tokens"], b["segments"], strict=True)
        if not re.search(QUESTIONS, bytes(row[segments > 0][row[segments > 0] < 256].astype(np.uint8)))
    ]  # fmt: skip
    assert len(text_rows) == 40 * 4 // 4

    alone = config_of(texts, batch_size=1, sources=(SourceConfig("text", str(texts)),))
    total = sum(len(path.read_bytes()) + 1 for path in texts.glob("*.txt"))
    epoch = -(-total // 160)
    pipeline = make_pipeline(alone, ByteTokenizer())
    for start in (0, epoch):
        rows = [pipeline.batch(step) for step in range(start, start + epoch)]
        held = np.sort(np.concatenate([row["tokens"][row["segments"] > 0] for row in rows]))
        raw = b"".join(path.read_bytes() for path in texts.glob("*.txt"))
        assert np.array_equal(held, np.sort(np.concatenate([np.frombuffer(raw, np.uint8), [257] * 7])))
    assert not equal(pipeline.batch(0), pipeline.batch(epoch)), "the second epoch has another order"


def synthetic_only(tokenizer, **options):
    config = SyntheticConfig(**options)
    return make_pipeline(DataConfig(256, 4, (SourceConfig("synthetic", synthetic=config),)), tokenizer)


def test_synthetic_rows_are_the_tokenizers_tokens_with_weighted_answers(small_bpe):
    pipeline = synthetic_only(small_bpe, kinds=ASKING, min_len=50, answer_weight=5.0, drawn_weight=0.25)
    answers = 0
    for step in range(6):
        batch = pipeline.batch(step)
        for row in range(4):
            segments = batch["segments"][row]
            for segment in sorted(set(segments.tolist()) - {0}):
                here = segments == segment
                ids, weights = batch["tokens"][row][here], batch["weights"][row][here]
                assert ids[-1] == small_bpe.eos_id and weights[-1] == 0
                text = small_bpe.decode(ids[:-1])
                assert small_bpe.encode(text) == ids[:-1].tolist()
                assert np.array_equal(batch["targets"][row][here][:-1], ids[1:])
                assert np.array_equal(batch["positions"][row][here], np.arange(here.sum()))
                heavy = small_bpe.decode(ids[1:][weights[:-1] == 5.0])
                asked = re.findall(r"(?:^ask|^get|\?).*( \d+\n)", text, re.M)
                assert heavy == "".join(asked)
                answers += len(asked)
    assert answers > 100


def test_a_batch_draws_one_length_for_all_its_documents(small_bpe):
    """In every row and from every source; rows hold as many as fit, and lengths come as often as they are named."""
    made = [dict(kinds=("lines",)), dict(kinds=("copy", "passkey"))]
    sources = [SourceConfig("synthetic", synthetic=SyntheticConfig(lengths=(60, 128, 128), **how)) for how in made]
    pipeline = make_pipeline(DataConfig(256, 4, tuple(sources)), small_bpe)
    seen = []
    for step in range(60):
        batch = pipeline.batch(step)
        starts = [
            np.flatnonzero((p == 0) & (s > 0)) for p, s in zip(batch["positions"], batch["segments"], strict=True)
        ]
        length = int(starts[0][1])
        for row, at in enumerate(starts):
            assert at.tolist() == list(range(0, 256 - length + 1, length))
            used = np.bincount(batch["segments"][row])[1:]
            assert (used <= length).all() and (used > length - 16).all()
        seen.append(length)
    # 60 draws of a third: 20, and 3.7 standard deviations are 13.5.
    assert set(seen) == {60, 128} and 6 < seen.count(60) < 34


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_a_step_says_which_documents_it_reads(texts, packing):
    """Each document named has its text in the row; where all are named, the row has no other."""
    config = config_of(texts, sources=(SourceConfig("text", str(texts)),), packing=packing, batch_size=2)
    pipeline = make_pipeline(config, ByteTokenizer())
    read = sorted(texts.glob("*.txt"))
    for step in range(12):
        described = pipeline.describe(step).split("; ")
        for row, said in zip(pipeline.batch(step)["tokens"], described, strict=True):
            found = re.fullmatch(r"documents? (.+?)(?: and (\d+) more)? of (.*)", said)
            assert found and found[3] == f"data.sources[0] ({texts})"
            named = re.findall(r"(\d+) \(([^)]+)\)", found[1])
            assert len(named) == len(found[1].split(", "))
            assert all(read[int(number) - 1].name == name for number, name in named)
            held = [(texts / name).read_bytes() for _, name in named]
            parts = [part for part in re.split(b"\\0+", bytes(t if t < 256 else 0 for t in row)) if part]
            assert all(any(part in text for part in parts) for text in held)
            known = [part for part in parts if any(part in text for text in held)]
            assert len(parts) - len(known) == int(found[2] or 0), "whatever is not named is counted"


def test_what_a_step_says_is_bounded(tmp_path):
    """Many short documents of two files, in many rows: few are named, and those are where they are said to be."""
    texts = {name: [f"{name} says {i}." for i in range(500)] for name in ("a.jsonl", "b.jsonl")}
    for name, lines in texts.items():
        (tmp_path / name).write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = DataConfig(seq_len=160, batch_size=64, sources=(SourceConfig("jsonl", str(tmp_path)),))
    pipeline = make_pipeline(config, ByteTokenizer())
    *rows, more = pipeline.describe(0).split("; ")
    assert len(rows) == 4 and more == "and 60 more rows"
    for row, segments, said in zip(*(pipeline.batch(0)[k] for k in ("tokens", "segments")), rows, strict=False):
        held = bytes(t if t < 256 else 0 for t in row)
        named = re.findall(r"\d+ \((\d+) of (\w\.jsonl)\)", said)
        assert len(named) == 4
        # The first and the last may be cut by the window's edges.
        assert all(texts[name][int(n) - 1].encode() in held for n, name in named[1:])
        assert texts[named[0][1]][int(named[0][0]) - 1].encode().endswith(held.split(b"\0")[0])
        assert f" and {segments.max() - 4} more of " in said
    assert pipeline.describe(0) == make_pipeline(config, ByteTokenizer()).describe(0)
    five = make_pipeline(dataclasses.replace(config, batch_size=5), ByteTokenizer())
    assert five.describe(0).endswith("; and 1 more row")


def test_stages_follow_each_other_by_the_step_alone(texts):
    short, long = (SourceConfig("synthetic", synthetic=SyntheticConfig(kinds=ASKING, lengths=(n,))) for n in (80, 160))
    text = SourceConfig("text", str(texts))
    stages = (StageConfig((short,), until=3), StageConfig((short, long, text), until=5), StageConfig((text,)))
    config = config_of(texts, sources=(), stages=stages)
    pipeline = make_pipeline(config, ByteTokenizer())
    batches = [pipeline.batch(step) for step in range(9)]
    alone = make_pipeline(config_of(texts, sources=(short,)), ByteTokenizer())
    assert all(equal(batches[step], alone.batch(step)) for step in range(3))
    for step, batch in enumerate(batches):
        texts_in = sum(not re.search(QUESTIONS, bytes(row[row < 256].astype(np.uint8))) for row in batch["tokens"])
        assert texts_in == 0 if step < 3 else texts_in == 8 if step >= 5 else 1 <= texts_in <= 4
    ahead = itertools.islice(make_pipeline(config, ByteTokenizer()).iterate(4), 4)
    assert all(equal(got, want) for got, want in zip(ahead, batches[4:], strict=False))
    moved = dataclasses.replace(config, stages=(dataclasses.replace(stages[0], until=2), *stages[1:]))
    assert make_pipeline(moved, ByteTokenizer()).fingerprint != pipeline.fingerprint


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "needs either sources"),
        ([dict(sources=[])], r"data\.stages\[0\]\.sources: empty"),
        ([dict(sources=[dict(kind="synthetic")], until=5)], r"`until` must increase .* got \[5\]"),
        ([dict(sources=[dict(kind="synthetic")], until=n) for n in (5, 5, None)], r"got \[5, 5, None\]"),
        ([dict(sources=[dict(kind="synthetic")]), dict(sources=[dict(kind="synthetic")])], r"got \[None, None\]"),
        ([dict(sources=[dict(kind="text", path="x", weight=-1.0)])], r"data\.stages\[0\]\.sources\[0\]\.weight"),
    ],
)
def test_wrong_stages_are_refused(stages, message):
    with pytest.raises(ConfigError, match=message):
        make_pipeline(build(DataConfig, dict(stages=stages, seq_len=128, batch_size=4), "data"), ByteTokenizer())


def test_fingerprint_changes_with_the_batches_only(texts, tmp_path_factory):
    config = config_of(texts)
    fingerprint = make_pipeline(config, ByteTokenizer()).fingerprint
    cached = dataclasses.replace(config, cache_dir=str(tmp_path_factory.mktemp("cache")), prefetch=9)
    assert make_pipeline(cached, ByteTokenizer()).fingerprint == fingerprint
    assert equal(make_pipeline(cached, ByteTokenizer()).batch(7), make_pipeline(config, ByteTokenizer()).batch(7))
    for changes in ({"seed": 1}, {"seq_len": 161}, {"packing": "document"}, {"batch_size": 4}):
        assert make_pipeline(config_of(texts, **changes), ByteTokenizer()).fingerprint != fingerprint
    (texts / "0.txt").write_text("another text")
    assert make_pipeline(config, ByteTokenizer()).fingerprint != fingerprint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (dict(kind="text"), r"data\.sources\[0\]\.path: missing"),
        (dict(kind="synthetic", path="x"), "made, not read"),
        (dict(kind="text", path="x", synthetic=dict(min_len=40)), "only read by kind 'synthetic'"),
        (dict(kind="text", path="x", weight=0.0), "weight: must be > 0, got 0"),
        (dict(kind="synthetic", synthetic=dict(min_len=300)), "min_len <= max_len <= data.seq_len"),
        (dict(kind="synthetic", synthetic=dict(min_len=20)), r"min_len: got 20; .* take at least \d+ tokens"),
        (dict(kind="synthetic", synthetic=dict(kinds=())), "at least one kind"),
        (dict(kind="synthetic", synthetic=dict(lengths=(64, 200))), r"lengths: got \(64, 200\); each is 1 to .* 128"),
        (dict(kind="synthetic", synthetic=dict(lengths=(64, 20))), r"lengths: got 20; .* take at least \d+ tokens"),
        (dict(kind="txt", path="x"), "'text'"),
    ],
)
def test_wrong_requests_are_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        config = build(DataConfig, dict(sources=[source], seq_len=128, batch_size=4), "data")
        make_pipeline(config, ByteTokenizer())


def test_batches_that_cannot_be_shared_are_refused(texts):
    with pytest.raises(ConfigError, match="8 rows cannot be shared evenly by 3"):
        make_pipeline(config_of(texts), ByteTokenizer(), process=(0, 3))
