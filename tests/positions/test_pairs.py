"""Every pair of methods composes, so that decoding equals prefill, or is refused when the config is built."""

import itertools
import random

import jax
import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.inference import LM, decode_step, prefill
from giraffe_jax.model import Llama
from giraffe_jax.positions import names, needs_raw_keys, rotations
from tests.close import close
from tests.positions.test_contract import CATALOGUE, CONFIG, TOKENS, bind, count, example

PAIRS = sorted(itertools.product(names(), repeat=2))
SAMPLE = random.Random(0).sample(PAIRS, 12)
KINDS = {name: module.ABOUT["kind"] for name, module in CATALOGUE.items()}
FREQUENCIES = {n for n, kind in KINDS.items() if kind in ("frequencies", "length", "layers")}


def refused(first, second):
    """The reason for which the two must not compose, as a pattern of the error; None where they must."""
    kinds = KINDS[first], KINDS[second]
    if kinds == ("training", "training"):
        return "already says how positions are drawn"
    if kinds == ("length", "length") and second != "longrope":
        return "already says how frequencies follow the length"
    if kinds == ("bands", "bands"):
        return f"{first} already says which distances are seen"
    if second == "abf" and first in FREQUENCIES:
        return "comes before other methods of frequencies"
    if (first, second) == ("mixed", "nope_layers"):
        return "after mixed"
    if first == second and first in ("t5", "kerple", "fire", "ssmax"):
        return "is there already"
    return None


@pytest.mark.parametrize("first", names())
def test_every_pair_composes_or_is_refused_with_the_reason(first):
    for second in names():
        scaling, reason = example(first) + example(second), refused(first, second)
        if reason:
            with pytest.raises(ConfigError, match=rf"model.positions\[1\] \({second}\): .*{reason}"):
                bind(scaling)
        else:
            bind(scaling, None if first < second else 48)


def assert_decodes_as_it_prefills(first, second):
    if refused(first, second):
        return
    e = bind(example(first) + example(second), 48)
    assert all(bool(np.isfinite(t).all()) for t in jax.tree.leaves(rotations(e.at(count(48)))))
    params = jax.jit(lambda key: init(key, e))(jax.random.key(0))
    lm = LM(CONFIG, params, None)
    want, _ = prefill(lm, TOKENS, np.array([48]), e, capacity=48, raw=needs_raw_keys(e))
    _, cache = prefill(lm, TOKENS[:, :47], np.array([47]), e, capacity=48, raw=needs_raw_keys(e))
    got, _ = decode_step(lm, TOKENS[:, 47], e, cache)
    assert bool(np.isfinite(want).all())
    close(got, want, ulps=256)


def init(key, e):
    return Llama(CONFIG).init(key, TOKENS[:, :2], e.at(count(2), key=key))["params"]


@pytest.mark.parametrize(("first", "second"), SAMPLE)
def test_a_sample_of_pairs_decodes_as_it_prefills(first, second):
    assert_decodes_as_it_prefills(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("first", names())
def test_all_pairs_decode_as_they_prefill(first):
    for second in names():
        assert_decodes_as_it_prefills(first, second)
