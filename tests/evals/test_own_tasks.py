"""Tasks of one's own: found by their dotted path, refused with the reason, measured again when they are edited."""

import importlib
import sys

import pytest

from giraffe_jax import evals
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import cases
from giraffe_jax.evals.run import evaluate

TASK = """
import dataclasses
from typing import ClassVar

from giraffe_jax.evals import metrics

METRICS = (metrics.TEACHER,)


@dataclasses.dataclass(frozen=True)
class Coin:
    VERSION: ClassVar[int] = 1
    lengths: tuple[int, ...]
    n: int = 4
    name: str = "own_coin.Coin"
    label: str | None = None


def rows(task, lm, length, encoding, *, tokens_per_batch):
    for i in range(task.n):
        yield {"example": i, "metrics": {"teacher": i % 2}}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(text, name="own_coin"):
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("own_coin", None)


def test_it_is_built_and_asked_like_any_other(write):
    write(TASK)
    task = evals.build(dict(name="own_coin.Coin", lengths=[8], n=6))
    assert (task.n, task.lengths, evals.label(task)) == (6, (8,), "own_coin.Coin")
    found = list(evaluate(None, [task], lambda length: None, variant="v"))
    assert [row["metrics"]["teacher"] for row in found] == [0, 1] * 3
    assert {(row["variant"], row["task"], row["length"]) for row in found} == {("v", "own_coin.Coin", 8)}


def test_its_keys_are_checked(write):
    write(TASK)
    with pytest.raises(ConfigError, match=r"tasks\[0\] \(own_coin.Coin\): unknown \['m'\]"):
        evals.build(dict(name="own_coin.Coin", lengths=[8], m=6))
    with pytest.raises(ConfigError, match="expected token counts of 2 or more"):
        evals.build(dict(name="own_coin.Coin", lengths=[1]))


def test_what_it_depends_on_changes_with_its_code_and_not_with_its_comments(write):
    digests = []
    for text in (TASK, TASK + "# a comment\n", TASK.replace("i % 2", "(i + 1) % 2")):
        write(text)
        digests.append(cases.contents(evals.build(dict(name="own_coin.Coin", lengths=[8]))))
    assert digests[0] == digests[1] != digests[2]
    assert [key for key in digests[0] if key.startswith("code ")] == ["code own_coin.py"]


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (("", ""), "own_coin.Cion", "no dataclass 'Cion'; its classes are Coin. Did you mean 'Coin'?"),
        (("", ""), "own_cion.Coin", "no module 'own_cion' beside the config"),
        (
            ("import dataclasses", "import dataclasses, no_such_thing"),
            "own_coin.Coin",
            "named 'no_such_thing'",
        ),
        (
            ("METRICS = (metrics.TEACHER,)", "METRICS = 1 / 0"),
            "own_coin.Coin",
            "own_coin.py:7: ZeroDivisionError",
        ),
        (("METRICS = (metrics.TEACHER,)", ""), "own_coin.Coin", "METRICS must be a tuple"),
        (("    VERSION: ClassVar[int] = 1\n", ""), "own_coin.Coin", "has no VERSION"),
        (("    label: str | None = None\n", ""), "own_coin.Coin", "has no field 'label'"),
        (("def rows", "def sows"), "own_coin.Coin", "has no function rows"),
    ],
)
def test_what_is_no_task_is_refused(write, change, name, message):
    write(TASK.replace(*change) if change[0] else TASK)
    with pytest.raises(ConfigError) as error:
        evals.build(dict(name=name, lengths=[8]), "config.tasks[2]")
    assert message in str(error.value) and str(error.value).startswith("config.tasks[2].name: ")
