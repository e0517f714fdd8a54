"""Jet-Long by frequencies: true distances within a window; beyond it YaRN with a factor that grows with the length.

Tang et al., "Jet-Long: Efficient Long-Context Extension with Dynamic Bifocal RoPE", arXiv:2607.07740;
jet-ai-projects/Jet-Long, modeling_qwen3_jetlong_freq.py (read). Of a far distance, the first `window` tokens are
rotated by the trained frequencies and the rest by YaRN's, so that no angle jumps at the window's end. The temperature
applies to near and far logits alike. Unlike in `yarn`, the ramp ends at the last plane at the latest.
"""

from typing import Annotated

from giraffe_jax.positions.bands import Line, far, near, window_of, with_bands
from giraffe_jax.positions.calls import Bound, Number, Positive
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.methods.yarn import check_rising
from giraffe_jax.positions.ramps import index_bounds, index_ramp, magnitude

EXAMPLE = dict(window=8.0, trained=24.0)
IDENTITY = "short"
NEEDS = ("length",)
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="raw",
    test="jet_long",
    instead="yarn of the same reach",
)


def jet_long_freq(
    e: Encoding,
    *,
    window: Annotated[Number, Bound(1.0)] | None = None,
    trained: Annotated[Number, Bound(1.0)] | None = None,
    beta_fast: Positive = 32.0,
    beta_slow: Positive = 1.0,
) -> Encoding:
    """Distance D where D <= window; else, in plane i, window + (D - window) (1 - ramp_i (1 - 1 / s)). All logits times
    0.1 ln(s) + 1. s = (length - window) / (trained - window), at least 1: nothing changes up to `trained`.

    Args:
      window: tokens; by default 1/16 of `trained`, 2,048 of 32,768 as released.
      trained: tokens that the model was trained on; original_len by default.
      beta_fast, beta_slow: rotations within `trained` between which the ramp rises, as in yarn.
    """
    as_trained = e if trained is None else e.replace(original_len=trained)
    full, w = as_trained.original_len, window_of(as_trained, window, 1 / 16)
    check_rising(strictly=True, window=w, trained=full)
    s = e.xp.maximum((e.length - w) / (full - w), 1.0)
    kept = 1 - _ramp(as_trained, beta_fast, beta_slow) * (1 - 1 / s)
    beyond = far(w + 1, Line(kept, w * (1 - kept)), Line(kept))
    return with_bands(e, near(w + 1), beyond).replace(gain=e.gain * magnitude(e, s) ** 0.5)


def _ramp(e: Encoding, beta_fast, beta_slow):
    low, high = index_bounds(e, beta_fast, beta_slow, rounded=True)
    high = e.xp.minimum(high, e.head_dim // 2 - 1)
    return index_ramp(e, low, e.xp.maximum(high, low + 0.001))
