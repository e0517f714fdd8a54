"""What a result depends on, as {name: digest of its content}, and the differences between two such dicts.

Paths and dates do not identify a file's content, so all bytes are hashed. The digests of large files are kept in the
token cache (data/source.py) until path, size, times or inode change. Of a checkpoint, a Hugging Face directory or a
GGUF file the files that loading reads are hashed; of own position methods, the code (positions/code.py).
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_jax import checkpoint, positions
from giraffe_jax.checkpoint import TOKENIZER
from giraffe_jax.data.files import content_fingerprint, file_digest
from giraffe_jax.data.pipeline import FORMAT
from giraffe_jax.data.reading import BOM
from giraffe_jax.data.source import token_cache
from giraffe_jax.hf.load import find_base, locate
from giraffe_jax.hf.peft_config import BASE_CONFIG, CONFIG, WEIGHTS
from giraffe_jax.records import digest
from giraffe_jax.tokenizer.directory import TEMPLATE

Contents = dict[str, str]  # "document books/a.txt" -> 16 hex digits

TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json",
)  # fmt: skip
LARGE = 1 << 24  # bytes from which a file's digest is cached
ABSENT = "absent"  # in place of the digest of a file that does not exist


def of_file(path: Path) -> str:
    """Returns 16 hex digits of the sha256 of a file's bytes."""
    return file_digest(path, _memory() if path.stat().st_size >= LARGE else None)[:16]


def of_text(path: Path) -> str:
    """Returns 16 hex digits for a text file's content. A file with a byte-order mark has another digest than its bytes
    have: older versions read the mark as text, so their rows must not count as rows of the same text."""
    with path.open("rb") as stream:
        marked = stream.read(len(BOM)) == BOM
    return digest([of_file(path), "no byte-order mark"]) if marked else of_file(path)


def of_source(source: str, *, base: str | None = None, with_methods: bool = False) -> Contents:
    """Returns the digests of the weights, config and tokenizer that `loading.load` reads; of a workdir, those of the
    checkpoint and tokenizer.

    base: the base of an adapter that does not name its own.
    with_methods: also the code of own methods in the positions of a workdir's model.
    """
    where, which = checkpoint.split_source(source)
    if checkpoint.is_workdir(where):
        with checkpoint.manager(where) as checkpoints:
            step = checkpoint.find_step(checkpoints, which, lambda line: None)  # loading reports damaged ones
            scaling = checkpoint.read_about(checkpoints, step)["model"]["positions"] if with_methods else ()
        folder = Path(where) / checkpoint.FOLDER / str(step)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        contents = {f"weights {source}": digest([[str(p.relative_to(folder)), of_file(p)] for p in files])}
        if scaling:
            positions.check(scaling)
        return contents | of_tokenizer(Path(where) / TOKENIZER) | of_code(scaling)
    path, adapter = find_base(where, base)
    if path.is_file():
        return {f"weights {path.name}": of_file(path)}
    weights = sorted([*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")])
    contents = {f"weights {p.name}": of_file(p) for p in weights}
    contents |= {f"model {p.name}": of_file(p) for p in [path / "config.json"] if p.is_file()}
    if adapter is None:
        return contents | of_tokenizer(path)
    parts = [adapter.directory / name for name in (CONFIG, WEIGHTS, BASE_CONFIG)]
    contents |= {f"adapter {p.name}": of_file(p) for p in parts if p.is_file()}
    return contents | (of_tokenizer(adapter.directory) or of_tokenizer(path))


def of_tokenizer(path: Path) -> Contents:
    """Returns the digests of a tokenizer's files: those of a directory, or a file and the configs beside it."""
    folder, names = (path, TOKENIZERS) if path.is_dir() else (path.parent, (path.name, *TOKENIZERS[2:]))
    named = [folder / name for name in names]
    return {f"tokenizer {p.name}": of_file(p) for p in named if p.is_file()}


def of_code(scaling: Any) -> Contents:
    """Returns the digests of the code of the own methods in a list of position methods."""
    return {f"code {path}": positions.code_digest(text) for path, text in positions.sources(scaling).items()}


def of_training(config: Any, earlier: Mapping[str, str]) -> Contents:
    """Returns the digests of what a TrainConfig reads besides its source: own methods, data, a tokenizer.

    earlier: digests recorded before, used for data that no longer exists.
    """
    contents = of_code(config.model.get("positions", ()))
    stages = [source for stage in config.data.stages for source in stage.sources]
    for source in (*config.data.sources, *stages):
        if source.kind == "synthetic":
            continue
        name = f"training data {source.path}"
        try:
            contents[name] = content_fingerprint(source.kind, source.path, "data", memory=_memory())[:16]
        except FileNotFoundError:
            contents[name] = earlier.get(name, ABSENT)
    if config.tokenizer:
        contents |= {f"training's {name}": value for name, value in of_tokenizer(Path(config.tokenizer)).items()}
    if any(source.conversations for source in (*config.data.sources, *stages)):
        contents |= _of_template(config)
    return contents | {"format of training rows": str(FORMAT)}


def _of_template(config: Any) -> Contents:
    """Returns the digest of chat_template.jinja; a chat template elsewhere is in one of the TOKENIZERS files."""
    where, _ = checkpoint.split_source(config.source or "")
    named = [Path(config.tokenizer)] if config.tokenizer else [Path(where) / TOKENIZER, Path(where)]
    files = [(path if path.is_dir() else path.parent) / TEMPLATE for path in named]
    return {f"training's tokenizer {TEMPLATE}": of_file(file) for file in files if file.is_file()}


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Returns the names whose digests differ; names on one side only are marked "(new)" or "(no longer read)"."""
    changed = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            mark = " (new)" if name not in old else " (no longer read)" if name not in new else ""
            changed.append(name + mark)
    return changed


def _memory() -> Path | None:
    try:
        return token_cache() / "digests"
    except OSError:
        return None


def fingerprint_before(source: str) -> str:
    """Returns the fingerprint of a source as older versions computed it, to recognise their workdirs, whose manifests
    have no `contents`. Of large files it covers only size, start and end."""
    where, which = checkpoint.split_source(source)
    path = locate(where)
    if which:
        with checkpoint.manager(where) as checkpoints:
            path = path / checkpoint.FOLDER / str(checkpoint.find_step(checkpoints, which, lambda line: None))
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    hasher = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        hasher.update(f"{file.relative_to(path) if path.is_dir() else file.name} {size}\n".encode())
        with open(file, "rb") as stream:
            hasher.update(stream.read(1 << 24))
            if size > 1 << 25:
                stream.seek(-(1 << 24), os.SEEK_END)
            hasher.update(stream.read(1 << 24))
    return hasher.hexdigest()[:16]
