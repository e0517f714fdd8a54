"""The leaderboard measures every method of the catalogue, on giraffe-mini twice, and its tables are in order."""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest

from giraffe_jax import positions
from giraffe_jax.config import build
from giraffe_jax.lab import spec
from giraffe_jax.loading import load

HERE = Path(__file__).parent.parent.parent / "experiments" / "leaderboard"
CONFIG, TABLE = (runpy.run_path(str(HERE / f"{name}.py")) for name in ("config", "table"))


def built(about):
    return build(spec.ExperimentConfig, CONFIG["get_config"](about))


def used(variants):
    return {call["name"] for variant in variants for call in variant.positions}


def test_every_method_is_measured_on_giraffe_mini():
    found = built("giraffe-mini")
    spec.check(found)
    trained = [v for v in found.variants if v.train is not None]
    assert used(trained) == set(positions.names())
    assert used(set_of(found, trained=False)) == set(positions.names()) - CONFIG["ONLY_IN_TRAINING"] - CONFIG["LEARNED"]
    assert not {v.name for v in found.variants if v.train is None} & {"fire", "yarn 8, ssmax"}
    runs = [spec.train_config(found, v, 0) for v in trained]
    budgets = {run.steps * run.data.batch_size * run.data.seq_len for run in runs}
    assert budgets == {100 * 4096}


def set_of(found, trained):
    return [v for v in found.variants if (v.train is not None) == trained]


def test_every_variant_can_be_asked_at_the_longest_length():
    """Bound for 2,048 tokens and given places: what a method needs of the model is there."""
    model = load("giraffe-mini").config
    for variant in built("giraffe-mini").variants:
        encoding = model.bind(2048, scaling=spec.read_with(variant))
        assert encoding.at(np.arange(2048, dtype=np.float32)[None]).positions.shape == (1, 2048), variant.name


def test_smollm2_reads_with_all_that_need_no_training(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    found = built(f"smollm2,{tmp_path}")
    (copying,) = spec.check(found)
    free = {name for name in positions.names() if CONFIG["needs_no_training"](name)}
    assert used(found.variants) == free and len(free) > 20
    assert max(copying.lengths) == 12_288 and found.original_len == 8192


def asked(variant, length, right, of=4):
    for example in range(of):
        yield dict(variant=variant, task="lines", length=length, example=example, trained="training" in variant,
                   metrics=dict(teacher=int(example < right)))  # fmt: skip


def read(variant, length, *perplexities):
    for example, perplexity in enumerate(perplexities):
        yield dict(variant=variant, task="perplexity", length=length, example=example, document=f"book-{example}",
                   window=0, trained="training" in variant, protocol="aligned",
                   metrics=dict(nll=math.log(perplexity), tokens=8))  # fmt: skip


def finished(folder, original_len, *parts):
    """What a run leaves behind, as far as tables ask."""
    rows = [row for part in parts for row in part]
    names = list(dict.fromkeys(row["variant"] for row in rows))
    manifest = dict(config=dict(variants=[dict(name=name, positions=[]) for name in names]), original_len=original_len)
    (folder / "experiment.json").write_text(json.dumps(manifest))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def lines_of(text):
    return [line for line in text.splitlines() if line.startswith(("|", "###"))]


def test_tables_are_in_the_order_of_retrieval_beyond_the_trained_length(tmp_path):
    """At 128 near is the best of all; beyond it far is, 4 + 1 of 8 tens against 2 + 2 and 0 + 1."""
    shares = {"near": (4, 2, 2), "far": (1, 4, 1), "least": (4, 0, 1), "near + training": (3, 2, 2)}
    lengths = (128, 256, 512)
    parts = [asked(v, n, 10 * k, 40) for v, of in shares.items() for n, k in zip(lengths, of, strict=True)]
    losses = {"near": (10, 40), "far": (8, 32), "least": (3, 27), "near + training": (5, 45)}
    parts += [read(name, n, x, x) for name, of in losses.items() for n, x in zip((256, 512), of, strict=True)]
    assert lines_of(TABLE["leaderboard"](finished(tmp_path, 128, *parts))) == [
        "### As it is",
        "|  | Line retrieval: answers right, teacher-forced<br>128 | 256 | 512 | beyond | effective length "
        "| Perplexity<br>256 | 512 | beyond |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| far | 25% | 100% | 25% | 62% | < 128 | 8.00 | 32.0 | 16.0 |",
        "| near | 100% | 50% | 50% | 50% | 128 | 10.0 | 40.0 | 20.0 |",
        "| least | 100% | 0% | 25% | 12% | 128 | 3.00 | 27.0 | 9.00 |",
        "### After training",
        "|  | Line retrieval: answers right, teacher-forced<br>128 | 256 | 512 | beyond | effective length "
        "| Perplexity<br>256 | 512 | beyond |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| near | 75% | 50% | 50% | 50% | < 128 | 5.00 | 45.0 | 15.0 |",
    ]


def test_rows_alone_do_not_say_what_is_beyond(tmp_path):
    (finished(tmp_path, 128, asked("near", 128, 4), asked("near", 256, 2)) / "experiment.json").unlink()
    with pytest.raises(SystemExit, match=r"experiment\.json.*original_len"):
        TABLE["leaderboard"](tmp_path)


def test_where_text_comes_first_the_lowest_perplexity_does_too_and_what_is_not_finished_last(tmp_path):
    parts = [read("begun", 128, 2), read("worse", 128, 5), read("worse", 256, 9)]
    parts += [read("better", 128, 6), read("better", 256, 8)]
    assert lines_of(TABLE["leaderboard"](finished(tmp_path, 128, *parts)))[1:] == [
        "|  | Perplexity<br>128 | 256 |",  # the one length beyond is its own mean
        "|---|---:|---:|",
        "| better | 6.00 | 8.00 |",
        "| worse | 5.00 | 9.00 |",
        "| begun | 2.00 |  |",
    ]


def test_without_enough_questions_there_is_no_effective_length(tmp_path):
    parts = [asked("right", 128, 21, 21), asked("right", 256, 21, 21)]
    assert "ffective length" not in TABLE["leaderboard"](finished(tmp_path, 128, *parts))
    (tmp_path / "more").mkdir()
    parts = [asked("right", 128, 22, 22), asked("right", 256, 22, 22)]
    assert TABLE["leaderboard"](finished(tmp_path / "more", 128, *parts)).count("ffective length") == 2
