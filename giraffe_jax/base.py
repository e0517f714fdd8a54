"""The base of a run that trains a part of its source: what its checkpoints leave out, and where that is found again.

A run with adapters, or with frequencies alone, does not move the kernels of its source, so its checkpoints do not hold
them. They name the source and digests of its files instead, and reading such a checkpoint reads the source too.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util

from giraffe_jax import checkpoint, identity
from giraffe_jax.config import ConfigError
from giraffe_jax.sharding import paths

LARGE = ("kernel", "embedding")  # leaves that may be left out; all others are small, and kept whether they move or not


@dataclasses.dataclass(frozen=True)
class Base:
    """Where a run's frozen weights are; JSON, in each of its checkpoints.

    source: as `loading.load` reads it: an absolute path, of a run with its checkpoint, or a packaged model's name.
    base: of a source that is an adapter of PEFT, its own base where the config names one.
    given: the config's words for both, tried where the paths are not there: a project moves with its runs.
    contents: digests of the files of weights, by name.
    """

    source: str
    base: str | None
    given: tuple[str, str | None]
    contents: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"given": list(self.given), "contents": dict(self.contents)}


def of(source: str, base: str | None) -> Base:
    """Returns the base that a source is now; of a workdir, of which later steps may come, the checkpoint of now."""
    where, which = checkpoint.split_source(source)
    place = str(Path(where).absolute()) if Path(where).exists() else where
    if checkpoint.is_workdir(where):
        with checkpoint.manager(where) as checkpoints:
            place += f"@{checkpoint.find_step(checkpoints, which, lambda line: None)}"
    beside = str(Path(base).absolute()) if base is not None and Path(base).exists() else base
    return Base(place, beside, (source, base), _weights(place, beside))


def saved(about: Mapping[str, Any], run: str | Path, named: str | None = None) -> Base | None:
    """Returns the base that a checkpoint names, found and verified; None where the checkpoint holds all weights.

    Args:
      about: the checkpoint's JSON.
      run: its workdir, for errors.
      named: a source to read in place of the one that is named there.

    Raises:
      ConfigError: it is not there, or its weights are not those that the run was trained on.
    """
    if not about.get("base"):
        return None
    told = about["base"]
    options = [(told["source"], told["base"]), tuple(told["given"])] if named is None else [(named, told["base"])]
    said = []
    for source, base in dict.fromkeys(options):
        try:
            contents = _weights(source, base)
        except (ConfigError, FileNotFoundError) as error:
            said.append(f"{source}: {str(error).rstrip('.')}")
            continue
        changed = identity.changes(told["contents"], contents)
        if not changed:
            return Base(source, base, tuple(told["given"]), contents)
        said.append(f"{source} has other weights now ({', '.join(changed[:3])})")
    raise ConfigError(
        f"{run}: its checkpoints hold what the run trained, beside the weights of {told['source']}, and these are not "
        f"found: {'; '.join(said)}. Put them back, or name their place as base."
    )


def left_out(params: Any, trained: Any) -> frozenset[str]:
    """Returns the paths of the parameters that checkpoints leave to the base: large ones that training does not move.

    trained: True for each parameter that moves, in a tree like params.
    """
    moves = paths(trained)
    return frozenset(path for path in paths(params) if not moves[path] and path.split("/")[-1] in LARGE)


def without(params: Any, left: frozenset[str]) -> Any:
    """Returns the parameters but those at the paths `left`."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({path: x for path, x in flat.items() if path not in left}, sep="/")


def joined(params: Any, base: Any) -> Any:
    """Returns `params`, and of `base` what they lack."""
    flat = traverse_util.flatten_dict(base, sep="/") | traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def _weights(source: str, base: str | None) -> dict[str, str]:
    """Returns the digests of a source's weights alone: a tokenizer beside them may be another one."""
    contents = identity.of_source(source, base=base)
    found = {name: x for name, x in contents.items() if name.startswith(("weights", "adapter"))}
    return {"checkpoint" if name == f"weights {source}" else name: x for name, x in found.items()}
