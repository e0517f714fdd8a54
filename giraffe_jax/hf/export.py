"""To a Hugging Face directory that transformers and vLLM load: exact, or refused with the reason.

Both rope schemas are written: a transformers 4 that finds only `rope_parameters` silently runs with base 10000 and no
scaling. Everything is written beside the target and renamed into place.
"""

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError, to_dict
from giraffe_jax.hf import names
from giraffe_jax.hf.rounding import check_fits
from giraffe_jax.model import ModelConfig, learned_by
from giraffe_jax.positions import check, instead_of, largest_factor, longrope_entry, one_table
from giraffe_jax.sharding import paths
from giraffe_jax.tokenizer import Tokenizer
from giraffe_jax.tokenizer.directory import GENERATION

_NATIVE = ("linear", "dynamic", "yarn", "llama3", "longrope")
_SHARD_BYTES = 5_000_000_000


def save(
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    directory: str | Path,
    *,
    dtype: str = "bfloat16",
    max_len: int | None = None,
    gain_in_weights: bool = False,
    shard_bytes: int = _SHARD_BYTES,
) -> Path:
    """Returns the directory written: config.json, generation_config.json, safetensors and the tokenizer's files.

    Args:
      params: the parameter tree of the config's model.
      directory: must not exist, or be empty; it appears complete or not at all.
      dtype: "bfloat16", "float16" or "float32"; numbers are rounded to it.
      max_len: max_position_embeddings to write; by default what the scaling reaches.
      gain_in_weights: multiplies the query map by the square of the positions' gain and writes an attention_factor of
        1, for readers that do not honour it; the map is then rounded once more.
      shard_bytes: weights beyond this go into several files with an index.

    Raises:
      ConfigError: positions that Hugging Face's Llama cannot compute, parameters that do not fit the config, a weight
        that the dtype cannot hold, or a directory that already holds something.
    """
    check_new(directory)
    if dtype not in ("bfloat16", "float16", "float32"):
        raise ConfigError(f"dtype must be bfloat16, float16 or float32, got {dtype!r}.")
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds {config.vocab_size}.")
    values = config_to_json(config, tokenizer, dtype=dtype, max_len=max_len, gain_in_weights=gain_in_weights)
    flat = checked(params, config)
    if gain_in_weights:
        flat = fold_gain(flat, _gain(config))
    check_fits(flat, config, dtype, lambda row: row.hf)
    with new_directory(directory) as part:
        ids = {k: values[k] for k in ("bos_token_id", "eos_token_id") if k in values}
        files = {} if tokenizer is None else tokenizer.files()
        settings = json.loads(files.pop(GENERATION, b'{"_from_model_config": true}'))
        write_json(part / "config.json", values)
        write_json(part / GENERATION, {**settings, **ids})
        for name, content in files.items():
            (part / name).write_bytes(content)
        _write_tensors(part, flat, config, dtype, shard_bytes)
    return Path(directory)


def check_new(directory: str | Path) -> None:
    """Raises ConfigError where `new_directory` would: what is there already, and where nothing can be written."""
    path = Path(os.path.realpath(directory))
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{directory}: exists already; nothing is overwritten. Give a new directory.")
    above = next(p for p in path.parents if os.path.lexists(p))
    if not above.is_dir():
        raise ConfigError(f"{directory}: {above} is a file, so no directory can be made in it.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{directory}: {above} cannot be written in.")


def check_new_file(path: str | Path) -> None:
    """Raises ConfigError where no new file can be made, or something is there already."""
    path = Path(path)
    if os.path.lexists(path):
        raise ConfigError(f"{path}: exists already; nothing is overwritten. Give a new file.")
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: {folder} {'cannot be written in' if folder.is_dir() else 'is no directory'}.")


@contextlib.contextmanager
def new_directory(directory: str | Path) -> Iterator[Path]:
    """Yields a new folder to fill, which becomes `directory` at the end, whole; after an error nothing is left.

    It lies beside `directory` under a name that no other process has; what a killed one left there is not touched.

    Raises:
      ConfigError: something is there, before or by the end, or nothing can be written there.
    """
    check_new(directory)
    path = Path(os.path.realpath(directory))
    made = [p for p in path.parents if not p.exists()]  # innermost first
    name = f".{path.name}.writing-{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in (path.with_name(name + f"-{i}" * (i > 0)) for i in itertools.count()):
            with contextlib.suppress(FileExistsError):
                part.mkdir()
                break
    except OSError as e:
        raise ConfigError(f"{directory}: {e.filename} cannot be made: {e.strerror}.") from e
    try:
        yield part
        try:
            part.rename(path)  # onto nothing or an empty directory: a full one is refused by the system
        except OSError as e:
            raise ConfigError(
                f"{directory}: was made meanwhile by another; nothing is overwritten ({e.strerror})."
            ) from e
    except BaseException:
        _remove(part)
        with contextlib.suppress(OSError):  # not empty: others are writing there too
            for parent in made:
                parent.rmdir()
        raise


def _remove(folder: Path) -> None:
    """Removes a folder into which threads may still be writing what is left of a failed save, for some seconds."""
    gone = 0
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        gone = 0 if folder.exists() else gone + 1
        if gone == 2:
            return
        time.sleep(0.1)


def config_to_json(
    config: ModelConfig,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str = "bfloat16",
    max_len: int | None = None,
    gain_in_weights: bool = False,
) -> dict[str, Any]:
    """Returns the config.json of a model, readable by transformers 4 and 5; see `save`."""
    if config.qk_norm:
        raise ConfigError("model.qk_norm: Hugging Face's Llama does not normalise queries and keys; not exported.")
    rope, reach = _rope(config)
    if gain_in_weights and rope["rope_type"] in ("yarn", "longrope"):
        rope |= {
            k: 1.0 for k in ("attention_factor", "short_mscale", "long_mscale") if k == "attention_factor" or k in rope
        }
    if max_len is not None and max_len < 1:
        raise ConfigError(f"max_len must be at least 1, got {max_len}.")
    if max_len is not None and rope["rope_type"] == "dynamic" and max_len != config.original_len:
        raise ConfigError(f"max_len must be {config.original_len}: transformers takes it as dynamic's original length.")
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": max_len or reach,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "rope_parameters": rope,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if rope["rope_type"] != "default":
        values["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    if rope.get("short_factor") != rope.get("long_factor"):
        # transformers 4 switches lists where this says, and not where rope_scaling says. Equal lists need no switch,
        # and without it vLLM's default length is the whole of max_position_embeddings.
        values["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    ends = list(tokenizer.end_ids) if tokenizer else []
    values["bos_token_id"] = tokenizer.bos_id if tokenizer else None
    values["eos_token_id"] = ends if len(ends) > 1 else ends[0] if ends else None
    return values


def rope_in_words(values: Mapping[str, Any]) -> str:
    """Returns how a config.json that was written here says positions, and to which length."""
    rope, length = values["rope_parameters"], values["max_position_embeddings"]
    kind = rope["rope_type"]
    if kind == "default":
        return f"positions as rope_theta {rope['rope_theta']:g}, to {length:,} tokens"
    if kind == "dynamic":
        return f"positions as rope_type dynamic, growing with the text beyond {length:,} tokens"
    table = kind == "longrope" and rope["short_factor"] == rope["long_factor"]
    return f"positions as {'a longrope table' if table else f'rope_type {kind}'}, to {length:,} tokens"


def _rope(config: ModelConfig) -> tuple[dict[str, Any], int]:
    """Returns (rope_parameters, the length they reach), for positions that Hugging Face's Llama computes exactly.

    What it has no name for, but is a table of frequencies and a gain, is written as `longrope` with equal lists.
    """
    calls = _acting(config)
    theta, length = float(config.theta), config.original_len
    if not calls:
        return {"rope_type": "default", "rope_theta": theta}, length
    call = {k: v for k, v in calls[0].items() if v is not None}
    name = call.pop("name")
    if name == "abf" and len(calls) == 1:
        return {"rope_type": "default", "rope_theta": float(call["theta"])}, length
    if name == "ntk" and len(calls) == 1:
        factor = float(call["factor"])
        theta *= factor ** (config.head_dim / (config.head_dim - 2))
        return {"rope_type": "default", "rope_theta": theta}, int(length * factor)
    if name == "longrope":  # what transformers' has not: one gain for all, no start tokens, nothing between the lists
        call.pop("magnitude_policy", None)  # the gain is written as a number
        call = {k: v for k, v in call.items() if v or k not in ("start_tokens", "dynamic")}
    only_ours = {"start_tokens", "dynamic"} & call.keys() or np.ndim(call.get("short_factor", 0)) > 1
    if name not in _NATIVE or len(calls) > 1 or only_ours:
        return _table(config, calls)
    if name == "llama3":  # whose bands have defaults here and none there
        call = check(calls)[0].numbers | call
    call = {k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in call.items()}
    rope = {"rope_type": name, "rope_theta": theta, **call}
    if name == "longrope":  # transformers would derive a gain from max_position_embeddings where we have 1
        rope["attention_factor"] = float(config.bind(length).gain)
    if name in ("yarn", "llama3", "longrope"):
        rope["original_max_position_embeddings"] = length
        return rope, max(length, int(length * call.get("factor", 1.0)))
    return rope, length


def _table(config: ModelConfig, calls: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """Returns rope_parameters of type longrope whose two lists are the methods' frequencies, whatever their formula."""
    has = (
        f"It has ntk and abf (as rope_theta), {', '.join(_NATIVE)}, and, as longrope, every method that `giraffe "
        "methods` lists so, composed or alone."
    )
    (inv_freq, gain), factor, theta = (
        static_table(config, "Hugging Face's Llama", has),
        largest_factor(calls),
        float(config.theta),
    )
    entry = longrope_entry(inv_freq, gain, head_dim=config.head_dim, theta=theta, factor=factor)
    rope = {"rope_type": entry.pop("name"), "rope_theta": theta, **entry}
    rope["original_max_position_embeddings"] = config.original_len
    rope |= {"short_mscale": gain, "long_mscale": gain}  # vLLM reads the gain here
    return rope, reach_of(config)


def _acting(config: ModelConfig) -> list[dict[str, Any]]:
    """Returns the config's methods without those that act while training only."""
    calls = [dict(to_dict(p)) for p in config.positions]
    return [c for c, bound in zip(calls, check(config.positions), strict=True) if "key" not in bound.needs]


def reach_of(config: ModelConfig) -> int:
    """Returns how far the positions of a model reach, in tokens: original_len times the largest factor."""
    return int(config.original_len * largest_factor(_acting(config)))


def static_table(config: ModelConfig, whose: str, has: str) -> tuple[np.ndarray, float]:
    """Returns (inv_freq [R], gain) of positions that are nothing more.

    Raises:
      ConfigError: they are more, which `whose` Llama does not know; and what it `has`.
    """
    calls = _acting(config)
    model: dict[str, Any] = dict(head_dim=config.head_dim, theta=config.theta, original_len=config.original_len)
    found = one_table(calls, **model, num_layers=config.num_layers)
    if found is None:
        listed, nearest = ", ".join(str(c["name"]) for c in calls), instead_of(calls)
        hint = f" Nearest to {nearest}." if nearest else ""
        if learned := learned_by(config):
            each = "; ".join(f"{method} ({', '.join(own)})" for method, own in learned.items())
            hint += (
                f" Parameters of a method's own, which no such file holds: {each}. To export a model without them, "
                f"train this one on (source) with model.positions without {', '.join(learned)}."
            )
        raise ConfigError(
            f"model.positions: {listed} cannot be exported: {whose} knows frequencies and a gain that are the same in "
            f"every layer and at every length. {has}{hint}"
        )
    return found


def _gain(config: ModelConfig) -> float:
    return float(config.bind(config.original_len).gain)


def fold_gain(flat: Mapping[str, Any], gain: float) -> dict[str, Any]:
    """Returns the parameters with the gain of cos and sin in the query map, whose logits get its square."""
    query = "layers/attention/q/kernel"
    return dict(flat) if gain == 1 else {**flat, query: np.asarray(flat[query], np.float32) * np.float32(gain**2)}


def checked(params: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Returns the parameters by their paths; ConfigError where they are not those of the config."""
    flat = paths(params)
    size = names.sizes(config)
    want = {n.path: (config.num_layers,) * n.stacked + names.our_shape(n.layout, size) for n in names.names(config)}
    got = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    wrong = sorted(p for p in want.keys() | got.keys() if want.get(p) != got.get(p))
    if wrong:
        p = wrong[0]
        raise ConfigError(f"params: {p} has shape {got.get(p, 'missing')}, the config says {want.get(p, 'no such')}.")
    return flat


def _write_tensors(directory: Path, flat: Mapping[str, Any], config: ModelConfig, dtype: str, shard_bytes: int) -> None:
    """Writes the weights in files of at most `shard_bytes`, holding one file's tensors in memory at a time."""
    import jax.numpy as jnp

    size, kind = names.sizes(config), jnp.dtype(dtype)
    rows = names.names(config)
    plan = [(n, i) for n in rows if not n.stacked for i in [0]]
    plan += [(n, i) for i in range(config.num_layers) for n in rows if n.stacked]
    shards: list[list[tuple[names.Name, int]]] = [[]]
    used = 0
    for row, i in plan:
        count = int(np.prod(names.file_shape(row.layout, size))) * kind.itemsize
        if shards[-1] and used + count > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append((row, i))
        used += count
    where, total = {}, 0
    for k, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for row, i in shard:
            parameter = flat[row.path][i] if row.stacked else flat[row.path]
            array = names.to_file(np.asarray(parameter), row.layout, size).astype(kind)
            tensors[row.hf.format(i=i)] = np.ascontiguousarray(array)
            total += array.nbytes
        write_safetensors(directory / file, tensors)
        where |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(directory / "model.safetensors.index.json", index)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors that are contiguous."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.touch()  # with the permissions that the umask says: save_file's own are for its owner alone
    permissions = path.stat().st_mode
    try:
        save_file(dict(tensors), str(path), metadata={"format": "pt"})
    except SafetensorError as e:  # which does not name it
        raise OSError(f"{path}: {e}") from e
    path.chmod(permissions)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object."""
    file.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
