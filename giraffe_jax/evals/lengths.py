"""Checks that a task's examples are as long as the length they are reported under; rejects shorter ones."""

from collections.abc import Sequence
from typing import Any

from giraffe_jax.config import ConfigError

SHARE = 0.02  # fraction of the length by which an example may be shorter
NAMED = ("documents", "files", "questions", "conversations")  # keys of tasks that name files


def tokens(example: Any) -> int:
    """Returns the number of tokens of an example: prompt and answer, or the scored text."""
    return len(example.prompt) + len(example.answer) if hasattr(example, "prompt") else len(example.tokens)


def short(example: Any, length: int) -> bool:
    """Returns whether an example is shorter than `length` by more than SHARE of it plus the example's `slack`."""
    return tokens(example) + getattr(example, "slack", 0) < (1 - SHARE) * length


def check(task: Any, length: int, examples: Sequence[Any]) -> None:
    """Raises ConfigError if an example is too short. Published cases are exempt: they are used unchanged, each at the
    shortest of the task's lengths that it fits into."""
    if getattr(task, "files", ()):
        return
    too_short = [tokens(e) for e in examples if short(e, length)]
    if too_short:
        raise refusal(task, length, min(too_short))


def refusal(task: Any, length: int, got: int, file: str = "") -> ConfigError:
    """Returns the error of a task whose files (or `file`, the longest of them) give only `got` of `length` tokens."""
    named = [f"{key} ({', '.join(getattr(task, key))})" for key in NAMED if getattr(task, key, ())]
    places = file or " and ".join(f"{task.name}.{place}" for place in named) or "what it makes itself"
    return ConfigError(
        f"{task.label or task.name} at length {length:,}: expected {length:,} tokens, at most {SHARE:.0%} fewer; got "
        f"{got:,} from {places}. Give it more or longer text, or shorter lengths."
    )
