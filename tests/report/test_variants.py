"""The table of the variants: parameters, training, and the stretch of every plane."""

import fabricate
import numpy as np
import pytest

from giraffe_jax import report
from giraffe_jax.report import scores, variants

MODEL = {"head_dim": 8, "theta": 10000.0, "original_len": 256}


def test_stretch_is_plain_over_the_variants_frequency():
    assert variants.stretch([{"name": "linear", "factor": 4.0}], MODEL, 512) == pytest.approx([4.0] * 4, rel=1e-6)
    # NTK-aware: plane i of R is stretched by factor^(i / (R - 1)).
    ntk = variants.stretch([{"name": "ntk", "factor": 8.0}], MODEL, 512)
    assert ntk == pytest.approx(8.0 ** (np.arange(4) / 3), rel=1e-5)
    inside, past = (variants.stretch([{"name": "dynamic", "factor": 1.0}], MODEL, n) for n in (256, 2048))
    assert inside == pytest.approx([1.0] * 4) and past == pytest.approx(8.0 ** (np.arange(4) / 3), rel=1e-5)
    # 2 pi / 256 = 0.025, an eighth 0.003, and planes of 1, 0.1, 0.01 and 0.001: turning, turning, slowed, still.
    still = variants.stretch([{"name": "truncate", "cutoff_len": 256.0}], MODEL, 512)
    assert still is not None and np.isinf(still).tolist() == [False, False, False, True] and still[2] > 1


@pytest.mark.parametrize(
    "methods, kind",
    [([{"name": "self_extend", "window": 128, "group": 16}], "bands"), ([{"name": "os.getcwd"}], "own")],
)
def test_what_is_no_frequency_says_its_kind(methods, kind):
    assert variants.kinds(methods) == [kind] and variants.stretch(methods, MODEL, 512) is None


def test_stretch_is_not_told_without_the_models_shape():
    assert variants.stretch([{"name": "linear", "factor": 4.0}], {}, 512) is None


def test_the_page_shows_parameters_training_and_strips(tmp_path):
    page = report.write([fabricate.write(tmp_path, examples=2)], png=False).read_text()
    table = page[page.index("class='variants'") :].split("</table>")[0]
    assert table.count("class='strip'") == 12 and table.count("<tr>") == 13
    for text in ("yarn(factor=4)", "power(exponent=0.5)", "RoPE as trained", "50 steps at 1,024 tokens", "4×<"):
        assert text in table
    for text in ("590,464 parameters", "2 layers", "4 heads × 32", "θ 10,000", "commit abcdef012345", "jax 0.10.2",
                 "<dt>computed in</dt><dd>float32, matmuls at highest precision</dd>"):  # fmt: skip
        assert text in page
    assert "2000-01-01" in page and "giraffe run experiments/fabricated" in page


def test_positions_of_evaluation_are_what_counts():
    entry = {"name": "a", "positions": [{"name": "linear", "factor": 2.0}], "eval_positions": []}
    rows = [{"variant": "a", "task": "t", "length": 8, "example": 0, "metrics": {"teacher": 1}}]
    results = scores.collect(rows, {"config": {"variants": [entry]}, "model": MODEL})
    assert "RoPE as trained (trained with linear(factor=2))" in variants.as_html(results, {"a": ""})
    assert variants.as_html(scores.collect(rows), {}) == ""
    assert variants.method({"name": "longrope", "factors": [1.0] * 64}) == "longrope(factors=[64 numbers])"
