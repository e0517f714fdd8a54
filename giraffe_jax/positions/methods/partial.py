"""Partial rotary: only a share of the head turns, with frequencies spread over that share.

GPT-NeoX (arXiv:2204.06745) and StableLM; transformers' `partial_rotary_factor`. In the half-split layout those models
rotate features 0 to d_rot; here the planes that turn are the first ones, so weights of such a model need their
features permuted, which the converter does not do.
"""

from giraffe_jax.positions.calls import Fraction
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(fraction=0.5)
IDENTITY = dict(fraction=1.0)
ABOUT = dict(kind="frequencies", training_free=False, export="longrope", cache="rotated")


def partial(e: Encoding, *, fraction: Fraction) -> Encoding:
    """th_i^(1 / fraction) for the first `fraction` of the planes, theta^(-2i / d_rot); 0 for the rest.

    d_rot = 2 floor(fraction d / 2): frequencies run down to nearly 1 / theta within the planes that turn.
    """
    xp, num_planes = e.xp, e.planes.shape[0]
    turning = xp.maximum(xp.floor(fraction * num_planes), 1)
    spread = e.theta ** (-2 * e.planes / e.head_dim * (num_planes / turning - 1))
    return e.replace(inv_freq=xp.where(e.planes < turning, e.inv_freq * spread, 0.0))
