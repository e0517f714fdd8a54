"""One reader of text files: the same characters for training and evaluation, however a file is spelled and packed."""

import argparse
import gzip
import json
import sys

import numpy as np
import pytest

from giraffe_jax import evals, identity
from giraffe_jax.cli import generate
from giraffe_jax.config import ConfigError
from giraffe_jax.data import reading
from giraffe_jax.data.files import read_documents
from giraffe_jax.data.source import load_tokens
from giraffe_jax.evals import cases
from giraffe_jax.tokenizer import ByteTokenizer

BOM = b"\xef\xbb\xbf"
WANT = "Once upon a time,\n\nun été:\nälles 🦒\x0b\u2028 end\n"  # \v and U+2028 are no line ends of files
BYTES = WANT.encode()


def zstd(raw: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


SPELLED = {
    "lf.txt": lambda: BYTES,
    "crlf.txt": lambda: BYTES.replace(b"\n", b"\r\n"),
    "cr.TXT": lambda: BYTES.replace(b"\n", b"\r"),
    "mixed.md": lambda: BYTES.replace(b"\n", b"\r\n", 2),
    "bom.txt": lambda: BOM + BYTES,
    "both.txt.gz": lambda: gzip.compress(BOM + BYTES.replace(b"\n", b"\r\n")),
    "members.TXT.GZ": lambda: gzip.compress(BYTES[:9]) + gzip.compress(BYTES[9:]),
    "frames.txt.zst": lambda: zstd(BYTES[:9]) + zstd(BYTES[9:]),
}


@pytest.mark.parametrize("name", SPELLED)
def test_training_evaluation_and_prompts_read_the_same_text(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(SPELLED[name]())
    assert [document.text for document in read_documents("text", str(path))] == [WANT]
    assert [document.text for document in read_documents("text", str(tmp_path))] == [WANT]
    tokens, _ = load_tokens("text", str(path), ByteTokenizer())
    assert bytes(tokens.tokens[:-1].astype(np.uint8)) == BYTES
    assert [cases.text(found, "here") for _, found in cases.documents((str(tmp_path),), "here")] == [WANT]
    task = evals.build(dict(name="perplexity", lengths=[16], documents=[str(path)], protocol="truncated"))
    [window] = evals.module("perplexity").examples(task, ByteTokenizer(), 16)
    assert bytes(window.tokens.astype(np.uint8)) == BYTES[:16]
    assert generate.read_prompt(argparse.Namespace(prompt=None, prompt_file=str(path))) == WANT


ROWS = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in ("one", "two\r\n", "three"))


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.jsonl", lambda: ROWS),
        ("a.JSONL", lambda: BOM + ROWS.replace(b"\n", b"\r\n")),
        ("a.jsonl", lambda: ROWS.replace(b"\n", b"\r")),
        ("a.JSONL.GZ", lambda: gzip.compress(BOM + ROWS)),
        ("a.jsonl.zst", lambda: zstd(ROWS)),
    ],
)
def test_json_lines_likewise_and_their_fields_to_the_letter(tmp_path, name, raw):
    path = tmp_path / name
    path.write_bytes(raw())
    texts = ["one", "two\r\n", "three"]
    found = list(read_documents("jsonl", str(tmp_path)))
    assert [document.text for document in found] == texts
    assert [document.id for document in found] == [f"{name}:{i}" for i in (1, 2, 3)]
    assert [row["text"] for row in cases.read([str(path)], {"text": str}, "here")] == texts


@pytest.mark.parametrize(("start", "hint"), [(b"", ""), (BOM, ""), (b"\xff\xfe", "; it begins as UTF-16 does")])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_not_utf8_is_refused_by_file_and_byte(tmp_path, start, hint, packed):
    raw = start + b"a\r\nb\xffc"
    at = raw.index(b"\xff")
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(raw) if packed else raw)
    said = rf"here: .*{path.name} is not UTF-8 text \(invalid start byte at byte {at}{hint}\)"
    for read in (lambda: list(read_documents("text", str(path), "here")), lambda: cases.text(path, "here")):
        with pytest.raises(ConfigError, match=said):
            read()
    rows = start + b'{"text": "a"}\r\n{"text": "b\xff"}\n'
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(rows)
    if not hint:
        with pytest.raises(ConfigError, match=rf"a\.jsonl:2 is not UTF-8 text .* at byte {rows.index(bytes([255]))}\)"):
            list(read_documents("jsonl", str(lines)))


def test_haystacks_are_refused_too(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One. Two. \xff")
    for task in (dict(name="needle", lengths=[64], documents=[str(tmp_path)]),
                 dict(name="copying", kind="text", lengths=[64], passage=8, documents=[str(tmp_path)])):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"{task['name']}\.documents: .*a\.txt is not UTF-8 .* at byte 10"):
            evals.module(task["name"]).examples(evals.build(task), ByteTokenizer(), 64)


def test_packed_files_that_are_damaged_or_too_large(tmp_path, monkeypatch):
    whole = {".gz": gzip.compress(bytes(range(128)) * 99), ".zst": zstd(bytes(range(128)) * 99)}
    for suffix, raw in whole.items():
        path = tmp_path / f"cut.txt{suffix}"
        for damage in (raw[:-4], b"plain text", raw[:9] + b"\xff\xff" + raw[11:]):
            path.write_bytes(damage)
            with pytest.raises(ConfigError, match=rf"here: .*cut\.txt{suffix} cannot be unpacked \(.+\)"):
                reading.read_text(path, "here")
    monkeypatch.setattr(reading, "LARGEST", 100)
    for suffix in whole:
        bomb = gzip.compress(b"x" * 10**6) if suffix == ".gz" else zstd(b"x" * 10**6)
        for name, kind in (("bomb.txt", "text"), ("bomb.jsonl", "jsonl")):
            (path := tmp_path / (name + suffix)).write_bytes(bomb)
            with pytest.raises(ConfigError, match=rf"{name}{suffix} holds .*more than 100 bytes"):
                list(read_documents(kind, str(path)))  # type: ignore[arg-type]
    rows = tmp_path / "many.jsonl.gz"
    rows.write_bytes(gzip.compress(b'{"text": "x"}\n' * 50))  # the limit is of a line: a file may hold any number
    assert len(list(read_documents("jsonl", str(rows)))) == 50


def test_without_a_library_zst_is_refused_by_name(tmp_path, monkeypatch):
    (path := tmp_path / "a.txt.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"here: reading .*a\.txt\.zst takes pyarrow.*pip install pyarrow"):
        reading.read_text(path, "here")


def test_what_a_folder_holds_and_is_not_read_is_said(tmp_path):
    folder = tmp_path / "books"
    (folder / "in").mkdir(parents=True)
    row = b'{"text": "words"}\n'
    for name, raw in {"a.jsonl": row, "b.jsonl.gz": gzip.compress(row), "c.json": b"[]", ".hidden": b""}.items():
        (folder / name).write_bytes(raw)
    with pytest.warns(UserWarning) as said:
        tokens, _ = load_tokens("jsonl", str(folder), ByteTokenizer(), where="data.sources[0]")
    assert [str(w.message) for w in said] == [f"data.sources[0]: {folder}: 1 of its 3 files is not read: c.json"]
    assert len(tokens.ends) == 2
    for name in ("d.pdf", "in/e.pdf", "f.txt"):
        (folder / name).write_bytes(b"words")
    task = evals.build(dict(name="perplexity", lengths=[4], documents=[str(folder)]))
    with pytest.warns(UserWarning, match=r"5 of its 6 files are not read: a\.jsonl, b\.jsonl\.gz, c\.json and 2 more"):
        cases.present(task)
    assert reading.not_read(folder / "f.txt", []) == "" == reading.not_read(folder / "in", [folder / "in" / "e.pdf"])


def test_copies_in_hidden_folders_are_no_documents(tmp_path):
    for place in ("a.txt", ".ipynb_checkpoints/a-checkpoint.txt", "in/.cache/deep/b.txt", "in/c.txt", "in/.d.txt"):
        (tmp_path / ".home" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".home" / place).write_text(place)
    folder = str(tmp_path / ".home")  # a folder that is named itself is read, hidden or not
    tokens, _ = load_tokens("text", folder, ByteTokenizer())
    assert tokens.files == ("a.txt", "in/c.txt")
    assert [name for name, _ in cases.documents((folder,), "task.documents")] == ["a.txt", "in/c.txt"]


@pytest.mark.parametrize(
    ("value", "words"),
    [("null", "null"), ("3", r"a number \(3\)"), ("true", "true"), ("[1]", "a list"), ('{"a": 1}', "an object")],
)
def test_an_error_names_what_a_field_holds(tmp_path, value, words):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n{"text": ' + value + "}\n")
    with pytest.raises(ConfigError, match=rf"here: 'text' is {words} in line 3 of {path}; it takes a string"):
        list(read_documents("jsonl", str(path), "here"))
    with pytest.raises(ConfigError, match=rf"field 'text' is {words}, of another kind in line 3 of {path}"):
        list(cases.read([str(path)], {"text": str}, "here"))


def test_so_does_one_of_a_parquet_column(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "A.PARQUET")
    with pytest.raises(ConfigError, match=r"'text' is null in row 2 of .*A\.PARQUET; it takes a string"):
        list(read_documents("parquet", str(tmp_path)))


def test_rows_of_a_document_with_a_mark_are_of_another_text(tmp_path):
    """Its mark was read as text before; what has none keeps its rows."""
    (plain := tmp_path / "a.txt").write_bytes(BYTES)
    (marked := tmp_path / "b.txt").write_bytes(BOM + BYTES)
    assert identity.of_text(plain) == identity.of_file(plain)
    assert identity.of_text(marked) not in (identity.of_file(marked), identity.of_text(plain))
