"""The config reference: every key is in it, with a meaning, and what it says of defaults is so."""

import ast
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from giraffe_jax.cli import main
from giraffe_jax.cli.keys import page, sections
from giraffe_jax.config import Bound, build
from giraffe_jax.config.keys import keys, meanings, type_text
from giraffe_jax.evals import names
from giraffe_jax.training.config import TrainConfig

DOCS = Path(__file__).parents[2] / "docs"


def test_every_key_has_a_meaning():
    without = [f"{head}: {key.name}" for head, _, found in sections() for key in found if not key.meaning]
    assert not without


def test_the_page_is_what_the_dataclasses_say():
    """`giraffe keys --page=docs/config.md` writes it anew."""
    assert (DOCS / "config.md").read_text(encoding="utf-8") == page(list(sections()))


def test_every_task_is_listed():
    assert [head for head, _, _ in sections() if head.startswith("tasks: ")] == [f"tasks: {name}" for name in names()]


def test_defaults_are_those_of_a_config_that_says_nothing():
    config: Any = build(TrainConfig, dict(steps=1, data=dict(seq_len=8, batch_size=1)))
    seen = 0
    for key in keys(TrainConfig):
        if key.default is None or "[i]" in key.name or key.name.split(".")[0] in ("eval_data", "lora", "frequencies"):
            continue
        value = config
        for part in key.name.split("."):
            value = getattr(value, part, None)
        if not dataclasses.is_dataclass(value) and value is not None:
            assert ast.literal_eval(key.default) == value, key
            seen += 1
    assert seen > 20


@dataclasses.dataclass(frozen=True)
class Inner:
    """Of the tests."""

    x: Annotated[int, Bound(1, high=8)]  # How many.


@dataclasses.dataclass(frozen=True)
class Outer:
    """Of the tests."""

    first: Inner  # One of them.
    # Further ones,
    # on two lines.
    more: tuple[Inner, ...] = ()
    plain: str = "a # b"

    unsaid: float | None = None


def test_what_stands_at_a_field_is_its_meaning():
    assert meanings(Outer) == {"first": "One of them.", "more": "Further ones, on two lines."}


def test_a_table_is_listed_once():
    found = {key.name: key for key in keys(Outer, "outer.")}
    assert list(found) == ["outer.first", "outer.first.x", "outer.more", "outer.plain", "outer.unsaid"]
    assert found["outer.first.x"].type == "int >= 1 and <= 8" and found["outer.first.x"].default is None
    assert found["outer.more"].meaning == "Further ones, on two lines. Its keys are those of outer.first."
    assert (found["outer.plain"].default, found["outer.unsaid"].type) == ('"a # b"', "float or None")


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (Literal["a", "b"], '"a" or "b"'),
        (Annotated[int, Bound(0, high=2**31 - 1)], "int >= 0"),
        (Annotated[float, Bound(0.0, above=True)] | None, "float > 0 or None"),
        (tuple[int | None, ...], "list of (int or None)"),
        (dict[str, Any], "table"),
        (bool, "bool"),
    ],
)
def test_types_in_words(hint, text):
    assert type_text(hint) == text


def test_a_part_of_the_keys(capsys):
    assert main(["keys", "optim.lr"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "  optim.lr: float > 0; default 2e-05"


def test_a_key_that_is_none(capsys):
    assert main(["keys", "optim.lrr"]) == 2
    assert "Did you mean 'optim.lr'?" in capsys.readouterr().err
