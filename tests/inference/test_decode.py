"""Cached decoding against the full forward pass; the full forward pass is the oracle everywhere in this file."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax import inference
from giraffe_jax.config import ConfigError
from giraffe_jax.inference import generation
from giraffe_jax.model import Llama, ModelConfig, init_params
from giraffe_jax.tokenizer import ByteTokenizer
from tests.close import close, decided
from tests.forward import full_logits, greedy

CONFIG = ModelConfig(
    vocab_size=258, d_model=32, d_mlp=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, original_len=16
)
METHODS = {
    "plain": [],
    "linear": [dict(name="linear", factor=4.0)],
    "yarn": [dict(name="yarn", factor=4.0)],
    "dynamic": [dict(name="dynamic", factor=2.0)],
    "xpos": [dict(name="xpos")],
}


@functools.cache
def make_lm(num_layers=2):
    config = dataclasses.replace(CONFIG, num_layers=num_layers)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(1))
    # Larger than at initialisation: attention must matter for a mistake in positions to show.
    params = jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, params)
    return inference.LM(config, params, ByteTokenizer())


def generate(lm, prompts, n, encoding=None, **keys: Any):
    """`inference.generate` at one shape, so that this file compiles few programs."""
    return inference.generate(lm, prompts, n, encoding, batch=4, width=24, **keys)


def draw(length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


@pytest.mark.parametrize("name", METHODS)
def test_cached_decode_equals_full_forward_token_by_token(name):
    lm, rows, total = make_lm(), [draw(30, 1), draw(30, 2)], 30
    encoding = lm.config.bind(length=total, scaling=METHODS[name])
    starts = [20, 13]  # rows of different lengths in one right-padded batch
    tokens = np.zeros((2, 24), np.int32)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        tokens[i, :start] = row[:start]
    want = [full_logits(lm, row, encoding) for row in rows]
    got, cache = inference.prefill(lm, tokens, np.array(starts), encoding, capacity=total)
    for step in range(10):
        for i, start in enumerate(starts):
            close(got[i], want[i][start + step - 1], ulps=256)
        fed = np.array([row[start + step] for row, start in zip(rows, starts, strict=True)])
        got, cache = inference.decode_step(lm, fed, encoding, cache)


@pytest.mark.parametrize("name", METHODS)
def test_greedy_is_the_argmax_of_repeated_full_forwards_and_rows_are_independent(name):
    lm, n = make_lm(), 8
    prompts = [draw(5, 3), draw(17, 4), draw(11, 5), draw(1, 6)]
    scaling = METHODS[name]
    together = generate(lm, prompts, n, lm.config.bind(scaling=scaling), stop=())
    for prompt, got in zip(prompts, together, strict=True):
        encoding = lm.config.bind(length=len(prompt) + n, scaling=scaling)
        want = greedy(lm, prompt, n, encoding)
        assert got[: len(want)] == want and len(got) == n
        alone = generate(lm, [prompt], n, lm.config.bind(scaling=scaling), stop=())[0]
        assert alone[: len(want)] == want


def test_running_length_rotates_old_keys_anew():
    # One layer: keys are then a function of their token alone, so a full forward at the length so far is the oracle.
    lm, prompt, n = make_lm(1), draw(20, 7), 12
    encoding = lm.config.bind(scaling=METHODS["dynamic"])
    want = greedy(lm, prompt, n, encoding, running=True)
    assert generate(lm, [prompt], n, encoding, policy="running", stop=())[0][: len(want)] == want


def test_policies_differ_for_dynamic_methods_and_agree_for_others():
    lm, prompt = make_lm(), draw(20, 8)
    step = {}
    for policy in ("pinned", "per_call", "running"):
        dynamic = generate(lm, [prompt], 16, lm.config.bind(scaling=METHODS["dynamic"]), policy=policy, stop=())
        yarn = generate(lm, [prompt], 16, lm.config.bind(scaling=METHODS["yarn"]), policy=policy, stop=())
        step[policy] = (dynamic, yarn)
    assert step["pinned"][1] == step["per_call"][1] == step["running"][1]
    assert len({str(s[0]) for s in step.values()}) > 1


def test_stop_ends_a_row_and_is_left_out():
    lm, prompts = make_lm(), [draw(9, 9), draw(14, 10)]
    free = generate(lm, prompts, 10, stop=())
    stop = free[0][4]
    never = next(token for token in range(lm.config.vocab_size) if all(token not in row for row in free))
    stopped = generate(lm, prompts, 10, stop=[never, stop])  # any of them ends a row
    assert stopped == generate(lm, prompts, 10, stop=[stop])
    for a, b in zip(free, stopped, strict=True):
        assert b == (a[: a.index(stop)] if stop in a else a)
    assert [len(row) for row in generate(lm, prompts, 1, stop=())] == [1, 1]


def test_sampling_needs_a_key_and_repeats_with_it():
    lm, prompt = make_lm(), draw(9, 11)
    with pytest.raises(ConfigError, match="temperature"):
        inference.generate(lm, [prompt], 4, temperature=1.0)
    with pytest.raises(ConfigError, match="temperature nan must be"):
        inference.generate(lm, [prompt], 4, temperature=float("nan"), key=jax.random.key(0))
    draws = [generate(lm, [prompt], 12, temperature=2.0, key=jax.random.key(k), stop=())[0] for k in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    cold = generate(lm, [prompt], 12, temperature=1e-4, key=jax.random.key(0), stop=())[0]
    want = greedy(lm, prompt, 12, lm.config.bind(length=21), ulps=4096)  # clear by more than the noise of 1e-4
    assert cold[: len(want)] == want


@pytest.mark.parametrize("name", METHODS)
def test_score_is_the_softmax_of_full_logits(name):
    lm, rows = make_lm(), np.array([draw(24, 12), draw(24, 13)])
    encoding = lm.config.bind(length=24, scaling=METHODS[name])
    nll, correct = inference.score(lm, rows, encoding)
    for i, row in enumerate(rows):
        full = full_logits(lm, row, encoding).astype(np.float64)
        want = np.log(np.exp(full - full.max(-1, keepdims=True)).sum(-1)) + full.max(-1)
        close(nll[i], (want - full[np.arange(24), np.roll(row, -1)])[:-1], ulps=256)
        clear = decided(full[:-1])
        assert clear.any()
        np.testing.assert_array_equal(correct[i][clear], (full[:-1].argmax(-1) == row[1:])[clear])


def test_padding_does_not_change_a_row():
    lm, row = make_lm(), draw(13, 14)
    tokens, segments = np.zeros((1, 24), np.int32), np.zeros((1, 24), np.int32)
    tokens[0, :13], segments[0, :13] = row, 1
    encoding = lm.config.bind(length=24)
    padded, _ = inference.score(lm, tokens, encoding, segments)
    alone, _ = inference.score(lm, np.array([row]), encoding)
    close(padded[0, :12], alone[0], ulps=256)


@pytest.mark.parametrize(
    "prompts, match", [([[1], []], r"prompts\[1\] is empty"), ([[1, 258]], r"token 258; ids are 0 to 257")]
)
def test_bad_prompts_are_named(prompts, match):
    with pytest.raises(ConfigError, match=match):
        inference.generate(make_lm(), prompts, 4)


def test_buckets_hold_what_they_are_for_and_are_few():
    sizes = [generation._bucket(n) for n in range(1, 4097)]
    assert all(n <= size <= max(16, 1.5 * n) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 20


def test_a_prompt_in_two_parts_is_refused_instead_of_forgetting_the_first():
    lm = make_lm()
    encoding = CONFIG.bind(16.0)
    tokens = jnp.arange(8, dtype=jnp.int32)[None]
    _, cache = inference.prefill(lm, tokens[:, :4], np.array([4]), encoding, capacity=16)
    rest = encoding.at(np.arange(4.0, 8.0, dtype=np.float32)[None])
    with pytest.raises(ConfigError, match="4 more tokens for a cache that is filled already"):
        Llama(CONFIG).apply({"params": lm.params}, tokens[:, 4:], rest, None, cache)
