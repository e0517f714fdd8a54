"""What the tests of methods share: a Llama-2 head, plain RoPE and attention by their definitions, in Python floats."""

import math

import jax.numpy as jnp
import numpy as np

from giraffe_jax.attention import dense, place_of_rows
from giraffe_jax.positions import bind, frequencies, rotate, rotations

HEAD_DIM, THETA, ORIGINAL_LEN = 128, 10000.0, 4096
LLAMA2 = dict(head_dim=HEAD_DIM, theta=THETA, original_len=ORIGINAL_LEN)


def plain(i: int, *, theta: float = THETA, head_dim: int = HEAD_DIM) -> float:
    return math.pow(theta, -2 * i / head_dim)


def assert_frequencies(scaling, expected, *, gain=1.0, rtol=2e-7, **settings):
    """Compares with `expected(i)` in float64; 2e-7 is the rounding to float32 and nothing more."""
    inv_freq, got_gain = frequencies(scaling, **(LLAMA2 | settings))
    want = np.array([expected(i) for i in range(len(inv_freq))], np.float64)
    assert inv_freq.dtype == np.float32
    np.testing.assert_allclose(inv_freq, want, rtol=rtol, atol=0)
    assert isinstance(got_gain, float)
    assert math.isclose(got_gain, gain, rel_tol=1e-12)


def attention_by_hand(q, k, v, phase, multiplier=1.0):
    """One head's causal attention, [T H], pair by pair in float64: in plane r of the query i and the key j, features r
    and r + H/2 are a complex number, turned by phase(i, j)[r] radians between the two; one softmax over all j <= i."""
    length, width = q.shape
    half, out = width // 2, np.zeros_like(v)
    for i in range(length):
        logits = np.zeros(i + 1)
        for j in range(i + 1):
            turns = phase(i, j)
            for r in range(half):
                a, b = complex(q[i, r], q[i, r + half]), complex(k[j, r], k[j, r + half])
                turned = a * b.conjugate() * complex(math.cos(turns[r]), math.sin(turns[r]))
                logits[j] += multiplier * turned.real / math.sqrt(width)
        weights = np.exp(logits - logits.max())
        out[i] = weights @ v[: i + 1] / weights.sum()
    return out


def attention_of(scaling, q, k, v, *, length=None, **model):
    """The same through a method's bands and rotations, [T H]."""
    e = bind(scaling, length=length, head_dim=q.shape[1], **model).at(jnp.arange(float(len(q)))[None])
    rows = [jnp.asarray(x, jnp.float32)[None, :, None] for x in (q, k, v)]
    tables, place = rotations(e), place_of_rows(None, (1, len(q)))
    turned_q = tuple(rotate(rows[0], t.q_cos, t.q_sin) for t in tables)
    turned_k = tuple(rotate(rows[1], t.k_cos, t.k_sin) for t in tables)
    return dense(turned_q, turned_k, rows[2], q_place=place, k_place=place, bands=e.bands)[0][0, :, 0]


def heads(length: int, width: int, seed: int = 0):
    """A head's queries, keys and values, [T H] each; queries large, so that attention is not nearly uniform."""
    q, k, v = np.random.default_rng(seed).normal(size=(3, length, width))
    return 2 * q, k, v
