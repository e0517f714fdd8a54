"""How tests compare floats: by what the arithmetic promises on any processor, never by what one machine gave.

Vector width and the order of a sum change the last bits of every float32 result, by amounts that scale with the largest
terms that were summed and not with the single element. So the limit is counted in units of the last place of the
array's largest value: 64 for one reduction or one attention, 256 for a forward pass of a few layers, 1,024 for
gradients and for another library.
"""

import numpy as np

ULP = 2.0**-23  # spacing of float32 numbers, relative to the number


def close(got, want, ulps: float = 64, what: object = "", scale: float = 0.0) -> None:
    """Asserts max |got - want| <= ulps * 2^-23 * max |want|: both finite, of one shape unless `want` is one number.

    scale: of the terms that were summed, where they cancel and the sum is much smaller than they are.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    want = np.broadcast_to(want, got.shape) if want.ndim == 0 else want
    assert got.shape == want.shape, f"{what} shapes {got.shape} and {want.shape}"
    assert np.isfinite(got).all() and np.isfinite(want).all(), f"{what} not finite"
    if want.size == 0:
        return
    scale, difference = max(scale, np.abs(want).max()), np.abs(got - want)
    worst = np.unravel_index(difference.argmax(), difference.shape)
    assert difference[worst] <= ulps * ULP * scale, (
        f"{what} differ by {difference[worst]:.3g} at {tuple(map(int, worst))} (got {got[worst]:.9g}, wanted "
        f"{want[worst]:.9g}): {difference[worst] / (ULP * scale or ULP):.3g} ulps of the largest, {scale:.3g}; "
        f"allowed {ulps:g}"
    )


def decided(scores, ulps: float = 256) -> np.ndarray:
    """Returns where the largest of the last axis leads by more than rounding can give: the argmax is safe to assert."""
    scores = np.asarray(scores, np.float64)
    second, first = np.moveaxis(np.partition(scores, -2, axis=-1)[..., -2:], -1, 0)
    return first - second > 2 * ulps * ULP * np.abs(scores).max()
