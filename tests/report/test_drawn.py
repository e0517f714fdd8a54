"""What a run draws of methods, and that its page shows a method of one's own as a catalogued one."""

import json
import math
import sys
from dataclasses import replace

import fabricate
import numpy as np
import pytest

from giraffe_jax.report import draw, drawn, scores, variants

SHAPE = {"head_dim": 8, "theta": 10000.0, "original_len": 64}
SOURCE = '''
from giraffe_jax.positions import Encoding, Factor


def ramp(e: Encoding, *, factor: Factor = 4.0) -> Encoding:
    """Divides planes by 1 to factor, in even steps."""
    return e.replace(inv_freq=e.inv_freq / (1 + (factor - 1) * e.planes / e.planes[-1]))
'''


@pytest.fixture
def ramp(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "drawn_ramp.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield [{"name": "drawn_ramp.ramp", "factor": 4.0}]
    sys.modules.pop("drawn_ramp", None)


def manifest(**methods):
    entries = [{"name": name, "positions": positions} for name, positions in methods.items()]
    return {"config": {"variants": entries, "tasks": [{"lengths": [64, 128]}]}, "model": SHAPE, "original_len": 64}


def test_an_own_methods_planes_are_drawn_when_it_runs(ramp, tmp_path):
    got = draw.draw(ramp, SHAPE, 128)
    assert got.stretch == pytest.approx([1.0, 2.0, 3.0, 4.0], rel=1e-6) and got.distances == ()
    still = draw.draw([{"name": "truncate", "cutoff_len": 16.0}], SHAPE, 128)
    assert still.stretch is not None and math.isinf(still.stretch[-1])


def test_distances_are_those_of_the_formula():
    # ReRoPE: true up to the window, the window beyond it (kexue.fm 9708).
    got = draw.draw([{"name": "rerope", "window": 32}], SHAPE, 128)
    true, seen = np.array(got.distances).T
    assert got.reach == 128 and true[0] == 0 and true[-1] == 127
    np.testing.assert_allclose(seen, np.minimum(true, 32), atol=0.1)
    masked = draw.draw([{"name": "sliding_window", "window": 16}], SHAPE, 128)
    true, seen = np.array(masked.distances).T
    np.testing.assert_array_equal(np.isnan(seen), true >= 16)


def test_what_is_saved_is_read_again_and_made_anew_only_where_it_changed(ramp, tmp_path, monkeypatch):
    far = [{"name": "rerope", "window": 32}]
    own = manifest(plain=[], linear=[{"name": "linear", "factor": 2.0}], own=ramp, far=far)
    draw.save(tmp_path, own)
    first = drawn.read(tmp_path)
    assert list(first) == ["own", "far"] and first["own"].stretch == pytest.approx([1, 2, 3, 4], rel=1e-5)
    made = []
    monkeypatch.setattr(draw, "draw", lambda *arguments: made.append(arguments[0]) or drawn.Drawn("k", None, 1, ()))
    draw.save(tmp_path, own)
    assert made == [] and drawn.read(tmp_path) == first
    other = manifest(own=[ramp[0] | {"factor": 2.0}], far=far)
    draw.save(tmp_path, other)
    assert made == [[ramp[0] | {"factor": 2.0}]]


def test_a_method_that_fails_ends_no_run_and_a_broken_file_is_left_out(ramp, tmp_path):
    draw.save(tmp_path, manifest(own=[ramp[0] | {"factor": -1.0}]))
    assert not (tmp_path / drawn.FILE).exists()
    form = '{"own": {"key": "", "stretch": [%s], "reach": %s, "distances": []}}'
    wrong = (form % pair for pair in (('"x"', 1), ("", 1), ("0", 1), ("1", 0), ("1", "1e999")))
    for text in ('{"own": {"key": "k"}}', '{"own": 3}', "[", *wrong):
        (tmp_path / drawn.FILE).write_text(text)
        with pytest.warns(UserWarning, match=r"drawn\.json is left out"):
            assert drawn.read(tmp_path) == {}


def test_a_report_draws_an_own_method_without_its_code(ramp, tmp_path):
    entries = {"plain": [], "own": ramp, "far": [{"name": "rerope", "window": 32}]}
    draw.save(tmp_path, manifest(**entries))
    figures = {name: fabricate.FIGURES["plain"] for name in entries}
    rows = list(fabricate.rows(figures=figures, examples=1))
    sys.modules.pop("drawn_ramp")
    (tmp_path / "code" / "drawn_ramp.py").write_text("raise SystemExit('a report ran what lies in a workdir')")
    results = scores.collect(rows, manifest(**entries))
    page = variants.as_html(replace(results, drawn=drawn.read(tmp_path)), dict.fromkeys(entries, ""))
    own = page[page.index(">own<") :].split("</tr>")[0]
    assert "stretch of each plane: 1, 2, 3, 4" in own and "1–4×" in own and "a method of one&#x27;s own" in own
    far = page[page.index(">far<") :].split("</tr>")[0]
    assert "distances seen: up to 32 of 127" in far and "<path" in far
    bare = variants.as_html(results, dict.fromkeys(entries, ""))
    assert "class='strip'" in bare and "distances" not in bare and "a method of one&#x27;s own" in bare
    assert json.loads((tmp_path / drawn.FILE).read_text())["own"]["distances"] == []
