import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from giraffe_jax.config import Bound, ConfigError, FrozenDict, build, load, to_dict


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    lr: float = 1.0
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = ()
    kind: Literal["a", "b"] = "a"
    positions: tuple[Mapping[str, Any], ...] = ()
    limit: int | None = None
    share: Annotated[float, Bound(0.0, above=True, high=1.0)] | None = None


def test_builds_nested_values_and_freezes_them():
    given = dict(
        steps=3, lr=2, inner=dict(size=4), parts=[dict(size=5)], positions=[dict(name="linear", factor=[1, 2])]
    )
    built = build(Outer, given)
    assert built == Outer(3, 2.0, Inner(4), (Inner(5),), positions=(FrozenDict(dict(name="linear", factor=(1, 2))),))
    assert isinstance(built.lr, float) and isinstance(hash(built), int)
    assert build(Outer, given | dict(steps=3.0)) == build(Outer, given | dict(steps=np.int64(3))) == built
    assert isinstance(build(Outer, given | dict(steps=3.0)).steps, int)
    assert build(Outer, to_dict(built)) == built


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(), "c: missing ['steps']; Outer takes steps, lr"),
        (dict(stpes=1), "c: unknown ['stpes'], missing ['steps']"),
        (dict(stpes=1), "Did you mean 'steps'?"),
        (dict(steps="3"), "c.steps: expected int, got '3'."),
        (dict(steps=True), "c.steps: expected int, got True."),
        (dict(steps=1.5), "c.steps: expected int, got 1.5."),
        (dict(steps=float("inf")), "c.steps: expected int, got inf."),
        (dict(steps=1, lr=float("nan")), "c.lr: expected float, got nan."),
        (dict(steps=1, share=2), "c.share: must be > 0 and <= 1, got 2."),
        (dict(steps=1, inner=dict(sise=2)), "c.inner: unknown ['sise']; Inner takes size. Did you mean 'size'?"),
        (dict(steps=1, parts=[dict(size="x")]), "c.parts[0].size: expected int, got 'x'."),
        (dict(steps=1, parts=5), "c.parts: expected a list, got 5."),
        (dict(steps=1, kind="c"), "c.kind: got 'c'; allowed are 'a', 'b'."),
        (dict(steps=1, limit="x"), "c.limit: expected int, got 'x'."),
        (3, "c: expected the keys of Outer, got 3."),
    ],
)
def test_wrong_values_name_their_place(given, message):
    with pytest.raises(ConfigError) as error:
        build(Outer, given, "c")
    assert message in str(error.value)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        textwrap.dedent("""
        from ml_collections import ConfigDict

        def get_config(size="1"):
            c = ConfigDict(dict(steps=int(size), lr=1.0, model=dict(positions=[dict(name="linear", factor=4.0)])))
            return c
        """)
    )
    return path


def test_load_applies_overrides_inside_lists_and_arguments(file):
    c = load(f"{file}:7", ["--config.lr=0.5", "--config.model.positions[0].factor=8.0"])
    assert (c.steps, c.lr, c.model.positions[0]["factor"]) == (7, 0.5, 8.0)
    assert load(file.parent).steps == 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.stepz=1", "c: unknown ['stepz']; Outer takes steps, lr"),
        ("--config.inner.sise=1", "c.inner: unknown ['sise']; Inner takes size. Did you mean 'size'?"),
        ("--config.lr=abc", "c.lr: expected float, got 'abc'."),
        ("--lr=1", "--lr=1: not a flag of this command"),
    ],
)
def test_wrong_overrides(file, flag, message):
    with pytest.raises(ConfigError) as error:
        values = load(file, [flag])
        build(Outer, {key: values[key] for key in values if key != "model"}, "c")
    assert message in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match="no such file: nowhere.py"):
        load("nowhere.py")
