"""Reading documents, their fingerprints, and the token cache."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.data import source
from giraffe_jax.data.source import FileKind, content_fingerprint, load_tokens, read_documents, tokenise
from giraffe_jax.tokenizer import ByteTokenizer

TEXTS = ["One long document.", "Zwei, drei: äöü 🦒\r\nend", "third\n\nwith lines"]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "docs"
    root.mkdir()
    for i, text in enumerate(TEXTS):
        (root / f"{i}.txt").write_bytes(text.encode())
    return root


def test_the_same_documents_in_three_formats(tmp_path, folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    lines = tmp_path / "docs.jsonl"
    lines.write_text("\n".join(json.dumps({"text": t, "other": 1}) for t in TEXTS) + "\n\n", encoding="utf-8")
    table = tmp_path / "docs.parquet"
    parquet.write_table(pyarrow.table({"text": TEXTS, "n": [1, 2, 3]}), table)
    cases: list[tuple[FileKind, Path]] = [
        ("text", folder), ("text", folder / "*.txt"), ("jsonl", lines), ("parquet", table)
    ]  # fmt: skip
    for kind, path in cases:
        read = list(read_documents(kind, str(path)))
        assert [document.text for document in read] == TEXTS, kind
        assert len({document.id for document in read}) == 3


def test_tokens_end_with_eos_and_nothing_else_is_added(folder):
    tokens = tokenise(read_documents("text", str(folder)), ByteTokenizer())
    raw = b"".join(text.encode() for text in TEXTS)
    assert bytes(tokens.tokens[tokens.tokens < 256].astype(np.uint8)) == raw
    assert [int(tokens.tokens[end - 1]) for end in tokens.ends] == [ByteTokenizer.eos_id] * 3
    assert len(tokens.tokens) == len(raw) + 3 == tokens.ends[-1]


class Counting(ByteTokenizer):
    """A byte tokenizer that counts its work."""

    calls = 0

    def encode(self, text: str) -> list[int]:
        Counting.calls += 1
        return super().encode(text)


def test_cache_is_used_once_made_and_never_when_stale(tmp_path, folder):
    cache = str(tmp_path / "cache")
    Counting.calls = 0
    first, print_a = load_tokens("text", str(folder), Counting(), cache)
    again, print_b = load_tokens("text", str(folder), Counting(), cache)
    assert Counting.calls == 3 and print_a == print_b
    assert np.array_equal(first.tokens, again.tokens) and isinstance(again.tokens, np.memmap)

    before = (folder / "1.txt").stat()
    (folder / "1.txt").write_bytes((folder / "1.txt").read_bytes().replace(b"Zwei", b"Vier"))
    os.utime(folder / "1.txt", ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time, other text
    changed, print_c = load_tokens("text", str(folder), Counting(), cache)
    assert Counting.calls == 6 and print_c != print_a and not np.array_equal(changed.tokens, first.tokens)

    class Other(Counting):
        @property
        def fingerprint(self) -> str:
            return "another vocabulary"

    load_tokens("text", str(folder), Other(), cache)
    assert Counting.calls == 9


@pytest.mark.parametrize("damage", ["truncate", "shorten", "remove"])
def test_a_damaged_cache_is_made_again(tmp_path, folder, damage):
    cache = tmp_path / "cache"
    good, _ = load_tokens("text", str(folder), ByteTokenizer(), str(cache))
    good = np.array(good.tokens)
    [file] = cache.glob("*/tokens.npy")
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "shorten":  # a valid array, but not the one that `ends` speaks of
        np.save(file, np.arange(5, dtype=np.int32))
    else:
        file.unlink()
    again, _ = load_tokens("text", str(folder), ByteTokenizer(), str(cache))
    assert np.array_equal(good, again.tokens)
    assert not list(cache.glob(".writing-*"))


def test_a_crash_while_writing_leaves_nothing_that_is_read(tmp_path, folder, monkeypatch):
    cache = tmp_path / "cache"
    save, calls = np.save, []

    def failing(path, array):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("No space left on device")
        save(path, array)

    monkeypatch.setattr(source.np, "save", failing)
    with pytest.raises(OSError, match="No space left"):
        load_tokens("text", str(folder), ByteTokenizer(), str(cache))
    assert list(cache.iterdir()) == []


def test_fingerprint_depends_on_names_and_bytes_not_on_where(tmp_path, folder):
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    moved = content_fingerprint("text", str(elsewhere))
    (elsewhere / "0.txt").rename(elsewhere / "00.txt")
    assert content_fingerprint("text", str(elsewhere)) != moved


def test_errors_name_the_file_and_the_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is at"):
        list(read_documents("text", str(tmp_path / "none*.txt")))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": "wrong"}\n')
    with pytest.raises(ConfigError, match=r"bad\.jsonl:2 has no field 'text'.*\['txt'\]"):
        list(read_documents("jsonl", str(bad)))
    bad.write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(ConfigError, match=r"bad\.jsonl:2 is not JSON"):
        list(read_documents("jsonl", str(bad)))
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.txt is not UTF-8"):
        list(read_documents("text", str(tmp_path / "latin.txt")))
    with pytest.raises(ConfigError, match=r"has no \.parquet files"):
        list(read_documents("parquet", str(tmp_path)))
    with pytest.raises(ValueError, match="no tokens"):
        tokenise([], ByteTokenizer())
