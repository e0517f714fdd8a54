"""Jet-Long: attention pair by pair from the paper's two formulas, and text that grows from one group into the next."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.inference import LM, decode_step, prefill
from giraffe_jax.model import Llama
from giraffe_jax.positions import bind
from tests.close import close
from tests.positions.closed_form import attention_by_hand, attention_of, heads
from tests.positions.test_contract import CONFIG, MODEL, TOKENS

WIDTH, TOKEN = 16, 56


@pytest.mark.parametrize(
    ("length", "window", "trained"), [(56, 8, 24), (57, 1, 14), (48, 11, 24), (2000, 8, 24), (56, 8, 56)]
)
def test_near_is_exact_and_far_is_grouped_by_the_length(length, window, trained):
    group = math.ceil(length / trained)
    theta = [1e4 ** (-2 * r / WIDTH) for r in range(WIDTH // 2)]

    def phase(i, j):
        seen = i - j if i - j <= window else math.floor(i / group) - math.floor(j / group)
        return [seen * x for x in theta]

    q, k, v = heads(min(TOKEN, length), WIDTH)
    entry = [dict(name="jet_long", window=window, trained=trained)]
    got = attention_of(entry, q, k, v, length=length, theta=1e4, original_len=32)
    close(got, attention_by_hand(q, k, v, phase), ulps=256)


@pytest.mark.parametrize(
    ("length", "window", "trained", "base", "betas"),
    [
        (56, 8, 24, 1e4, (32, 1)),
        (300, 5, 40, 1e2, (2, 0.25)),
        (56, 8, 200, 1e2, (2, 0.25)),  # shorter than what was trained: plain
        (900, 10, 200, 10.0, (8, 1)),  # whose ramp is cut at the last plane
    ],
)
def test_far_turns_by_yarn_from_the_window_on(length, window, trained, base, betas):
    """As the released code has it: all turn as in plain RoPE, and far pairs by a correction on top."""
    half = WIDTH // 2
    theta = [base ** (-2 * r / WIDTH) for r in range(half)]
    low, high = (WIDTH * math.log(trained / (beta * 2 * math.pi)) / (2 * math.log(base)) for beta in betas)
    low, high = max(math.floor(low), 0), min(math.ceil(high), half - 1)
    ramp = [min(max((r - low) / max(high - low, 0.001), 0), 1) for r in range(half)]
    s = max((length - window) / (trained - window), 1)
    delta = [-x * y * (1 - 1 / s) for x, y in zip(theta, ramp, strict=True)]

    def phase(i, j):
        plain = [(i - j) * x for x in theta]
        if i - j <= window:
            return plain
        return [x + max(i - window, 0) * d - j * d for x, d in zip(plain, delta, strict=True)]

    q, k, v = heads(TOKEN, WIDTH)
    entry = [dict(name="jet_long_freq", window=window, trained=trained, beta_fast=betas[0], beta_slow=betas[1])]
    got = attention_of(entry, q, k, v, length=length, theta=base, original_len=32)
    close(got, attention_by_hand(q, k, v, phase, 0.1 * math.log(s) + 1), ulps=256)


@pytest.mark.parametrize("name", ["jet_long", "jet_long_freq"])
def test_windows_are_a_sixteenth_of_what_was_trained(name):
    for trained, window in ((None, 6), (64, 4)):
        given = {} if trained is None else dict(trained=trained)
        first, second = (
            bind([dict(name=name, **given, **more)], head_dim=8, theta=1e4, original_len=96, length=300)
            for more in ({}, dict(window=window))
        )
        jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("name", ["jet_long", "jet_long_freq"])
def test_text_that_grows_is_read_at_each_length_as_a_whole(name):
    """One layer, whose cached keys and values depend on no length. Groups are of 2 tokens up to 48, then of 3."""
    config = dataclasses.replace(CONFIG, num_layers=1)
    e = bind([dict(name=name, window=8, trained=24)], **MODEL)
    params = jax.jit(Llama(config).init)(jax.random.key(0), TOKENS[:, :2], e.at(jnp.arange(2.0)[None]))["params"]
    lm = LM(config, jax.tree.map(lambda x: 4 * x, params), None)
    tokens = jnp.concatenate([TOKENS, TOKENS[:, :4]], axis=1)
    placed = e.at(jnp.arange(46.0)[None])  # whose length is said of each token, unlike below
    found, cache = prefill(lm, tokens[:, :46], np.array([46]), placed, capacity=52, raw=True)
    for n in range(46, 52):
        if n > 46:
            found, cache = decode_step(lm, tokens[:, n - 1], e, cache)
        padded = jnp.pad(tokens[:, :n], ((0, 0), (0, 52 - n)))
        whole, _ = prefill(lm, padded, np.array([n]), e, capacity=52, raw=True)
        close(found, whole, ulps=256, what=n)
    pinned = e.replace(length=np.float32(48))  # in groups of 2, which is another reading by now
    assert np.abs(prefill(lm, tokens[:, :52], np.array([52]), pinned, capacity=52, raw=True)[0] - found).max() > 1e-2


def test_a_window_as_long_as_what_was_trained_is_refused():
    with pytest.raises(ConfigError, match=r"jet_long_freq.*trained must be more than window, got trained 24"):
        bind([dict(name="jet_long_freq", window=24, trained=24)], **MODEL)
