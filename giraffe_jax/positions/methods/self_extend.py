"""SelfExtend: true distances within a window, positions in groups beyond it.

Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning", arXiv:2401.01325. window // group rounds
down, as in the paper; the released code does not round, and it ignores the window while a sequence is short, so that
its prefill and decode differ.
"""

from typing import Annotated

from giraffe_jax.positions.bands import Line, far, near, with_bands
from giraffe_jax.positions.calls import Bound
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(window=8, group=4)
IDENTITY = "short"
ABOUT = dict(
    kind="bands",
    training_free=True,
    export="custom",
    cache="raw",
    test="bands",
    instead="ntk or yarn of the same reach; llama.cpp can do it at run time (group attention)",
)


def self_extend(
    e: Encoding, *, window: Annotated[int, Bound(1)] = 1024, group: Annotated[int, Bound(1)] = 8
) -> Encoding:
    """Distance D where D < window, else i // group - j // group + window - window // group.

    Reaches (original_len - window) * group + window tokens.
    """
    shift = window - window // group
    return with_bands(e, near(window), far(window, Line(1.0, shift, group), Line(group=group)))
