"""The leaderboard measures every method of the catalogue, on giraffe-mini twice."""

import runpy
from pathlib import Path

import numpy as np

from giraffe_jax import experiment, positions
from giraffe_jax.config import build
from giraffe_jax.loading import load

CONFIG = runpy.run_path(str(Path(__file__).parent.parent.parent / "experiments" / "leaderboard" / "config.py"))


def built(about):
    return build(experiment.ExperimentConfig, CONFIG["get_config"](about))


def used(variants):
    return {call["name"] for variant in variants for call in variant.positions}


def test_every_method_is_measured_on_giraffe_mini():
    found = built("giraffe-mini")
    experiment.check(found)
    trained = [v for v in found.variants if v.train is not None]
    assert used(trained) == set(positions.names())
    assert used(set_of(found, trained=False)) == set(positions.names()) - CONFIG["ONLY_IN_TRAINING"]
    runs = [experiment.train_config(found, v, 0) for v in trained]
    budgets = {run.steps * run.data.batch_size * run.data.seq_len for run in runs}
    assert budgets == {100 * 4096}


def set_of(found, trained):
    return [v for v in found.variants if (v.train is not None) == trained]


def test_every_variant_can_be_asked_at_the_longest_length():
    """Bound for 2,048 tokens and given places: what a method needs of the model is there."""
    model = load("giraffe-mini").config
    for variant in built("giraffe-mini").variants:
        encoding = model.bind(2048, scaling=experiment.read_with(variant))
        assert encoding.at(np.arange(2048, dtype=np.float32)[None]).positions.shape == (1, 2048), variant.name


def test_smollm2_reads_with_all_that_need_no_training(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    found = built(f"smollm2,{tmp_path}")
    (text, _) = experiment.check(found)
    free = {name for name in positions.names() if CONFIG["needs_no_training"](name)}
    assert used(found.variants) == free and len(free) > 20
    assert max(text.lengths) == 12_288 and found.original_len == 8192
