"""Sources of long documents: files -> texts -> one array of tokens, tokenised once and kept on disk.

A cache entry is named by a hash of everything it depends on (the bytes of the files, the tokenizer, the version of the
format), so a stale entry is never used. It is written to a temporary folder and renamed, so a half-written one is not
used either. One process per machine tokenises while the others wait, and all memory-map the same files.
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
from giraffe_jax.data import conversations
from giraffe_jax.data.files import (
    Document,
    FileKind,
    content_fingerprint,
    file_states,
    not_read,
    read_file,
    source_files,
)  # fmt: skip
from giraffe_jax.data.reading import is_packed
from giraffe_jax.records import Progress
from giraffe_jax.tokenizer import encode_batch
from giraffe_jax.tokenizer.chat import ChatTemplate, answer_tokens, template_of

CACHE_FORMAT = 2
CHAT_FORMAT = 1  # of conversations alone
BATCH_CHARACTERS = 1 << 22  # tokenised at a time, by all cores
NAMED = 4  # documents, in a message
TOKENS, ENDS, FIRSTS, ANSWERS = "tokens.int32", "ends.npy", "firsts.npy", "answers.bool"


class Tokens(NamedTuple):
    """All documents of a source, concatenated: tokens int32 [N] and ends int64 [documents] (where each stops).

    files: their names; firsts int64 [files]: the index of the first document of each. A file without documents has the
    same index as the next one.
    answers: bool [N], for conversations: a mask of the tokens that the loss is on. None: on all.
    """

    tokens: np.ndarray
    ends: np.ndarray
    files: tuple[str, ...] = ()
    firsts: np.ndarray = np.zeros(0, np.int64)
    answers: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each document, int64."""
        return np.diff(self.ends, prepend=0)

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(self.sizes.max())

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
    kind: FileKind,
    path: str,
    tokenizer: Any,
    cache_dir: str = "",
    where: str = "source",
    *,
    conversations: bool = False,
) -> tuple[Tokens, str]:
    """Returns the memory-mapped tokens of a source and the fingerprint of its content; tokenises it if not yet cached.

    Each document is `tokenizer.prefix`, its tokens, and the tokenizer's end token if it has one; documents without
    tokens are left out. With `conversations` a document is exactly what the tokenizer's chat template writes.
    cache_dir: "" is `token_cache()`; if that cannot be written, the tokens are made for this process only, with a
    warning.

    Raises FileNotFoundError and ConfigError, naming `where` and the path, for a source that does not exist, cannot be
    read, has no tokens or changes while it is read; OSError if the given cache_dir cannot be written.
    """
    source_files(kind, path, where)  # here, since below FileNotFoundError would be taken for an error of the cache
    template = template_of(tokenizer, where) if conversations else None
    if unread := not_read(kind, path, where):
        warnings.warn(f"{where}: {unread}", stacklevel=2)
    try:
        cache = Path(cache_dir).expanduser() if cache_dir else token_cache()
        return _cached(cache, kind, path, tokenizer, where, template)
    except OSError as e:
        if cache_dir:
            raise
        warnings.warn(
            f"The token cache cannot be used ({e}), so every start tokenises again; name a writable folder with "
            "data.cache_dir or $GIRAFFE_CACHE.",
            stacklevel=2,
        )
    # The memory map stays valid after its file is deleted: the kernel frees the space when this process ends.
    with tempfile.TemporaryDirectory(prefix="giraffe-tokens-", ignore_cleanup_errors=True) as folder:
        return _cached(Path(folder), kind, path, tokenizer, where, template)


def token_cache() -> Path:
    """`tokens` in $GIRAFFE_CACHE, else in $XDG_CACHE_HOME/giraffe-jax, else in ~/.cache/giraffe-jax.

    Raises OSError if there is no home directory.
    """
    try:
        root = os.environ.get("GIRAFFE_CACHE")
        home = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "giraffe-jax"
        return home.expanduser() / "tokens"
    except RuntimeError as e:
        raise OSError(str(e)) from e


def _cached(
    cache: Path, kind: FileKind, path: str, tokenizer: Any, where: str, template: ChatTemplate | None
) -> tuple[Tokens, str]:
    decides = [CACHE_FORMAT, tokenizer.fingerprint, tokenizer.eos_id, *tokenizer.prefix]
    if template is not None:
        decides += ["conversations", CHAT_FORMAT, template.fingerprint]
    task = _sha256([kind, os.path.abspath(Path(path).expanduser()), *decides])
    with _lock(cache / "locks" / task[:3]) as alone:
        files = source_files(kind, path, where)
        # TFDS shuffles examples into shards: its files say nothing about where a document came from.
        names = (path,) if kind == "tfds" else _names(files)
        before = file_states(files)
        content = content_fingerprint(kind, path, where, memory=cache / "digests")
        directory = cache / _sha256([content, *decides])[:32]
        if (tokens := _read_cache(directory, names, template is not None)) is not None:
            return tokens, content
        cache.mkdir(parents=True, exist_ok=True)
        prefix = f".writing-{task[:32]}-{socket.gethostname()}-"
        for leftover in cache.glob(f"{prefix}*") if alone else ():
            shutil.rmtree(leftover, ignore_errors=True)  # left by a killed process: a living one would hold the lock
        temporary = cache / f"{prefix}{os.getpid()}-{threading.get_ident()}"
        temporary.mkdir()
        try:
            # No progress in percent for compressed files: their size is not that of their text.
            size = 0 if any(is_packed(file) for file in files) else sum(file.stat().st_size for file in files)
            documents = _documents(kind, path, files, where, template)
            _write_cache(documents, len(names), tokenizer, temporary, f"{where}: {path}", size)
            if file_states(source_files(kind, path, where)) != before:
                raise ConfigError(f"{where}: files of {path} changed while they were read; start again")
            _put(temporary, directory, names, template is not None)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if (tokens := _read_cache(directory, names, template is not None)) is None:
            raise OSError(f"{directory}: the token cache just written cannot be read back")
        return tokens, content


def _sha256(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _names(files: Sequence[Path]) -> tuple[str, ...]:
    base = os.path.commonpath([file.parent.absolute() for file in files])
    return tuple(os.path.relpath(file.absolute(), base) for file in files)


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[bool]:
    """Waits for an exclusive lock among the processes of this machine; the kernel releases it if the holder dies.

    Yields False if no lock can be taken (a read-only cache, a file system without locks): cached tokens can still be
    read, and at worst the same work is done twice.
    """
    with contextlib.ExitStack() as stack:
        alone = False
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(file.open("a"))
            fcntl.flock(stream, fcntl.LOCK_EX)
            alone = True
        yield alone


def _documents(
    kind: FileKind, path: str, files: Sequence[Path], where: str, template: ChatTemplate | None
) -> Iterator[tuple[int, Document]]:
    """(number of its file, document) of every document, in the order of the files."""
    if kind == "tfds":
        from giraffe_jax.data.builder import open_documents  # TFDS takes seconds to import; most runs need none

        yield from ((0, Document(*document)) for document in open_documents(path, where))
        return
    for number, file in enumerate(files):
        documents = read_file(kind, file, where)
        if template is not None:
            documents = conversations.read_file(kind, file, template, where)
        yield from ((number, document) for document in documents)


def _batches(documents: Iterable[tuple[int, Document]]) -> Iterator[list[tuple[int, Document]]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document[1].text) + 1
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(tokenizer: Any, batch: Sequence[Document]) -> list[tuple[list[int], list[bool]]]:
    """Returns (token ids, answer mask) of each document. Ids include begin and end tokens, and are [] if there is no
    token at all; the mask is [] unless the documents are conversations."""
    texts = [document.text for document in batch]
    if any(document.answers is not None for document in batch):
        pairs = zip(tokenizer.encode_offsets(texts), batch, strict=True)
        return [(ids, answer_tokens(offsets, document.answers or ())) for (ids, offsets), document in pairs]
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    encoded = encode_batch(tokenizer, texts)
    return [([*(tokenizer.prefix if ids or eos else ()), *ids, *eos], []) for ids in encoded]


def _write_cache(
    documents: Iterable[tuple[int, Document]], num_files: int, tokenizer: Any, directory: Path, label: str, size: int
) -> None:
    """Writes the documents' tokens, with one batch of documents in memory, and 8 bytes for each document's end.

    size: bytes of all files, for progress in percent; 0 if not known.
    """
    progress, read = Progress(None, after=3.0), 0
    ends, firsts, total, empty = array("q"), array("q"), 0, True
    added = len(tokenizer.prefix) + (tokenizer.eos_id is not None)  # to each text
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context((directory / TOKENS).open("wb"))
        answers: Any = None
        for batch in _batches(documents):
            read += sum(len(document.text) for _, document in batch)
            share = f": about {min(99, 100 * read // size)}% of its files" if size else ""
            progress.update(total, f"tokens of {label}{share}")
            encoded = _encoded(tokenizer, [document for _, document in batch])
            for (file, document), (ids, marked) in zip(batch, encoded, strict=True):
                firsts.extend([len(ends)] * (file + 1 - len(firsts)))
                empty = empty and len(ids) <= (added if document.answers is None else 0)
                if ids:
                    stream.write(np.asarray(ids, np.int32).tobytes())
                    if document.answers is not None:
                        answers = answers or stack.enter_context((directory / ANSWERS).open("wb"))
                        answers.write(np.asarray(marked, bool).tobytes())
                    total += len(ids)
                    ends.append(total)
    progress.close()
    if empty:
        raise ConfigError(f"{label} has no tokens: all of its documents are empty, or there are none")
    firsts.extend([len(ends)] * (num_files - len(firsts)))
    np.save(directory / ENDS, np.asarray(ends, np.int64))
    np.save(directory / FIRSTS, np.asarray(firsts, np.int64))


def _read_cache(directory: Path, names: tuple[str, ...], chat: bool) -> Tokens | None:
    """Returns the cached arrays; None if there are none or they are damaged (they are then made again)."""
    try:
        tokens = np.memmap(directory / TOKENS, np.int32, mode="r")
        answers = np.memmap(directory / ANSWERS, bool, mode="r") if chat else None
        ends, firsts = np.load(directory / ENDS), np.load(directory / FIRSTS)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    sizes = ends.ndim == firsts.ndim == 1 and ends.size and firsts.size == len(names)
    whole = sizes and ends.dtype == firsts.dtype == np.int64 and ends[-1] == tokens.size
    whole = whole and (answers is None or answers.size == tokens.size)
    return Tokens(tokens, ends, names, firsts, answers) if whole else None


def _put(temporary: Path, directory: Path, names: tuple[str, ...], chat: bool) -> None:
    if directory.exists() and _read_cache(directory, names, chat) is None:
        shutil.rmtree(directory)
    try:
        temporary.rename(directory)
    except OSError:
        if _read_cache(directory, names, chat) is None:  # otherwise another process was faster, with the same content
            raise
