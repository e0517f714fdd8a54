"""PartNTK: linear interpolation, then NTK, then plain RoPE, with a ramp between each; YaRN's predecessor.

jquesnelle/yarn, LlamaPartNTKScaledRotaryEmbedding; its constants (beta 1.25 and 0.75, gamma 16 and 2) are the defaults.
Described in arXiv:2309.00071 as an early form of NTK-by-parts.
"""

from giraffe_jax.positions.calls import Factor, Positive
from giraffe_jax.positions.encoding import Encoding
from giraffe_jax.positions.ramps import index_bounds, index_ramp

EXAMPLE = dict(factor=4.0)
IDENTITY = dict(factor=1.0)
ABOUT = dict(kind="frequencies", training_free=True, export="longrope", cache="rotated")


def part_ntk(
    e: Encoding,
    *,
    factor: Factor,
    beta_fast: Positive = 1.25,
    beta_slow: Positive = 0.75,
    gamma_fast: Positive = 16.0,
    gamma_slow: Positive = 2.0,
) -> Encoding:
    """Linear below beta_slow rotations in original_len, NTK from beta_fast, plain from gamma_fast, ramps between.

    Ramps are linear in the plane's index, their ends rounded outwards to whole planes.
    """
    ntk = factor ** (-2 * e.planes / (e.head_dim - 2))
    to_linear = index_ramp(e, *index_bounds(e, beta_fast, beta_slow, rounded=True))
    from_plain = index_ramp(e, *index_bounds(e, gamma_fast, gamma_slow, rounded=True))
    slowed = ntk + to_linear * (1 / factor - ntk)
    return e.replace(inv_freq=e.inv_freq * (1 + from_plain * (slowed - 1)))
