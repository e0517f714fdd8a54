"""The base of a run that trains only a part of its source: the frozen weights that its checkpoints leave out.

A run with adapters, or with frequencies alone, does not change the kernels of its source, so its checkpoints do not
hold them. They hold the source's path and digests of its files; loading such a checkpoint loads the source too.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util

from giraffe_jax import checkpoint, identity
from giraffe_jax.config import ConfigError
from giraffe_jax.sharding import paths

LARGE = ("kernel", "embedding")  # leaves that may be left out; all others are small, and saved even if frozen


@dataclasses.dataclass(frozen=True)
class Base:
    """Where a run's frozen weights are; saved as JSON in each of its checkpoints.

    source: an argument of `loading.load`: an absolute path (with @STEP for a workdir), or a packaged model's name.
    base: config.base, the base of a source that is a PEFT adapter, as an absolute path; or None.
    given: (source, base) as in the config, tried if the absolute paths do not exist: a project may be moved with its
      runs.
    contents: digests of the files of weights, by name.
    """

    source: str
    base: str | None
    given: tuple[str, str | None]
    contents: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON data, the value that `saved` reads."""
        return dataclasses.asdict(self) | {"given": list(self.given), "contents": dict(self.contents)}


def of(source: str, base: str | None) -> Base:
    """Returns the base for a source as it is now; a workdir is fixed to its current checkpoint."""
    where, which = checkpoint.split_source(source)
    place = str(Path(where).absolute()) if Path(where).exists() else where
    if checkpoint.is_workdir(where):
        with checkpoint.manager(where) as checkpoints:
            place += f"@{checkpoint.find_step(checkpoints, which, lambda line: None)}"
    base_path = str(Path(base).absolute()) if base is not None and Path(base).exists() else base
    return Base(place, base_path, (source, base), _weights(place, base_path))


def saved(metadata: Mapping[str, Any], run: str | Path, named: str | None = None) -> Base | None:
    """Returns the base that a checkpoint names, found and verified; None if the checkpoint holds all weights.

    Args:
      metadata: the checkpoint's JSON.
      run: its workdir, for errors.
      named: a source to use instead of the one that the checkpoint names.

    Raises:
      ConfigError: it does not exist, or its weights are not those that the run was trained on.
    """
    if not metadata.get("base"):
        return None
    entry = metadata["base"]
    options = [(entry["source"], entry["base"]), tuple(entry["given"])] if named is None else [(named, entry["base"])]
    reasons = []
    for source, base in dict.fromkeys(options):
        try:
            contents = _weights(source, base)
        except (ConfigError, FileNotFoundError) as error:
            reasons.append(f"{source}: {str(error).rstrip('.')}")
            continue
        changed = identity.changes(entry["contents"], contents)
        if not changed:
            return Base(source, base, tuple(entry["given"]), contents)
        reasons.append(f"{source} has other weights now ({', '.join(changed[:3])})")
    raise ConfigError(
        f"{run}: its checkpoints hold only what the run trained; it needs the weights of {entry['source']}, which are "
        f"not found: {'; '.join(reasons)}. Put them back, or give their new place as base."
    )


def left_out(params: Any, trained: Any) -> frozenset[str]:
    """Returns the paths of the parameters that checkpoints leave out: large ones that are frozen.

    trained: a tree like params, True for each parameter that is trained.
    """
    moves = paths(trained)
    return frozenset(path for path in paths(params) if not moves[path] and path.split("/")[-1] in LARGE)


def without(params: Any, omitted: frozenset[str]) -> Any:
    """Returns the parameters without those at the paths `omitted`."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({path: x for path, x in flat.items() if path not in omitted}, sep="/")


def joined(params: Any, base: Any) -> Any:
    """Returns `params`, completed by the parameters of `base` that they lack."""
    flat = traverse_util.flatten_dict(base, sep="/") | traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def _weights(source: str, base: str | None) -> dict[str, str]:
    """Returns the digests of a source's weights only: its tokenizer may have changed."""
    contents = identity.of_source(source, base=base)
    digests = {name: x for name, x in contents.items() if name.startswith(("weights", "adapter"))}
    return {"checkpoint" if name == f"weights {source}" else name: x for name, x in digests.items()}
