import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.positions import bind
from tests.close import close
from tests.positions.closed_form import HEAD_DIM, LLAMA2, ORIGINAL_LEN, THETA, assert_frequencies, plain


@pytest.mark.parametrize("length", [1, 4095, 4096])
def test_nothing_changes_up_to_the_original_length(length):
    assert_frequencies([dict(name="dynamic", factor=2.0)], plain, length=length)


@pytest.mark.parametrize(("factor", "length"), [(2.0, 8192), (1.0, 16384), (8.0, 16384), (4.0, 4097)])
def test_base_grows_with_the_length(factor, length):
    s = factor * length / ORIGINAL_LEN - (factor - 1)
    base = THETA * s ** (HEAD_DIM / (HEAD_DIM - 2))
    assert_frequencies([dict(name="dynamic", factor=factor)], lambda i: base ** (-2 * i / HEAD_DIM), length=length)


def test_a_traced_length_gives_the_pinned_frequencies():
    scaling = [dict(name="dynamic", factor=2.0), dict(name="power", exponent=0.5)]
    positions = jnp.arange(9000.0)[None]
    running = jax.jit(lambda e, p: e.at(p, length=p.max() + 1).inv_freq)(bind(scaling, **LLAMA2), positions)
    pinned = bind(scaling, **LLAMA2, length=9000).inv_freq
    close(running / pinned, np.ones(64))
