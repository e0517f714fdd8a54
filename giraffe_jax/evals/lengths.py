"""The one place that compares what a task made with the length that its column says, and refuses what is shorter."""

from collections.abc import Sequence
from typing import Any

from giraffe_jax.config import ConfigError

SHARE = 0.02  # of the length, by which a prompt may be shorter
NAMED = ("documents", "files", "questions", "conversations")  # keys of tasks that name files


def tokens(example: Any) -> int:
    """Returns the tokens of an example: of prompt and answer, or of the text that is scored."""
    return len(example.prompt) + len(example.answer) if hasattr(example, "prompt") else len(example.tokens)


def short(example: Any, length: int) -> bool:
    """Returns whether an example is shorter than its column says by more than SHARE and its own `slack`."""
    return tokens(example) + getattr(example, "slack", 0) < (1 - SHARE) * length


def check(task: Any, length: int, examples: Sequence[Any]) -> None:
    """Raises ConfigError where an example is too short. Published cases are as they are: each has the shortest of a
    task's lengths that holds it."""
    if getattr(task, "files", ()):
        return
    found = [tokens(e) for e in examples if short(e, length)]
    if found:
        raise refusal(task, length, min(found))


def refusal(task: Any, length: int, got: int, file: str = "") -> ConfigError:
    """Returns the error of a task whose files, or the longest of them, give `got` tokens where `length` were asked."""
    named = [f"{key} ({', '.join(getattr(task, key))})" for key in NAMED if getattr(task, key, ())]
    places = file or " and ".join(f"{task.name}.{place}" for place in named) or "what it makes itself"
    return ConfigError(
        f"{task.label or task.name} at length {length:,}: expected {length:,} tokens, at most {SHARE:.0%} fewer; got "
        f"{got:,} from {places}. Give it more or longer text, or shorter lengths."
    )
