"""Sources of long documents: files -> texts -> one array of tokens, tokenised once and kept on disk.

The cache's name is made of everything its content depends on (the bytes of the files, the tokenizer, the version of
this code's format), so a stale one is never found; it is written aside and renamed, so no half-written one is either.
"""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from giraffe_jax.config import ConfigError

FileKind = Literal["text", "jsonl", "parquet", "tfds"]
NAMES = {"text": (".txt", ".md"), "jsonl": (".jsonl",), "parquet": (".parquet",), "tfds": (".array_record",)}
TEXT_FIELD = "text"
CACHE_FORMAT = 1


class Document(NamedTuple):
    """One document: where it came from, and its text."""

    id: str
    text: str


class Tokens(NamedTuple):
    """All documents of a source end to end: tokens int32 [N] and ends int64 [documents] (where each stops)."""

    tokens: np.ndarray
    ends: np.ndarray


def source_files(kind: FileKind, path: str, where: str = "source") -> list[Path]:
    """The files that `path` (a file, a directory, or a glob pattern) stands for, in order of their names.

    Raises FileNotFoundError where there is none, ConfigError where a directory has none with the right ending.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if root.is_dir():
        found = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
        fitting = [p for p in found if _fits(kind, p)]
        if not fitting:
            has = [p.name for p in found[:3]]
            raise ConfigError(f"{where}: the directory {path} has no {' or '.join(NAMES[kind])} files; it has {has}")
        return fitting
    found = sorted(Path(p) for p in glob.glob(str(root), recursive=True) if os.path.isfile(p))
    if not found:
        raise FileNotFoundError(f"{where}: nothing is at {path!r} (a file, a directory or a glob pattern)")
    return found


def _fits(kind: FileKind, path: Path) -> bool:
    # TFDS counts its files after the ending: name.array_record-00000-of-00001
    return ".array_record-" in path.name if kind == "tfds" else path.suffix in NAMES[kind]


def read_documents(kind: FileKind, path: str, where: str = "source") -> Iterator[Document]:
    """The documents of `path` in a fixed order.

    text: one per file. jsonl: one per line, its field "text". parquet: one per row, column "text". tfds: one per
    example of the split "train" of a prepared `LongDocuments` (path: its directory; see giraffe_jax/data/builder.py).
    Raises ConfigError naming file and line where something else is found.
    """
    if kind == "tfds":
        from giraffe_jax.data.builder import open_documents

        yield from (Document(str(id_), text) for id_, text in open_documents(path))
        return
    for file in source_files(kind, path, where):
        if kind == "text":
            try:
                yield Document(file.name, file.read_bytes().decode("utf-8"))
            except UnicodeDecodeError as e:
                raise ConfigError(f"{where}: {file} is not UTF-8 text ({e.reason} at byte {e.start})") from e
        elif kind == "jsonl":
            yield from _json_lines(file, where)
        else:
            yield from _parquet_rows(file, where)


def content_fingerprint(kind: FileKind, path: str, where: str = "source") -> str:
    """sha256 over names and bytes of a source's files, in order."""
    digest = hashlib.sha256(kind.encode())
    for file in source_files(kind, path, where):
        digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def tokenise(documents: Iterable[Document], tokenizer: Any) -> Tokens:
    """Every document's tokens, each followed by the tokenizer's end-of-document token where it has one.

    Raises ValueError where there is no token at all.
    """
    parts, ends, total = [], [], 0
    for document in documents:
        ids = tokenizer.encode(document.text)
        if tokenizer.eos_id is not None:
            ids = [*ids, tokenizer.eos_id]
        if ids:
            parts.append(np.asarray(ids, np.int32))
            total += len(ids)
            ends.append(total)
    if not parts:
        raise ValueError("the documents have no tokens: all are empty, or there are none")
    return Tokens(np.concatenate(parts), np.asarray(ends, np.int64))


def load_tokens(
    kind: FileKind, path: str, tokenizer: Any, cache_dir: str = "", where: str = "source"
) -> tuple[Tokens, str]:
    """The tokens of a source and the fingerprint of its content; read from `cache_dir` where they are there already.

    With a cache directory the arrays are memory maps, so that several processes on a machine share them.
    """
    content = content_fingerprint(kind, path, where)
    if not cache_dir:
        return tokenise(read_documents(kind, path, where), tokenizer), content
    name = hashlib.sha256(f"{CACHE_FORMAT} {content} {tokenizer.fingerprint} {tokenizer.eos_id}".encode()).hexdigest()
    directory = Path(cache_dir).expanduser() / name[:32]
    if (tokens := _read_cache(directory)) is None:
        _write_cache(directory, tokenise(read_documents(kind, path, where), tokenizer))
        tokens = _read_cache(directory)
        if tokens is None:
            raise OSError(f"{directory}: the token cache just written cannot be read back")
    return tokens, content


def _json_lines(file: Path, where: str) -> Iterator[Document]:
    with file.open(encoding="utf-8", newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as e:
                raise ConfigError(f"{where}: {file}:{number} is not JSON ({e.msg} at column {e.colno})") from e
            if not isinstance(row, dict) or not isinstance(row.get(TEXT_FIELD), str):
                has = sorted(row) if isinstance(row, dict) else type(row).__name__
                raise ConfigError(f"{where}: {file}:{number} has no field {TEXT_FIELD!r} holding text; it has {has}")
            yield Document(f"{file.name}:{number}", row[TEXT_FIELD])


def _parquet_rows(file: Path, where: str) -> Iterator[Document]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise ConfigError(f"{where}: reading {file} takes pyarrow, which is not installed: pip install pyarrow") from e
    with parquet.ParquetFile(file) as table:
        if TEXT_FIELD not in table.schema_arrow.names:
            raise ConfigError(f"{where}: {file} has no column {TEXT_FIELD!r}; it has {table.schema_arrow.names}")
        number = 0
        for batch in table.iter_batches(columns=[TEXT_FIELD]):
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str):
                    raise ConfigError(f"{where}: {file} row {number}: column {TEXT_FIELD!r} holds {text!r}, not text")
                yield Document(f"{file.name}:{number}", text)
                number += 1


def _read_cache(directory: Path) -> Tokens | None:
    """The cached arrays; None where there are none or they are damaged (they are then made again)."""
    try:
        tokens = np.load(directory / "tokens.npy", mmap_mode="r")
        ends = np.load(directory / "ends.npy")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    whole = tokens.dtype == np.int32 and ends.dtype == np.int64 and ends.size and ends[-1] == tokens.size
    return Tokens(tokens, ends) if whole else None


def _write_cache(directory: Path, tokens: Tokens) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=directory.parent))
    try:
        np.save(aside / "tokens.npy", tokens.tokens)
        np.save(aside / "ends.npy", tokens.ends)
        if directory.exists() and _read_cache(directory) is None:
            shutil.rmtree(directory)
        try:
            aside.rename(directory)
        except OSError:
            if _read_cache(directory) is None:  # otherwise another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
