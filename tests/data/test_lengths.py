"""Documents by their length, and rows across documents; without these keys rows are what they were before them."""

import dataclasses
import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest

from giraffe_jax.config import ConfigError, build, to_dict
from giraffe_jax.data import DataConfig, make_pipeline
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.workdir import differences

# sha256 of 40 batches and the fingerprint, of the code before it had these keys.
BEFORE = {
    "concat": ("b7e6d594de607d360039ef14c5a38df871f32f91dd812135dc841be3a246508c",
               "2068ae612ac34b1fbf4cd4ac827f87a1efff6d5955e9935700f5ba39da08d258"),
    "document": ("3512ff26eeaf09ad4b795411d4b59a6b0c9e21fdfde7426e40d330295d7a3604",
                 "677a77049ded94a84e50304991d944515b053e7d9e73a0e1d9307259b7e7e662"),
    "pose": ("766b9f90aff310aec436c0c781eae46ad52c16d5bda39a2117fc039b41e0373c",
             "fa88b4df8dc0471a07e9f66588871bacc219795d9139525c26089b04dd5a1800"),
    "cream": ("924abb4936f9624169739e23279f3c5d174ef1cc40663cc262d57d071ab4ba74",
              "60bcceac159e71011713525ff03733e568cb8927dc2e145eccd0a02885df5a82"),
}  # fmt: skip
HOW = {"concat": {}, "document": dict(packing="document")} | {
    kind: dict(skip=dict(kind=kind, target_len=128)) for kind in ("pose", "cream")
}
TEXTS = [f"{i} " * (1 + i * i % 23) for i in range(40)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(file)


def pipeline_of(path, source=None, seq_len=32, batch_size=4, **keys):
    source = dict(kind="jsonl", path=path) | (source or {})
    config = build(DataConfig, dict(seq_len=seq_len, batch_size=batch_size, sources=[source]) | keys)
    return make_pipeline(config, ByteTokenizer())


def digest(pipeline):
    found = hashlib.sha256()
    for step in range(40):
        batch = pipeline.batch(step)
        for name in sorted(batch):
            found.update(name.encode() + batch[name].tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("how", HOW)
def test_rows_without_the_keys_are_as_before(path, how):
    pipeline = pipeline_of(path, **HOW[how])
    assert (digest(pipeline), pipeline.fingerprint) == BEFORE[how] and pipeline.notes == ()
    everything = pipeline_of(path, dict(min_tokens=1, max_tokens=10**6, long_tokens=1, long_times=1), **HOW[how])
    assert digest(everything) == BEFORE[how][0] and everything.fingerprint != pipeline.fingerprint


def documents(pipeline, steps):
    """The texts of rows that hold whole documents, one row a step."""
    found: Counter[str] = Counter()
    for step in steps:
        batch = pipeline.batch(step)
        for segment in range(1, batch["segments"].max() + 1):
            tokens = batch["tokens"][batch["segments"] == segment]
            found[bytes(tokens[:-1].astype(np.uint8)).decode()] += 1
    return found


@pytest.mark.parametrize("packing", ["document", "concat"])
def test_an_epoch_has_the_documents_asked_for_as_often_as_asked(path, packing):
    """Counted from the texts: a document has its bytes and one token more."""
    source = dict(min_tokens=20, max_tokens=60, long_tokens=50, long_times=3)
    kept = [text for text in TEXTS if 20 <= len(text) + 1 <= 60]
    want = Counter(kept) + Counter({text: 2 for text in kept if len(text) + 1 >= 50})
    assert len(kept) < len(TEXTS) and 1 in want.values() and 3 in want.values()
    total = sum((len(text) + 1) * n for text, n in want.items())
    if packing == "document":  # a window holds each whole
        pipeline = pipeline_of(path, source, seq_len=64, batch_size=1, packing=packing)
        rows = next(n for n in range(1, 99) if documents(pipeline, range(n)).total() >= want.total())
        for epoch in (0, 1):
            assert documents(pipeline, range(epoch * rows, (epoch + 1) * rows)) == want
    else:  # all of them in one window, if it is as long as an epoch
        pipeline = pipeline_of(path, source, seq_len=total, batch_size=1)
        assert documents(pipeline, [0]) == documents(pipeline, [1]) == want
        assert not np.array_equal(pipeline.batch(0)["tokens"], pipeline.batch(1)["tokens"])
    again = pipeline_of(path, source, **{"seq_len": 64, "packing": packing})
    other = pipeline_of(path, source, **{"seq_len": 64, "packing": packing})
    later = [other.batch(step) for step in (7, 2)]
    assert all(np.array_equal(again.batch(2)[k], later[1][k]) for k in later[1])
    assert pipeline.longest == max(len(text) + 1 for text in kept)
    out, counted = len(TEXTS) - len(kept), [len(text) + 1 for text in TEXTS if text not in kept]
    assert pipeline.notes[0].startswith("data.sources[0]: documents of 20 to 60 tokens; ")
    assert f"{out} of 40 documents are left out, with {sum(counted):,} of " in pipeline.notes[0]
    long = [text for text in kept if len(text) + 1 >= 50]
    share = 100 * 3 * sum(len(text) + 1 for text in long) / total
    assert f"{len(long)} of {len(kept)} documents have 50 tokens or more and come 3 times" in pipeline.notes[1]
    assert f"{share:.3g}% of its {total:,} tokens" in pipeline.notes[1]


def test_skipping_rows_draw_anew_for_each_time(path):
    """One row for each time of a document; the copies of one have stretches of their own."""
    source = dict(long_tokens=50, long_times=4)
    long = [text for text in TEXTS if len(text) + 1 >= 50]
    rows = len(TEXTS) + 3 * len(long)
    pipeline = pipeline_of(path, source, seq_len=16, batch_size=1, skip=dict(kind="pose", target_len=256))
    found = Counter(re.findall(r"^document (\d+)", pipeline.describe(step))[0] for step in range(rows))
    assert found == Counter({str(i + 1): 4 if text in long else 1 for i, text in enumerate(TEXTS)})
    number = str(TEXTS.index(long[0]) + 1)
    drawn = [s for s in range(rows) if re.match(rf"document {number} ", pipeline.describe(s))]
    assert len({pipeline.batch(step)["positions"].tobytes() for step in drawn}) > 1


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (dict(min_tokens=1000), r"data\.sources\[0\]: no document has 1,000 or more tokens; those of .* have 3 to \d+"),
        (dict(max_tokens=2), "no document has 1 to 2 tokens"),
        (dict(min_tokens=9, max_tokens=8), r"data\.sources\[0\]\.max_tokens: got 8, less than min_tokens 9"),
        (dict(long_times=2), r"long_times: got 2, but no long_tokens; the two go together"),
        (dict(long_tokens=2), r"long_tokens: got 2, but no long_times"),
        (dict(long_tokens=9, long_times=0), "long_times: must be"),
        (dict(min_tokens=0), "min_tokens: must be"),
        (dict(kind="synthetic", path="", max_tokens=9), r"max_tokens: not read by kind 'synthetic'.*max_len"),
        (dict(kind="text", conversations=True), r"conversations: only read by kinds 'jsonl', 'parquet'"),
    ],
)
def test_wrong_lengths_are_refused(path, source, said):
    with pytest.raises(ConfigError, match=said):
        pipeline_of(path, source)


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_rows_across_documents_are_one_segment(path, packing):
    """Tokens, targets and loss are those of the masked rows; a document's end is still asked for nothing."""
    masked, across = (pipeline_of(path, packing=packing, across_documents=on) for on in (False, True))
    assert masked.fingerprint != across.fingerprint
    padded = 0
    for step in range(30):
        one, other = masked.batch(step), across.batch(step)
        assert all(np.array_equal(one[k], other[k]) for k in ("tokens", "targets", "weights"))
        for segments, was, positions in zip(other["segments"], one["segments"], other["positions"], strict=True):
            n = int((was > 0).sum())
            padded += 32 - n
            assert segments.tolist() == [1] * n + [0] * (32 - n)
            assert positions.tolist() == [*range(n), *[0] * (32 - n)]
        assert {k: v.dtype for k, v in one.items()} == {k: v.dtype for k, v in other.items()}
    assert padded > 0


def test_rows_across_documents_need_rows_of_several(path):
    with pytest.raises(ConfigError, match=r"data\.across_documents: got True, but with data\.skip"):
        pipeline_of(path, across_documents=True, skip=dict(kind="pose", target_len=128))


def test_processes_share_rows_across_documents(path):
    config = pipeline_of(path, dict(long_tokens=50, long_times=3), across_documents=True).config
    whole = make_pipeline(config, ByteTokenizer()).batch(3)
    parts = [make_pipeline(dataclasses.replace(config), ByteTokenizer(), process=(i, 2)).batch(3) for i in range(2)]
    assert all(np.array_equal(np.concatenate([part[k] for part in parts]), whole[k]) for k in whole)


def test_a_run_of_before_the_keys_goes_on(path):
    """Its config.json does not have them: nothing has changed, while a key that is set has."""
    before = to_dict(pipeline_of(path).config)
    new = json.loads(json.dumps(before))
    del before["across_documents"]
    for key in ("conversations", "min_tokens", "max_tokens", "long_tokens", "long_times"):
        del before["sources"][0][key]
    assert differences(before, new) == {}
    new["sources"][0]["conversations"] = True
    assert differences(before, new) == {"sources[0].conversations": (None, True)}
