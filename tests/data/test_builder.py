"""The TFDS builder: what goes in comes out, once, and without TensorFlow."""

import json
import subprocess
import sys

import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.data import DataConfig, SourceConfig, make_pipeline
from giraffe_jax.data.builder import open_documents, prepare
from giraffe_jax.data.files import content_fingerprint
from giraffe_jax.tokenizer import ByteTokenizer

TEXTS = [f"document {i} äöü 🦒 " + "word " * (50 * i) for i in range(5)]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def test_prepared_documents_are_the_documents(tmp_path, lines):
    path = prepare("jsonl", str(lines), str(tmp_path / "prepared"))
    assert dict(open_documents(path)) == {f"docs.jsonl:{i}": text for i, text in enumerate(TEXTS, 1)}
    assert dict(open_documents(str(tmp_path / "prepared"))) == dict(open_documents(path))


def test_prepared_once_and_anew_for_other_content(tmp_path, lines):
    path = prepare("jsonl", str(lines), str(tmp_path / "prepared"))
    records = {file: file.stat().st_mtime_ns for file in (tmp_path / "prepared").rglob("*.array_record*")}
    assert prepare("jsonl", str(lines), str(tmp_path / "prepared")) == path
    assert records and all(file.stat().st_mtime_ns == at for file, at in records.items())
    lines.write_text(json.dumps({"text": "another"}) + "\n")
    other = prepare("jsonl", str(lines), str(tmp_path / "prepared"))
    assert other != path and [text for _, text in open_documents(other)] == ["another"]
    assert len(dict(open_documents(path))) == 5
    with pytest.raises(ConfigError, match="holds 2 prepared collections"):
        list(open_documents(str(tmp_path / "prepared")))


def test_two_machines_prepare_the_same(tmp_path, lines):
    paths = [prepare("jsonl", str(lines), str(tmp_path / name)) for name in "ab"]
    assert content_fingerprint("tfds", paths[0]) == content_fingerprint("tfds", paths[1])


def test_a_pipeline_reads_it(tmp_path, lines):
    path = prepare("jsonl", str(lines), str(tmp_path / "prepared"))
    config = DataConfig(sources=(SourceConfig("tfds", path),), seq_len=64, batch_size=1)
    total = sum(len(text.encode()) + 1 for text in TEXTS)
    pipeline = make_pipeline(config, ByteTokenizer())
    rows = [pipeline.batch(step) for step in range(-(-total // 64))]
    held = np.sort(np.concatenate([row["tokens"][row["segments"] > 0] for row in rows]))
    raw = np.frombuffer("".join(TEXTS).encode(), np.uint8)
    assert np.array_equal(held, np.sort(np.concatenate([raw, [257] * 5])))


def test_a_failed_preparation_leaves_nothing_prepared(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"no": 1}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2"):
        prepare("jsonl", str(bad), str(tmp_path / "prepared"))
    with pytest.raises((ConfigError, FileNotFoundError)):
        list(open_documents(str(tmp_path / "prepared")))


def test_tensorflow_is_not_imported_and_nothing_heavy_before_use():
    code = (
        "import sys, giraffe_jax.data\n"
        "heavy = {'jax', 'grain', 'tensorflow_datasets', 'pyarrow', 'tensorflow'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "import giraffe_jax.data.builder\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
