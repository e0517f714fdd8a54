import math

import pytest

from tests.positions.closed_form import assert_frequencies, plain


@pytest.mark.parametrize(("kind", "value"), [("uniform", 2.781329e-3), ("progressive", 5.400299e-3)])
def test_radices_along_yarns_ramp(kind, value):
    """Llama 2, factor 16: the ramp runs from plane 20 to 46. As the product of each plane's own radix."""
    n, factor = 26, 16.0
    shares = [1 / n] * n if kind == "uniform" else [2 * k / (n * (n + 1)) for k in range(1, n + 1)]

    def expected(i):
        return plain(i) / math.prod(factor**s for s in shares[: min(max(i - 20, 0), n)])

    assert math.isclose(expected(32), value, rel_tol=1e-6)
    assert_frequencies(
        [dict(name="mrrope", factor=factor, kind=kind)], expected, gain=0.1 * math.log(16) + 1, rtol=3e-7
    )
