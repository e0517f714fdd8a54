"""A TensorFlow Datasets builder for local long documents, without TensorFlow: txt, jsonl or parquet -> array_record.

A prepared collection has one format whatever it was made from, random access, and TFDS's own metadata
(`dataset_info.json`, features, checksums). It is read back through `tfds.data_source`.

    path = prepare("text", "books/*.txt", data_dir="prepared")       # then: sources=(SourceConfig("tfds", path), )
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from giraffe_jax.config import ConfigError
from giraffe_jax.data.files import FileKind, content_fingerprint, not_read, read_documents

INFO = "dataset_info.json"
FORMAT = "array_record"


class LongDocuments(tfds.core.GeneratorBasedBuilder):
    """Documents of local files, one example each: `text` and `id` (file name, with line or row if it holds several).

    The builder config's name is a hash of the files' content: changed files are prepared into a new directory, and the
    old one is left as it is.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, kind: FileKind, path: str, data_dir: str):
        self._kind: FileKind = kind
        self._path = path
        config = tfds.core.BuilderConfig(name=f"{kind}-{content_fingerprint(kind, path, 'prepare')[:16]}")
        super().__init__(config=config, data_dir=data_dir, file_format=FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, description=f"Local documents ({self._kind}).")

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, document in enumerate(read_documents(self._kind, self._path, "prepare")):
            yield number, {"id": document.id, "text": document.text}


def prepare(kind: FileKind, path: str, data_dir: str) -> str:
    """Returns the directory of the prepared documents of `path`, preparing them if that has not been done.

    After a crash no half-written directory is used: TFDS writes to a temporary one and renames it. Raises ConfigError
    for kind "tfds", which is prepared already, and what `read_documents` raises.
    """
    if kind == "tfds":
        raise ConfigError("prepare: kind 'tfds' is prepared already; allowed are 'text', 'jsonl', 'parquet'")
    if unread := not_read(kind, path, "prepare"):
        warnings.warn(f"prepare: {unread}", stacklevel=2)
    builder = LongDocuments(kind=kind, path=path, data_dir=str(Path(data_dir).expanduser().absolute()))
    builder.download_and_prepare(file_format=FORMAT)
    return str(builder.data_path)


def open_documents(path: str, where: str = "tfds source") -> Iterator[tuple[str, str]]:
    """(id, text) of every prepared document, in TFDS's order, which is fixed once prepared.

    path: what `prepare` returned, or a data directory with one prepared collection in it.
    Raises FileNotFoundError if `path` does not exist, ConfigError unless it holds exactly one collection.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"{where}: nothing is at {path!r}")
    collections = sorted(info.parent for info in root.rglob(INFO) if not info.parent.name.startswith("incomplete"))
    if len(collections) != 1:
        names = [str(directory.relative_to(root)) for directory in collections]
        raise ConfigError(f"{where}: {path} holds {len(collections)} prepared collections, one is needed: {names}")
    builder: Any = tfds.builder_from_directory(collections[0])
    for example in builder.as_data_source(split="train"):
        yield _text(example["id"]), _text(example["text"])


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value
