"""The files that tasks name: documents, and published cases (prompts with answers), which are used unchanged.

Both are read as in data/reading.py, compressed ones (.gz, .zst) too. Cases are JSON lines or Parquet. Each case is used
at the shortest of a task's lengths that it fits into, so that none is cut and none is used twice.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_jax.config import ConfigError
from giraffe_jax.data import reading
from giraffe_jax.data.files import json_rows
from giraffe_jax.evals.scoring import NAMED, Example
from giraffe_jax.positions import code

KINDS = dict(zip(NAMED, ("document", "case file", "questions", "conversations"), strict=True))
TEXT_SUFFIXES = (".txt", ".md", ".py")
LARGEST = 2**30  # most bytes of a decompressed file


def present(task: Any) -> None:
    """Raises ConfigError if a file that a task names is missing; warns of files in its folders that are not read."""
    for key in NAMED:
        named = getattr(task, key, ())
        if named:
            paths = {path for _, path in documents(named, f"{task.name}.{key}")}
            for place in named if key == "documents" else ():
                if unread := reading.not_read(Path(place).expanduser(), paths):
                    warnings.warn(f"{task.name}.{key}: {unread}", stacklevel=2)


def contents(task: Any) -> dict[str, str]:
    """Returns what the task's results depend on besides its keys, as {"document a.txt": digest of its bytes, ...}: its
    files, the version of its code, and the evaluator model that chooses tokens, if it has one."""
    from giraffe_jax import identity

    digests = {f"version of the code of {task.name}": str(task.VERSION)}
    if "." in task.name:  # an own one, whose code may be edited without a new version
        digests |= {f"code {path}": code.digest(text) for path, text in code.texts(type(task).__module__).items()}
    for key, kind in KINDS.items():
        named = getattr(task, key, ())
        paths = [path for _, path in documents(named, f"{task.name}.{key}")] if named else []
        of = identity.of_text if key == "documents" else identity.of_file
        digests |= {f"{kind} {path}": of(path) for path in paths}
    evaluator = getattr(task, "evaluator", None)
    evaluator_digests = identity.of_source(evaluator, with_methods=True) if evaluator else {}
    return digests | {f"evaluator's {name}": value for name, value in evaluator_digests.items()}


def documents(places: tuple[str, ...], where: str) -> list[tuple[str, Path]]:
    """Returns (name, path) of the files that `places` name, in that order; text files of a directory are sorted.

    Raises:
      ConfigError: a place does not exist, or is a directory without text files; names `where`.
    """
    files: list[tuple[str, Path]] = []
    for place in places:
        path = Path(place).expanduser()
        if not path.exists():
            raise ConfigError(f"{where}: no such file or directory: {place}.")
        text_files = [p for p in reading.files_in(path) if reading.ending(p) in TEXT_SUFFIXES]
        if path.is_dir() and not text_files:
            raise ConfigError(f"{where}: no {', '.join(TEXT_SUFFIXES)} file in {place}.")
        files.extend([(str(p.relative_to(path)), p) for p in text_files] if path.is_dir() else [(path.name, path)])
    if not files:
        raise ConfigError(f"{where}: the list is empty; name text files or directories of them.")
    return files


def text(path: Path, where: str) -> str:
    """Returns the text of a file; ConfigError if it is not UTF-8 or cannot be decompressed."""
    return reading.read_text(path, where)


def read(paths: Sequence[str], kinds: Mapping[str, type | tuple[type, ...]], where: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of files, in order, after checking that each has fields of these types.

    ConfigError, naming file and row, if a file is missing or unreadable, or a field is missing or of another type.
    """
    for name in paths:
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"{where}: no such file: {name}.")
        parquet = path.suffix.lower() == ".parquet"
        for number, row in _parquet(path, where) if parquet else json_rows(path, where, LARGEST):
            wrong = [field for field, kind in kinds.items() if not isinstance(row.get(field), kind)]
            if wrong:
                is_ = f"{reading.in_words(row[wrong[0]])}, of another kind" if wrong[0] in row else "missing"
                raise ConfigError(
                    f"{where}: field {wrong[0]!r} is {is_} in {'row' if parquet else 'line'} {number} of {path}; the"
                    f" case has {sorted(row)}, expected are {sorted(kinds)}."
                )
            yield row


def asked(
    rows: Iterator[dict[str, Any]],
    make: Callable[[dict[str, Any]], Example],
    task: Any,
    length: int,
    where: str,
) -> list[Example]:
    """Returns the first `task.n` cases for which `length` is the shortest of `task.lengths` that they fit into.

    ConfigError if there is none, saying how long the cases are.
    """
    shorter = max((n for n in task.lengths if n < length), default=0)
    examples: list[Example] = []
    sizes: list[int] = []
    for row in rows:
        example = make(row)
        sizes.append(len(example.prompt) + len(example.answer))
        if shorter < sizes[-1] <= length:
            examples.append(example)
        if len(examples) == task.n:
            break
    if not examples:
        spans = f"they take {min(sizes):,} to {max(sizes):,}" if sizes else "there are none"
        raise ConfigError(
            f"{where}: no case takes {shorter + 1:,} to {length:,} tokens; {spans}. Each is used at the shortest of"
            f" lengths={task.lengths} that it fits into."
        )
    return examples


def _parquet(path: Path, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise ConfigError(f"{where}: reading {path} takes pyarrow, which is not installed: pip install pyarrow") from e
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as e:
        raise ConfigError(f"{where}: {path} is not Parquet that can be read, after row {number} ({e}).") from e
