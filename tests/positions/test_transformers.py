"""Frequencies against transformers' own initialisers, over the grid of `giraffe check frequencies`."""

import pytest

from giraffe_jax.cli.check_frequencies import ALLOWED, ALLOWED_OF_FLOAT32, KINDS, largest_difference

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_and_gain(kind):
    """Theirs are float32 throughout, ours float64 and rounded once; so theirs are carried out in float64 too."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    largest, count = largest_difference(kind, exact=False)
    assert largest <= ALLOWED_OF_FLOAT32.get(kind, ALLOWED)
    assert largest_difference(kind, exact=True)[0] <= ALLOWED
    assert count == 42 * {"default": 1, "dynamic": 15, "linear": 5, "llama3": 5}.get(kind, 10)
