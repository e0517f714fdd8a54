"""Local files of long documents: which files a path names, the documents in them, and the digest of their bytes."""

import contextlib
import glob
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from giraffe_jax.config import ConfigError
from giraffe_jax.data import reading
from giraffe_jax.records.files import RACY_NS

FileKind = Literal["text", "jsonl", "parquet", "tfds"]
NAMES = {"text": (".txt", ".md"), "jsonl": (".jsonl",), "parquet": (".parquet",), "tfds": (".array_record",)}
TEXT_FIELD = "text"
READING = 2  # version of how text files are read: raised when the same bytes give other text, so old digests are unused
REMEMBERED = 1000  # digests kept in a folder, of 64 bytes each


class Document(NamedTuple):
    """One document: where it came from, its text, and the character ranges [start, stop) of answers in it."""

    id: str
    text: str
    answers: tuple[tuple[int, int], ...] | None = None


def source_files(kind: FileKind, path: str, where: str = "source") -> list[Path]:
    """Returns the files that `path` (a file, a directory, or a glob pattern) names, sorted by name.

    Of a directory: the files with the extension of the kind, in either case, also compressed (.gz, .zst), without
    hidden ones; `not_read` names the others. Raises FileNotFoundError if there is no file, ConfigError if a directory
    has none of the kind.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if root.is_dir():
        files = reading.files_in(root)
        fitting = [p for p in files if _fits(kind, p)]
        if not fitting:
            names = ", ".join(p.name for p in files[:3]) + (f" and {len(files) - 3} more" if files[3:] else "")
            kinds = " or ".join(NAMES[kind])
            raise ConfigError(f"{where}: the directory {path} has no {kinds} files; it has {names or 'none'}")
        return fitting
    files = sorted(Path(p) for p in glob.glob(str(root), recursive=True) if os.path.isfile(p))
    if not files:
        raise FileNotFoundError(f"{where}: nothing is at {path!r} (a file, a directory or a glob pattern)")
    return files


def _fits(kind: FileKind, path: Path) -> bool:
    # TFDS counts its files after the ending: name.array_record-00000-of-00001
    if kind == "tfds":
        return ".array_record-" in path.name
    return (reading.ending(path) if kind in ("text", "jsonl") else path.suffix.lower()) in NAMES[kind]


def not_read(kind: FileKind, path: str, where: str = "source") -> str:
    """Returns one line naming the files in directory `path` that the source does not read; "" if it reads all."""
    return "" if kind == "tfds" else reading.not_read(Path(path).expanduser(), set(source_files(kind, path, where)))


def read_file(kind: FileKind, file: Path, where: str = "source") -> Iterator[Document]:
    """The documents of one file, in order.

    text: the whole file is one document, decoded as data/reading.py says. jsonl: one per line, its field "text".
    parquet: one per row, column "text".
    Raises ConfigError, naming file and line, for anything else.
    """
    if kind == "jsonl":
        yield from _json_lines(file, where)
    elif kind == "parquet":
        yield from _parquet_texts(file, where)
    else:
        yield Document(file.name, reading.read_text(file, where))


def read_documents(kind: FileKind, path: str, where: str = "source") -> Iterator[Document]:
    """The documents of all files of `path` (text, jsonl or parquet) in a fixed order; see `read_file`."""
    for file in source_files(kind, path, where):
        yield from read_file(kind, file, where)


def file_states(files: Sequence[Path]) -> list[tuple[str, int, int, int, int]]:
    """Returns (absolute path, size, mtime and ctime in ns, inode) of each file: if unchanged, so are its bytes.

    Programs cannot set ctime, so it shows even a change that kept the size and restored the old mtime.
    """
    states = [(os.path.abspath(file), file.stat()) for file in files]
    return [(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for path, s in states]


def content_fingerprint(kind: FileKind, path: str, where: str = "source", memory: Path | None = None) -> str:
    """Returns the sha256 of the names and bytes of a source's files, in order. For text files that earlier versions
    read differently, it also covers the way of reading.

    memory: a folder that caches the digest: files are read again only when their size, times or inode change. Files
    that changed just before they were read are not cached: another write could leave the same times.
    """
    files = source_files(kind, path, where)
    return _known([kind, str(READING)], files, lambda: _digest(kind, files), memory)


def file_digest(file: Path, memory: Path | None = None) -> str:
    """sha256 of a file's bytes; `memory` as for `content_fingerprint`."""

    def read() -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    return _known(["bytes"], [file], read, memory)


def _known(key: list[str], files: Sequence[Path], read: Callable[[], str], memory: Path | None) -> str:
    """Returns read(), cached in the folder `memory` until the state of the files changes."""
    if memory is None:
        return read()
    states, began = file_states(files), time.time_ns()
    record = memory / hashlib.sha256(json.dumps([*key, states]).encode()).hexdigest()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{64}", known := record.read_text()):
            return known
    content = read()
    changed = max(max(mtime, ctime) for _, _, mtime, ctime, _ in states)
    if changed < began - RACY_NS and file_states(files) == states:
        with contextlib.suppress(OSError):  # a digest that cannot be cached is computed again next time
            _remember(record, content)
    return content


def _digest(kind: FileKind, files: Sequence[Path]) -> str:
    digest, reread = hashlib.sha256(kind.encode()), False
    for file in files:
        digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            first = True
            while block := stream.read(1 << 20):
                digest.update(block)
                reread = reread or b"\r" in block or (first and block.startswith(reading.BOM))
                first = False
    if reread and kind == "text":  # earlier versions kept both in the text: their tokens are different data
        digest.update(b"\0without \\r and byte-order marks")
    return digest.hexdigest()


def _remember(record: Path, content: str) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(f".{os.getpid()}")
    temporary.write_text(content)
    temporary.replace(record)
    for old in sorted(record.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)[:-REMEMBERED]:
        old.unlink(missing_ok=True)


def _json_lines(file: Path, where: str) -> Iterator[Document]:
    for number, row in json_rows(file, where):
        if TEXT_FIELD not in row:
            raise ConfigError(f"{where}: {file}:{number} has no field {TEXT_FIELD!r}; it has {sorted(row)}")
        text = row[TEXT_FIELD]
        if not isinstance(text, str):
            kind = reading.in_words(text)
            raise ConfigError(f"{where}: {TEXT_FIELD!r} is {kind} in line {number} of {file}; it takes a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as e:
            half = f"half of a surrogate pair at character {e.start}"
            raise ConfigError(f"{where}: {file}:{number} holds text that is not Unicode ({half})") from e
        yield Document(f"{file.name}:{number}", text)


def json_rows(file: Path, where: str, most: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) of every line that is not empty.

    most: bytes that the file may hold once decompressed.
    Raises ConfigError, naming file and line, for a line that is not a JSON object.
    """
    for number, (at, line) in enumerate(reading.lines(file, where, most), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except json.JSONDecodeError as e:
            raise ConfigError(f"{where}: {file}:{number} is not JSON ({e.msg} at column {e.colno})") from e
        except UnicodeDecodeError as e:
            raise ConfigError(f"{where}: {file}:{number} is not UTF-8 text ({e.reason} at byte {at + e.start})") from e
        except RecursionError as e:
            raise ConfigError(f"{where}: {file}:{number} is not JSON that can be read (nested too deeply)") from e
        except ValueError as e:  # an integer of thousands of digits
            raise ConfigError(f"{where}: {file}:{number} is not JSON that can be read ({e})") from e
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: {file}:{number}: expected an object, got {type(row).__name__}")
        yield number, row


def _parquet_texts(file: Path, where: str) -> Iterator[Document]:
    for number, row in parquet_rows(file, (TEXT_FIELD,), where):
        if not isinstance(text := row[TEXT_FIELD], str):
            kind = reading.in_words(text)
            raise ConfigError(f"{where}: {TEXT_FIELD!r} is {kind} in row {number + 1} of {file}; it takes a string")
        yield Document(f"{file.name}:{number}", text)


def parquet_rows(file: Path, columns: Sequence[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row number from 0, values) of every row, for those of the columns that the file has.

    Raises ConfigError, naming the file, if it is damaged or has none of the columns.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise ConfigError(f"{where}: reading {file} takes pyarrow, which is not installed: pip install pyarrow") from e
    with _naming(file, where, pyarrow.ArrowException), parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        present = [name for name in columns if name in names]
        if not present:
            raise ConfigError(f"{where}: {file} has no column {' or '.join(map(repr, columns))}; it has {names}")
        number = 0
        for batch in table.iter_batches(columns=present):
            for row in batch.to_pylist():
                yield number, row
                number += 1


@contextlib.contextmanager
def _naming(file: Path, where: str, kind: type[Exception]) -> Iterator[None]:
    """Turns a library's error, which does not name the file, into a ConfigError that does."""
    try:
        yield
    except kind as e:
        message = " ".join(str(e).split())[:200]
        raise ConfigError(f"{where}: {file} is not parquet, or damaged ({message})") from e
