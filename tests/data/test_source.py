"""Reading documents, their fingerprints, and the token cache."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.data import DataConfig, SourceConfig, files, make_pipeline, source
from giraffe_jax.data.files import FileKind, content_fingerprint, read_documents
from giraffe_jax.data.source import load_tokens, token_cache
from giraffe_jax.tokenizer import ByteTokenizer, load_tokenizer

TEXTS = ["One long document.", "Zwei, drei: äöü 🦒\nend", "third\n\nwith lines"]
MINI = Path(source.__file__).parents[1] / "weights" / "giraffe-mini"


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
    tokens, _ = load_tokens("text", str(folder), ByteTokenizer())
    raw = b"".join(text.encode() for text in TEXTS)
    assert bytes(tokens.tokens[tokens.tokens < 256].astype(np.uint8)) == raw
    assert [int(tokens.tokens[end - 1]) for end in tokens.ends] == [ByteTokenizer.eos_id] * 3
    assert len(tokens.tokens) == len(raw) + 3 == tokens.ends[-1]


@pytest.mark.parametrize("characters", [1, 300, 1 << 22])
def test_batches_hold_the_tokens_of_each_document_by_itself(tmp_path, monkeypatch, characters):
    """Of any size, with documents longer and shorter than one, empty ones among them, by the library's threads."""
    monkeypatch.setattr(source, "BATCH_CHARACTERS", characters)
    rng = np.random.default_rng(0)
    words = ["giraffe", "äöü", "🦒", "\r\n", "12345", " ", "it's", "日本語"]
    texts = [" ".join(rng.choice(words, size=int(rng.integers(0, 200)))) for _ in range(40)]
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["", *texts, ""]))
    tokenizer = load_tokenizer(MINI)
    tokens, _ = load_tokens("jsonl", str(path), tokenizer)
    one_by_one = [[*tokenizer.encode(text), tokenizer.eos_id] for text in ["", *texts, ""]]
    assert [part.tolist() for part in np.split(tokens.tokens, tokens.ends[:-1])] == one_by_one


def test_no_batch_holds_more_than_its_characters_and_a_document(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "BATCH_CHARACTERS", 100)
    sizes = []

    class Together(ByteTokenizer):
        def encode_batch(self, texts):
            sizes.append(sum(map(len, texts)))
            return [self.encode(text) for text in texts]

    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * (i % 37 + 1)}) + "\n" for i in range(300)))
    load_tokens("jsonl", str(path), Together())
    assert len(sizes) > 10 and max(sizes) < 100 + 37
    assert sum(sizes) == sum(i % 37 + 1 for i in range(300))


def test_documents_without_tokens_are_left_out_and_files_keep_their_names(tmp_path):
    """Without an end token; the files' first documents are found again from the documents themselves."""

    class Endless(ByteTokenizer):
        eos_id = None

    held = {"a/x.jsonl": ["", "one", "two"], "a/y.jsonl": [], "b/x.jsonl": ["three"], "z.jsonl": [""]}
    for name, texts in held.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokens, _ = load_tokens("jsonl", str(tmp_path), Endless())
    documents = [bytes(part.astype(np.uint8)) for part in np.split(tokens.tokens, tokens.ends[:-1])]
    assert documents == [b"one", b"two", b"three"]
    assert tokens.files == tuple(held)
    assert tokens.describe([2, 1]) == "documents 3 (b/x.jsonl), 2 (2 of a/x.jsonl)"
    assert tokens.describe([0]) == "document 1 (1 of a/x.jsonl)"


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


@pytest.mark.parametrize("damage", ["truncate", "odd", "longer", "empty", "ends", "firsts", "remove"])
def test_a_damaged_cache_is_made_again(tmp_path, folder, damage):
    cache = tmp_path / "cache"
    good, _ = load_tokens("text", str(folder), ByteTokenizer(), str(cache))
    good = np.array(good.tokens)
    [file] = cache.glob("*/tokens.int32")
    if damage in ("truncate", "odd", "empty"):
        file.write_bytes(file.read_bytes()[: {"truncate": -8, "odd": -9, "empty": 0}[damage]])
    elif damage == "longer":
        file.write_bytes(file.read_bytes() + bytes(4))
    elif damage == "ends":
        np.save(file.with_name("ends.npy"), np.arange(5))
    elif damage == "firsts":
        file.with_name("firsts.npy").write_bytes(b"\x93NUMPY")
    else:
        file.unlink()
    again, _ = load_tokens("text", str(folder), ByteTokenizer(), str(cache))
    assert np.array_equal(good, again.tokens)
    assert not list(cache.glob(".writing-*"))


def entries(cache):
    return [path.name for path in cache.iterdir() if path.name not in ("locks", "digests")]


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
    assert entries(cache) == []


def test_the_default_cache(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("GIRAFFE_CACHE", str(tmp_path / "own"))
    for variable, expected in [
        ("GIRAFFE_CACHE", "own/tokens"),
        ("XDG_CACHE_HOME", "xdg/giraffe-jax/tokens"),
        ("HOME", "home/.cache/giraffe-jax/tokens"),
    ]:
        assert not (tmp_path / expected).exists()
        load_tokens("text", str(folder), ByteTokenizer())
        assert token_cache() == tmp_path / expected and len(entries(tmp_path / expected)) == 1
        monkeypatch.delenv(variable)


def test_without_a_place_to_keep_them_tokens_are_made_for_this_process(tmp_path, folder, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    good, fingerprint = load_tokens("text", str(folder), ByteTokenizer())
    with pytest.raises(OSError):
        load_tokens("text", str(folder), ByteTokenizer(), str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("GIRAFFE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"cannot be used .*data\.cache_dir or \$GIRAFFE_CACHE"):
        made, same = load_tokens("text", str(folder), ByteTokenizer())
    assert np.array_equal(good.tokens, made.tokens) and same == fingerprint and made.files == good.files
    assert list((tmp_path / "scratch").iterdir()) == []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        make_pipeline(DataConfig(16, 2, (SourceConfig("text", str(folder)),) * 2), ByteTokenizer())
    assert len(said) == 1


def test_a_cache_that_can_only_be_read_is_read(folder, giraffe_cache, monkeypatch):
    """Root may write anywhere, so that what a read-only disk does is played: nothing is opened or made."""
    Counting.calls = 0
    load_tokens("text", str(folder), Counting())

    def refuse(*args, **keys):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    load_tokens("text", str(folder), Counting())
    assert Counting.calls == 3


def test_a_digest_is_remembered_while_the_files_stay_as_they_are(tmp_path, folder, monkeypatch):
    memory, read, digest = tmp_path / "memory", [], files._digest
    monkeypatch.setattr(files, "_digest", lambda kind, found: read.append(1) or digest(kind, found))

    def content():
        return content_fingerprint("text", str(folder), memory=memory)

    monkeypatch.setattr(files, "RACY_NS", 10**15)  # everything is fresh
    first = content()
    assert content() == first and len(read) == 2 and not memory.exists()
    monkeypatch.setattr(files, "RACY_NS", -(10**15))  # nothing is
    assert content() == content() == first and len(read) == 3

    file, before = folder / "1.txt", (folder / "1.txt").stat()
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # until the file system's clock has ticked
        file.write_bytes(file.read_bytes().replace(b"Zwei", b"Vier").replace(b"Vier", b"Elf.", 1))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time, other bytes
    assert content() != first and len(read) == 4
    for damage in (b"", b"abc", b"\xff" * 64, b"g" * 64):
        now = content_fingerprint("text", str(folder))
        for record in memory.iterdir():
            record.write_bytes(damage)
        assert content() == now == content()

    monkeypatch.setattr(files, "REMEMBERED", 3)
    for i in range(6):
        (folder / f"more{i}.txt").write_text("x")
        content()
    assert len(list(memory.iterdir())) == 3


def test_the_digest_is_of_kind_names_sizes_and_bytes(tmp_path):
    """Spelled out, and as it was at first: runs are resumed by it."""
    (tmp_path / "a.txt").write_bytes(b"One long document.")
    (tmp_path / "b.txt").write_bytes("Zwei, drei: ä\n".encode())
    spelled = b"text\0a.txt\x0018\0One long document.\0b.txt\x0015\0" + "Zwei, drei: ä\n".encode()
    known = "9d48a1df940819b25e487f3aa4467148c4c8f88ef10c03d11a0adf00eafbf2fe"
    assert content_fingerprint("text", str(tmp_path)) == hashlib.sha256(spelled).hexdigest() == known
    pipeline = make_pipeline(DataConfig(16, 2, (SourceConfig("text", str(tmp_path)),)), ByteTokenizer())
    assert pipeline.fingerprint == "1b4703175fb307cc6316a27f4b6cdd2744ef926e8f0a55f95a5701618b5a0375"


@pytest.mark.parametrize("raw", [b"\xef\xbb\xbfwords", b"one\r\ntwo", b"one\rtwo", b"x" * (1 << 20) + b"\r"])
def test_a_file_that_is_read_otherwise_than_before_is_other_data(tmp_path, raw):
    """A run that read these bytes as they are does not go on with other tokens; JSON lines are read as before."""
    (tmp_path / "a.txt").write_bytes(raw)
    before = hashlib.sha256(b"text\0a.txt\0%d\0" % len(raw) + raw).hexdigest()
    assert content_fingerprint("text", str(tmp_path)) != before
    rows = b'{"text": "a\\r\\nb"}\r\n{"text":"c"}\n'
    (tmp_path / "j.jsonl").write_bytes(rows)
    spelled = hashlib.sha256(b"jsonl\0j.jsonl\0%d\0" % len(rows) + rows).hexdigest()
    assert content_fingerprint("jsonl", str(tmp_path / "j.jsonl")) == spelled


def test_one_works_while_the_others_wait(folder):
    working, found = [], []

    class Slow(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            working.append(threading.get_ident())
            time.sleep(0.05)
            return super().encode(text)

    threads = [
        threading.Thread(target=lambda: found.append(load_tokens("text", str(folder), Slow())[0])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(working) == 3 and len(set(working)) == 1
    assert len(found) == 4 and all(np.array_equal(tokens.tokens, found[0].tokens) for tokens in found)


def test_a_killed_process_holds_nobody_up_and_leaves_nothing(folder, giraffe_cache):
    code = (
        "import sys, time\n"
        "from giraffe_jax.data.source import load_tokens\n"
        "from giraffe_jax.tokenizer import ByteTokenizer\n"
        "class Stuck(ByteTokenizer):\n"
        "    def encode(self, text):\n"
        "        print('working', flush=True)\n"
        "        time.sleep(600)\n"
        "load_tokens('text', sys.argv[1], Stuck())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None and process.stdout.readline() == "working\n"
        assert len(list(giraffe_cache.glob("tokens/.writing-*"))) == 1
        process.kill()
    tokens, _ = load_tokens("text", str(folder), ByteTokenizer())
    assert len(tokens.ends) == 3
    assert len(entries(giraffe_cache / "tokens")) == 1 and not list(giraffe_cache.glob("tokens/.writing-*"))


def test_files_that_change_while_they_are_read_are_not_kept(folder, giraffe_cache):
    class Meddling(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            (folder / "2.txt").write_text("another text")
            return super().encode(text)

    with pytest.raises(ConfigError, match=rf"here: files of {folder} changed while they were read"):
        load_tokens("text", str(folder), Meddling(), where="here")
    assert entries(giraffe_cache / "tokens") == []


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


@pytest.mark.parametrize(("kind", "content"), [("text", ""), ("jsonl", "\n \n"), ("jsonl", '{"text": ""}\n')])
def test_an_empty_source_is_refused_by_name(tmp_path, giraffe_cache, kind, content):
    full, empty = tmp_path / "full.txt", tmp_path / f"empty.{kind}"
    full.write_text("words")
    empty.write_text(content)
    config = DataConfig(16, 2, (SourceConfig("text", str(full)), SourceConfig(kind, str(empty))))
    with pytest.raises(ConfigError, match=rf"data\.sources\[1\]: {empty} has no tokens"):
        make_pipeline(config, ByteTokenizer())
    assert len(entries(giraffe_cache / "tokens")) == 1
