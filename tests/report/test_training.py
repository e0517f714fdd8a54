"""Curves of what training wrote down."""

import fabricate

from giraffe_jax import report
from giraffe_jax.report import plots, scores, style, training


def test_curves_are_read_by_variant(tmp_path):
    results = report.read([fabricate.write(tmp_path, whole=True, examples=1)])
    assert set(results.training) == set(fabricate.TRAINED)
    (curve,) = results.training["plain + training"]
    assert list(curve.batches) == list(range(1, 51)) and list(curve.held_out) == [10, 20, 30, 40, 50]
    with style.drawing("test") as plt:
        (axes,) = plots.by_step(plt, results, style.looks(results)).axes
        assert len(axes.lines) == 6 and axes.lines[1].get_xdata().tolist() == [10, 20, 30, 40, 50]
    (tmp_path / "train").rename(tmp_path / "gone")
    assert report.read([tmp_path]).training == {}


def test_every_seed_has_its_curve(tmp_path):
    config = {"variants": [{"name": "a", "train": {}}, {"name": "b", "train": None}], "seeds": [3, 4]}
    for name in ("a-seed3", "a-seed4", "b", "a-seed5"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "metrics.jsonl").write_text('{"step":1,"loss":2.0}\n')
    assert {name: len(curves) for name, curves in training.read(tmp_path, {"config": config}).items()} == {"a": 2}


def test_steps_made_again_count_once_and_what_is_not_finite_not_at_all():
    rows = [{"step": 1, "loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"changed": {}}]
    assert training.curve(rows) == training.Curve({1: 2.0}, {})
    assert training.points({s: float(s % 2) for s in range(1, 9)}, most=4) == ([1.5, 3.5, 5.5, 7.5], [0.5] * 4)
    assert training.points({2: 1.0, 1: 0.0}) == ([1.0, 2.0], [0.0, 1.0])


def test_without_curves_there_is_no_figure():
    results = scores.collect(fabricate.rows(examples=1), fabricate.manifest())
    assert plots.by_step(None, results, {}) is None
