"""Effective distances: what distance each pair of tokens gets, measured through the attention that models run."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from giraffe_jax import positions
from giraffe_jax.attention.dense import dense
from giraffe_jax.attention.places import Place, place_of_rows
from giraffe_jax.positions import Scaling

REACH = 0.5  # radians of the largest distance: sin() is invertible, and steep, up to there


def distances(
    scaling: Scaling,
    *,
    length: int,
    head_dim: int,
    theta: float,
    original_len: int,
    queries: Sequence[int] | None = None,
    plane: int = -1,
) -> Float[np.ndarray, "Q T"]:
    """Returns the query-key distance in tokens that each pair sees, float32; nan where it is masked.

    The methods' positions and bands are kept and their frequencies replaced by one slow plane, so that a head of two
    features shows positions alone: a query (1, 0) and a key (0, 1) have the logit sin(distance * frequency). Logits
    are recovered from the attention weights, so that the code that models run is what is measured; each row's softmax
    normaliser comes from the pair of a token with itself, at distance 0. Precise to about 1e-5 of `length`.

    Args:
      scaling: the config's list of methods.
      length: tokens of the sequence.
      head_dim, theta, original_len: of the model, as methods read them.
      queries: indices of the queries, one row of the result each; all by default.
      plane: the rotary plane to measure, if they move by different amounts; the slowest by default.
    """
    e = positions.bind(scaling, head_dim=head_dim, theta=theta, original_len=original_len, length=length)
    keys = jnp.arange(length)[None]
    index = keys if queries is None else jnp.asarray(queries, jnp.int32)[None]
    e = e.at(keys.astype(jnp.float32))
    slow = REACH / length
    bands = tuple(band.replace(inv_freq=None, gain=None) for band in e.bands)
    e = e.replace(inv_freq=jnp.array([slow]), gain=jnp.float32(1), start=None, bands=bands)
    e = e.replace(log_decay=None, query_scale=None, bias=None)
    return np.asarray(_probe(e, index, keys, slow, plane))


@jax.jit
def _probe(e, index, keys, slow, plane):
    length = keys.shape[1]
    ones = jnp.ones((1, length, 1, 1))
    query, key = (jnp.concatenate(pair, -1) for pair in ((ones, 0 * ones), (0 * ones, ones)))
    tables = jax.tree.map(lambda x: x[..., plane][..., None] if x.shape[-1] > 1 else x, positions.rotations(e))
    # dense divides logits by sqrt(2); a larger query makes them steeper than the weights' rounding.
    q = tuple(positions.rotate(2**0.5 * 8 * query, t.q_cos, t.q_sin)[:, index[0]] for t in tables)
    k = tuple(positions.rotate(key, t.k_cos, t.k_sin) for t in tables)
    one_hot = jnp.eye(length)[None, :, None]
    place = place_of_rows(None, (1, length))
    q_place = Place(*(x[:, index[0]] for x in place))
    out, _ = dense(q, k, one_hot, q_place=q_place, k_place=place, bands=e.bands)
    weights_TS = out[0, :, 0]
    own_weights = jnp.take_along_axis(weights_TS, index[0][:, None], axis=1)
    logits_TS = (jnp.log(weights_TS) - jnp.log(own_weights)) / 8
    return jnp.where(weights_TS > 0, jnp.arcsin(jnp.clip(logits_TS, -1, 1)) / slow, jnp.nan)
