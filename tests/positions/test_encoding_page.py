"""docs/encoding.md against the dataclasses it describes, and against what a method is handed at each stage."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax.positions import Encoding, bind, frequencies
from giraffe_jax.positions.bands import Line
from giraffe_jax.positions.encoding import Band, Range, Start

PAGE = (Path(__file__).parents[2] / "docs" / "encoding.md").read_text(encoding="utf-8")
MODEL: dict = dict(head_dim=8, theta=1e4, original_len=16)


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    rows = re.findall(r"^\| .+ \|$", PAGE.split(f"# {heading}\n", 1)[1].split("\n#")[0], re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


@pytest.mark.parametrize("record", [Encoding, Band, Range, Line, Start])
def test_the_page_has_every_field_in_its_order(record):
    assert [row[0].strip("`") for row in table(record.__name__)] == [f.name for f in dataclasses.fields(record)]


def test_computed_properties_and_catalogued_examples_exist():
    from giraffe_jax.positions import names

    properties = {name for name, value in vars(Encoding).items() if isinstance(value, property)}
    assert properties == set(re.findall(r"`e\.(\w+)`", PAGE.split("Also there, computed:")[1].split("\n\n")[0]))
    named = {name for row in table("Encoding") for name in re.findall(r"`(\w+)`", row[4])}
    assert named and named <= set(names())


def test_the_example_is_the_formula_it_states():
    scope: dict = {}
    exec(re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)[0], scope)
    found, _ = frequencies([dict(name=scope["halfway"], sharp=2.0)], **MODEL)
    want = [1e4 ** (-2 * i / 8) * (1 - (i / 3) ** 2 / 2) for i in range(4)]
    np.testing.assert_allclose(found, want, rtol=1e-6)


HANDED: list[Encoding] = []


def handed(e: Encoding) -> Encoding:
    HANDED.append(e)
    return e


@pytest.mark.parametrize("needs", [(), ("length",), ("positions",), ("key",), ("length", "positions")])
def test_what_a_method_is_handed_is_what_the_page_says(monkeypatch, needs):
    import sys

    monkeypatch.setattr(sys.modules[__name__], "NEEDS", needs, raising=False)
    positions, own = jnp.arange(6.0).reshape(1, 6), [dict(name=handed)]
    bound = bind(own, **MODEL, num_layers=2)
    HANDED.clear()
    bound.at(positions)
    in_step = list(HANDED)
    if not needs:
        assert not in_step  # it was called while binding
        bind(own, **MODEL, num_layers=2)
        (e,) = HANDED
        assert e.xp is np and e.inv_freq.dtype == np.float64 and e.inv_freq.shape == (4,)
        assert e.num_layers == 2 and e.length is e.positions is e.key is None
        return
    (e,) = in_step
    assert e.xp is jnp and e.inv_freq.dtype == jnp.float32 and e.positions.shape == (1, 6) and e.key is None
    assert (None if e.length is None else e.length.shape) == ((1, 6, 1) if "length" in needs else None)
    HANDED.clear()
    bound.at(positions, length=jnp.float32(6), key=jax.random.key(0))
    assert HANDED[0].key is not None and HANDED[0].length.shape == ()
    HANDED.clear()
    bind(own, **MODEL, length=32)
    fixed = [e for e in HANDED if e.xp is np]
    assert len(fixed) == (needs == ("length",))
    assert all(e.length == 32 and e.length.dtype == np.float64 and e.positions is None for e in fixed)
