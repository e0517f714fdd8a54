"""Mixed windows: short sequences keep the frequencies they were trained with, long ones get others, in one batch.

Shang et al., "LongRoPE2: Near-Lossless LLM Context Window Scaling", arXiv:2502.20082, which trains this way: sequences
up to original_len with plain RoPE and a mask between documents, longer ones rescaled; at inference the length decides.
There documents joined to a long sequence see each other and count as one length; here each document is masked from the
others and has its own length. `giraffe search` with recipe="longrope2" finds the divisors of the long ones.
"""

from typing import Any

import jax
import numpy as np

from giraffe_jax.positions.calls import Choices, Positives
from giraffe_jax.positions.compose import apply
from giraffe_jax.positions.encoding import Encoding

EXAMPLE = dict(choices=[[], [{"name": "linear", "factor": 4.0}]])
IDENTITY = "short"
ABOUT = dict(kind="length", training_free=False, export="custom", cache="raw", instead="the last of its choices")


def mixed(e: Encoding, *, choices: Choices, up_to: Positives | None = None) -> Encoding:
    """The frequencies and gain of choices[0] for documents of up to up_to[0] tokens, and so on; the last for the rest.

    Each document of a packed row has its own choice, unless one length is given for all (a generation, an evaluation
    at a length) or a batch names its rows' choices: Encoding.at(positions, choice=[B]).

    Args:
      choices: K lists of methods that change frequencies and gain only.
      up_to: K - 1 lengths, rising, in tokens; [original_len] by default.
    """
    if e.xp is not np:
        raise ValueError("it comes before methods whose frequencies follow the length, not after.")
    if e.limits is not None:
        raise ValueError("mixed is there already; give one more choices.")
    limits = np.asarray([e.original_len] if up_to is None else up_to, np.float64)
    if len(limits) != len(choices) - 1 or (np.diff(limits) <= 0).any():
        raise ValueError(
            f"{len(choices)} choices need {len(choices) - 1} rising lengths in up_to, got {limits.tolist()}."
        )
    edges = [0.0, *limits, 2 * limits[-1] + 1]
    spans = zip(choices, edges, edges[1:], strict=False)
    encodings = [_fixed(e, c, low + 1, high, f"choices[{i}]") for i, (c, low, high) in enumerate(spans)]
    shape = np.broadcast_shapes(*(m.inv_freq.shape for m in encodings))
    inv_freq = np.stack([np.broadcast_to(m.inv_freq, shape) for m in encodings])
    return e.replace(inv_freq=inv_freq, gain=np.stack([m.gain for m in encodings]), limits=limits)


def _fixed(e: Encoding, calls: Any, shortest: float, longest: float, where: str) -> Encoding:
    """Returns the encoding of one choice, which must be the same at all lengths that it serves."""
    names = ", ".join(call.function.__name__ for call in calls)
    if any(set(call.needs) & {"positions", "key"} for call in calls):
        raise ValueError(f"a choice may change frequencies and gain only, but {names} does more.")
    encoding, other = (apply(e.replace(length=np.float64(n)), calls, where) for n in (longest, shortest))
    if not (np.array_equal(encoding.inv_freq, other.inv_freq) and encoding.gain == other.gain):
        raise ValueError(f"a choice must have the same frequencies at every length; those of {names} differ.")
    rest = encoding.replace(inv_freq=e.inv_freq, gain=e.gain, theta=e.theta, length=e.length)
    if jax.tree.structure(rest) != jax.tree.structure(e) or not jax.tree.all(jax.tree.map(np.array_equal, rest, e)):
        raise ValueError(f"a choice may change frequencies and gain only, but {names} does more.")
    return encoding
