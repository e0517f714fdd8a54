"""Jet-Long: true distances within a window; beyond it grouped positions, with a group size that grows with the length.

Tang et al., "Jet-Long: Efficient Long-Context Extension with Dynamic Bifocal RoPE", arXiv:2607.07740;
jet-ai-projects/Jet-Long, modeling_qwen3_jetlong.py (read). Unlike Self-Extend's, far queries are not shifted: a far
distance may be less than the window. The released code keeps cached keys rotated and corrects them as it reads them;
here they are cached raw. Its group size follows the longest row of a batch; here it follows each document's length.
"""

from typing import Annotated

from giraffe_jax.positions.bands import Line, far, near, window_of, with_bands
from giraffe_jax.positions.calls import Bound, Number
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(window=8.0, trained=24.0)
IDENTITY = "short"
NEEDS = ("length",)
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="raw",
    instead="ntk or yarn of the same reach",
)


def jet_long(
    e: Encoding,
    *,
    window: Annotated[Number, Bound(1.0)] | None = None,
    trained: Annotated[Number, Bound(1.0)] | None = None,
) -> Encoding:
    """Distance D where D <= window, else i // G - j // G with G = ceil(length / trained): D itself up to `trained`.

    Args:
      window: tokens; by default 1/16 of `trained`, 2,048 of 32,768 as released.
      trained: tokens that the model was trained on; original_len by default.
    """
    as_trained = e if trained is None else e.replace(original_len=trained)
    first = window_of(as_trained, window, 1 / 16) + 1
    grouped = Line(group=-(-e.length // as_trained.original_len))  # rounded up, by a division that is exact in floats
    return with_bands(e, near(first), far(first, grouped, grouped))
