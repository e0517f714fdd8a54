"""Sources of long documents: files -> texts -> one array of tokens, tokenised once and kept on disk.

The cache's name is made of everything its content depends on (the bytes of the files, the tokenizer, the version of
this code's format), so a stale one is never found; it is written aside and renamed, so no half-written one is either.
One process of a machine does the work while the others wait for it, and all read the same memory map.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.data.files import FileKind, content_fingerprint, file_states, not_read, read_file, source_files
from giraffe_jax.data.reading import is_packed
from giraffe_jax.records import Progress
from giraffe_jax.tokenizer import encode_batch

CACHE_FORMAT = 2
BATCH_CHARACTERS = 1 << 22  # tokenised at a time, by all cores
NAMED = 4  # documents, in a message
TOKENS, ENDS, FIRSTS = "tokens.int32", "ends.npy", "firsts.npy"


class Tokens(NamedTuple):
    """All documents of a source end to end: tokens int32 [N] and ends int64 [documents] (where each stops).

    files: their names; firsts int64 [files]: the first document of each. A file without documents shares its number
    with the next one.
    """

    tokens: np.ndarray
    ends: np.ndarray
    files: tuple[str, ...] = ()
    firsts: np.ndarray = np.zeros(0, np.int64)

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(np.diff(self.ends, prepend=0).max())

    def describe(self, documents: Sequence[int]) -> str:
        """`documents 3 (a.txt), 9 (2 of b.jsonl) and 7 more`: the first few, counted from 1 in the order read."""
        names = ", ".join(f"{document + 1}{self._file(document)}" for document in documents[:NAMED])
        more = f" and {len(documents) - NAMED} more" if len(documents) > NAMED else ""
        return f"{'document' if len(documents) == 1 else 'documents'} {names}{more}"

    def _file(self, document: int) -> str:
        if len(self.files) < 2:  # the source's own path says it
            return ""
        file = int(np.searchsorted(self.firsts, document, side="right")) - 1
        first, stop = [*self.firsts, len(self.ends)][file : file + 2]
        return f" ({f'{document - first + 1} of ' if stop - first > 1 else ''}{self.files[file]})"


def load_tokens(
    kind: FileKind, path: str, tokenizer: Any, cache_dir: str = "", where: str = "source"
) -> tuple[Tokens, str]:
    """The tokens of a source, a memory map, and the fingerprint of its content; made where the cache lacks them.

    Every document begins as texts of the model do (`tokenizer.prefix`) and is followed by the tokenizer's end token
    where it has one; documents without tokens are left out. cache_dir: "" is `token_cache()`, and where that cannot be
    written the tokens are made for this process alone, with a warning.

    Raises FileNotFoundError and ConfigError, naming `where` and the path, for a source that is not there, cannot be
    read, has no tokens or changes meanwhile; OSError where a cache_dir that was asked for cannot be written.
    """
    source_files(kind, path, where)  # a source that is not there is no fault of the cache
    if left := not_read(kind, path, where):
        warnings.warn(f"{where}: {left}", stacklevel=2)
    try:
        cache = Path(cache_dir).expanduser() if cache_dir else token_cache()
        return _cached(cache, kind, path, tokenizer, where)
    except OSError as e:
        if cache_dir:
            raise
        warnings.warn(
            f"The token cache cannot be used ({e}), so tokens are made anew at every start; name a folder that can be "
            "written with data.cache_dir or $GIRAFFE_CACHE.",
            stacklevel=2,
        )
    # The memory map outlives the name of its file: the kernel frees the space when this process ends.
    with tempfile.TemporaryDirectory(prefix="giraffe-tokens-", ignore_cleanup_errors=True) as folder:
        return _cached(Path(folder), kind, path, tokenizer, where)


def token_cache() -> Path:
    """`tokens` in $GIRAFFE_CACHE, else in $XDG_CACHE_HOME/giraffe-jax, else in ~/.cache/giraffe-jax.

    Raises OSError where there is no home.
    """
    try:
        root = os.environ.get("GIRAFFE_CACHE")
        home = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "giraffe-jax"
        return home.expanduser() / "tokens"
    except RuntimeError as e:
        raise OSError(str(e)) from e


def _cached(cache: Path, kind: FileKind, path: str, tokenizer: Any, where: str) -> tuple[Tokens, str]:
    decides = [CACHE_FORMAT, tokenizer.fingerprint, tokenizer.eos_id, *tokenizer.prefix]
    task = _sha256([kind, os.path.abspath(Path(path).expanduser()), *decides])
    with _lock(cache / "locks" / task[:3]) as alone:
        files = source_files(kind, path, where)
        # A TFDS example has no file of its own: TFDS shuffles, and its shards are no more than storage.
        names = (path,) if kind == "tfds" else _names(files)
        before = file_states(files)
        content = content_fingerprint(kind, path, where, memory=cache / "digests")
        directory = cache / _sha256([content, *decides])[:32]
        if (tokens := _read_cache(directory, names)) is not None:
            return tokens, content
        cache.mkdir(parents=True, exist_ok=True)
        mine = f".writing-{task[:32]}-{socket.gethostname()}-"
        for left in cache.glob(f"{mine}*") if alone else ():
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: it would hold the lock
        aside = cache / f"{mine}{os.getpid()}-{threading.get_ident()}"
        aside.mkdir()
        try:
            # How far it is cannot be said of packed files: their sizes are not those of what they hold.
            size = 0 if any(is_packed(file) for file in files) else sum(file.stat().st_size for file in files)
            _write_cache(_documents(kind, path, files, where), len(names), tokenizer, aside, f"{where}: {path}", size)
            if file_states(source_files(kind, path, where)) != before:
                raise ConfigError(f"{where}: files of {path} changed while they were read; start again")
            _put(aside, directory, names)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        if (tokens := _read_cache(directory, names)) is None:
            raise OSError(f"{directory}: the token cache just written cannot be read back")
        return tokens, content


def _sha256(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _names(files: Sequence[Path]) -> tuple[str, ...]:
    base = os.path.commonpath([file.parent.absolute() for file in files])
    return tuple(os.path.relpath(file.absolute(), base) for file in files)


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[bool]:
    """Waits until no other process of this machine is inside; the kernel lets go of a lock whose process dies.

    False where there can be no lock (a read-only cache, a file system without locks): what is there can still be read,
    and the worst that follows is the same work done twice.
    """
    with contextlib.ExitStack() as stack:
        alone = False
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(file.open("a"))
            fcntl.flock(stream, fcntl.LOCK_EX)
            alone = True
        yield alone


def _documents(kind: FileKind, path: str, files: Sequence[Path], where: str) -> Iterator[tuple[int, str]]:
    """(number of its file, text) of every document, in the order of the files."""
    if kind == "tfds":
        from giraffe_jax.data.builder import open_documents  # TFDS takes seconds to import; most runs need none

        yield from ((0, text) for _, text in open_documents(path, where))
        return
    for number, file in enumerate(files):
        yield from ((number, document.text) for document in read_file(kind, file, where))


def _batches(documents: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document[1]) + 1
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_cache(
    documents: Iterable[tuple[int, str]], num_files: int, tokenizer: Any, directory: Path, what: str, size: int
) -> None:
    """Holds no more in memory than a batch and a document, and 8 bytes for each document's end.

    `size` is that of the files in bytes, to say how far it is; 0 where that is not known.
    """
    progress, read = Progress(None, after=3.0), 0
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ends, firsts, total, empty = array("q"), array("q"), 0, True
    with (directory / TOKENS).open("wb") as stream:
        for batch in _batches(documents):
            read += sum(len(text) for _, text in batch)
            share = f": about {min(99, 100 * read // size)}% of its files" if size else ""
            progress.update(total, f"tokens of {what}{share}")
            for (file, _), ids in zip(batch, encode_batch(tokenizer, [text for _, text in batch]), strict=True):
                firsts.extend([len(ends)] * (file + 1 - len(firsts)))
                empty = empty and not ids
                if ids := [*(tokenizer.prefix if ids or eos else ()), *ids, *eos]:
                    stream.write(np.asarray(ids, np.int32).tobytes())
                    total += len(ids)
                    ends.append(total)
    progress.close()
    if empty:
        raise ConfigError(f"{what} has no tokens: all of its documents are empty, or there are none")
    firsts.extend([len(ends)] * (num_files - len(firsts)))
    np.save(directory / ENDS, np.asarray(ends, np.int64))
    np.save(directory / FIRSTS, np.asarray(firsts, np.int64))


def _read_cache(directory: Path, names: tuple[str, ...]) -> Tokens | None:
    """The cached arrays; None where there are none or they are damaged (they are then made again)."""
    try:
        tokens = np.memmap(directory / TOKENS, np.int32, mode="r")
        ends, firsts = np.load(directory / ENDS), np.load(directory / FIRSTS)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    sizes = ends.ndim == firsts.ndim == 1 and ends.size and firsts.size == len(names)
    whole = sizes and ends.dtype == firsts.dtype == np.int64 and ends[-1] == tokens.size
    return Tokens(tokens, ends, names, firsts) if whole else None


def _put(aside: Path, directory: Path, names: tuple[str, ...]) -> None:
    if directory.exists() and _read_cache(directory, names) is None:
        shutil.rmtree(directory)
    try:
        aside.rename(directory)
    except OSError:
        if _read_cache(directory, names) is None:  # otherwise another process was faster, with the same content
            raise
