"""Text files as training and evaluation read them: one rule for encoding, line ends, byte-order marks, compression.

Files must be UTF-8; the error for another encoding names file and byte. A byte-order mark at the start is dropped, and
`\\r\\n` and a lone `\\r` become `\\n`. `.gz` and `.zst` are decompressed while they are read. Extensions match in
either case: `a.TXT`, `b.JSONL.GZ`. The rule is for files: text in a field of JSON lines or Parquet is left as it is.
"""

import contextlib
import gzip
import io
import sys
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from giraffe_jax.config import ConfigError

BOM = b"\xef\xbb\xbf"
PACKED = (".gz", ".zst")
LARGEST = 2**30  # most bytes of one decompressed document or line: a tiny file can decompress to terabytes
NAMED = 3  # files, in a message


def ending(path: Path) -> str:
    """`.txt` for `a.txt`, `a.TXT` and `a.txt.gz`."""
    return (Path(path.stem) if is_packed(path) else path).suffix.lower()


def is_packed(path: Path) -> bool:
    """Returns whether the extension is that of a compressed file, .gz or .zst."""
    return path.suffix.lower() in PACKED


def read_text(path: Path, where: str) -> str:
    """The text of a file.

    Raises ConfigError, naming `where` and the file, if it is not UTF-8 (with the byte), or cannot be decompressed.
    """
    with opened(path, where) as stream:
        if not is_packed(path):
            return decoded(stream.read(), str(path), where)
        raw = stream.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ConfigError(f"{where}: {path} holds more than {LARGEST:,} bytes; split it, or unpack it.")
    return decoded(raw, str(path), where)


def decoded(raw: bytes, name: str, where: str) -> str:
    """Returns the text of a file's bytes. Raises ConfigError, with the file's `name`, if they are not UTF-8."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        utf16 = "; it begins as UTF-16 does" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ConfigError(f"{where}: {name} is not UTF-8 text ({e.reason} at byte {e.start}{utf16})") from e
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def lines(path: Path, where: str, most: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yields (byte offset in the decompressed file, bytes) of every line, with one line in memory at a time.

    most: bytes that the whole file may hold once decompressed. Raises ConfigError if it holds more.
    """
    line_limit = LARGEST if is_packed(path) else sys.maxsize - 1
    with opened(path, where) as stream:
        at = 0
        while True:
            limit = line_limit if most is None else most - at
            block = stream.readline(limit + 1)
            if len(block) > limit:
                excess = "a line of more" if most is None else "more"
                raise ConfigError(f"{where}: {path} holds {excess} than {most or limit:,} bytes; split it.")
            if not block:
                return
            if at == 0 and block.startswith(BOM):
                block, at = block[len(BOM) :], len(BOM)
            for line in block.splitlines(keepends=True):  # of bytes: at \n, \r\n and \r alone
                yield at, line
                at += len(line)


@contextlib.contextmanager
def opened(path: Path, where: str) -> Iterator[Any]:
    """Opens a file as a stream of bytes, decompressed if its extension is .gz or .zst."""
    with path.open("rb") as stream:
        if not is_packed(path):
            yield stream
            return
        try:
            with _unpacked(stream, path, where) as unpacked:
                yield unpacked
        except (EOFError, zlib.error, OSError) as e:
            raise ConfigError(f"{where}: {path} cannot be unpacked ({e}).") from e


def _unpacked(stream: Any, path: Path, where: str) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.open(stream)
    try:
        import pyarrow
    except ImportError as e:
        raise ConfigError(f"{where}: reading {path} takes pyarrow, which is not installed: pip install pyarrow") from e
    packed: Any = pyarrow.input_stream(stream, compression="zstd")
    return io.BufferedReader(packed)


def files_in(root: Path) -> list[Path]:
    """Returns the files in a directory, sorted by name, without hidden ones and those in hidden directories, such as
    the copies that notebooks keep in .ipynb_checkpoints."""
    shown = (p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts))
    return sorted(p for p in shown if p.is_file())


def not_read(root: Path, read: Collection[Path]) -> str:
    """`books: 2 of its 5 files are not read: c.json, d.pdf`; "" if all are read, or `root` is not a directory.

    Hidden files are not counted.
    """
    if not root.is_dir():
        return ""
    files = files_in(root)
    unread = [str(p.relative_to(root)) for p in files if p not in read]
    if not unread:
        return ""
    more = f" and {len(unread) - NAMED} more" if len(unread) > NAMED else ""
    are = "is" if len(unread) == 1 else "are"
    return f"{root}: {len(unread)} of its {len(files)} files {are} not read: {', '.join(unread[:NAMED])}{more}"


def in_words(value: Any) -> str:
    """What a field of a row holds, for an error: `null`, `a number (3)`, `a list`..."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"a number ({value!r})"
    kinds = {str: "a string", list: "a list", dict: "an object", bytes: "bytes"}
    return next((word for kind, word in kinds.items() if isinstance(value, kind)), type(value).__name__)
