"""Low-rank adapters: which parameters are trained, and where adapters are in the parameter tree.

Hu et al., "LoRA", arXiv:2106.09685. For long contexts norms and embeddings are trained too: Chen et al., "LongLoRA",
arXiv:2309.12307. A higher learning rate of B: Hayou et al., "LoRA+", arXiv:2402.12354. An adapter is stored next to its
kernel, "layers/attention/q/lora/{a, b, scale}", with its own scale, so that no config is needed to apply it; the model
adds scale * (x A) B where it finds one.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from giraffe_jax.config import Bound, ConfigError, check_fields
from giraffe_jax.sharding import paths

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
Part = Literal["norm", "embed", "lm_head"]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which projections get adapters, and what else is trained. The defaults are LongLoRA's; train=() is plain LoRA."""

    rank: Annotated[int, Bound(1, high=2**16)] = 8  # Rank of each adapter.
    alpha: Annotated[float, Bound(0.0, above=True)] = 16.0  # Adapters are multiplied by alpha / rank.
    targets: tuple[Target, ...] = ("q", "k", "v", "o")  # Projections that get an adapter.
    # What is trained besides adapters. "embed" includes the unembedding where the two are tied.
    train: tuple[Part, ...] = ("norm", "embed")
    # Learning rate of B, as a multiple of that of everything else. LoRA+ takes 16.
    lr_ratio: Annotated[float, Bound(0.0, above=True)] = 1.0

    def __post_init__(self):
        check_fields(self, "lora")
        if not self.targets:
            raise ConfigError("lora.targets: empty; name at least one of q, k, v, o, gate, up, down.")


def add(params: Mapping[str, Any], config: LoraConfig, key: jax.Array) -> dict[str, Any]:
    """Returns the parameters with adapters; existing ones are kept, new ones do not change the model's outputs.

    A is uniform in +-1/sqrt(fan in), B zero. Trained parameters become float32: in bfloat16 a norm would round away a
    step of 2e-5. The others keep their dtype.
    """
    tree = jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(jnp.float32) if _trains(_words(path), config) else x, _copy(params)
    )
    for i, name in enumerate(config.targets):
        weights = tree["layers"]["attention" if name in ("q", "k", "v", "o") else "mlp"][name]
        if "lora" in weights:
            continue
        layers, *shape = weights["kernel"].shape
        fan_in = 2 if name == "o" else 1
        reads = (layers, *shape[:fan_in], config.rank)
        bound = math.prod(shape[:fan_in]) ** -0.5
        weights["lora"] = {
            "a": jax.random.uniform(jax.random.fold_in(key, i), reads, jnp.float32, -bound, bound),
            "b": jnp.zeros((layers, config.rank, *shape[fan_in:]), jnp.float32),
            "scale": jnp.full(layers, config.alpha / config.rank, jnp.float32),
        }
    return tree


def trainable(params: Any, config: LoraConfig | None) -> Any:
    """Returns a tree like params with True for each parameter that is trained; without a config all are."""
    return jax.tree_util.tree_map_with_path(lambda path, _: config is None or _trains(_words(path), config), params)


def with_lr_ratio(moves: optax.GradientTransformation, ratio: Any) -> optax.GradientTransformation:
    """Returns an optimizer whose updates of B, weight decay included, are `ratio` times as large (LoRA+)."""

    def is_b(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: _words(path)[-2:] == ("lora", "b"), tree)

    return optax.chain(moves, optax.masked(optax.scale(ratio), is_b))


def split(params: Any, chosen: Any) -> tuple[Any, Any]:
    """Returns (the chosen parameters, the others): two trees like params, with None (no leaf) in place of the rest."""
    these = jax.tree.map(lambda x, yes: x if yes else None, params, chosen)
    others = jax.tree.map(lambda x, yes: None if yes else x, params, chosen)
    return these, others


def join(one: Any, other: Any) -> Any:
    """Returns the parameters that `split` divided into two trees."""
    return jax.tree.map(lambda x, y: y if x is None else x, one, other, is_leaf=lambda x: x is None)


def merge(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters without adapters that compute the same: W + scale * A B, in float32, rounded to W's dtype."""
    if "kernel" not in params:
        return {name: merge(leaf) if isinstance(leaf, Mapping) else leaf for name, leaf in params.items()}
    kernel, adapter = params["kernel"], params.get("lora")
    if adapter is None:
        return dict(params)
    a, b, scale = adapter["a"], adapter["b"], adapter["scale"]
    product = functools.partial(jnp.tensordot, axes=1, precision="highest")
    update = jax.vmap(lambda a, b, scale: scale * product(a, b))(a, b, scale)
    return {"kernel": (kernel.astype(jnp.float32) + update).astype(kernel.dtype)}


def has_adapters(params: Any) -> bool:
    """Returns whether a parameter tree holds adapters."""
    return any("/lora/" in path for path in paths(params))


GROUPS = ("adapters", "frequencies", "embedding", "unembedding", "norms", "attention", "MLP")


def by_group(params: Any) -> dict[str, int]:
    """Returns how many parameters a tree has in each of GROUPS; groups without any are left out."""
    names = {"positions": "frequencies", "embed": "embedding", "lm_head": "unembedding", "mlp": "MLP"}
    counts: dict[str, int] = {group: 0 for group in GROUPS}
    for path, x in paths(params).items():
        words = path.split("/")
        group = words[1] if words[0] == "layers" else words[0]
        if "lora" in words:
            group = "adapters"
        elif words[-2].endswith("norm"):
            group = "norms"
        counts[names.get(group, group)] += x.size
    return {group: count for group, count in counts.items() if count}


def count_in_words(count: int) -> str:
    """Returns a number of parameters for people to read: 1,152 or 0.05 M or 28.3 M or 6.74 B."""
    if count < 10_000:
        return f"{count:,}"
    if count < 10**9:
        return f"{count / 1e6:.{1 if count >= 10**7 else 2}f} M"
    return f"{count / 1e9:.2f} B"


def _words(path: Any) -> tuple[str, ...]:
    return tuple(str(part.key) for part in path)


def _trains(words: tuple[str, ...], config: LoraConfig) -> bool:
    if "lora" in words:
        return words[-1] != "scale"
    is_norm = words[-2].endswith("norm")
    return words[0] in config.train or (is_norm and "norm" in config.train)


def _copy(tree: Any) -> Any:
    return {name: _copy(x) for name, x in tree.items()} if isinstance(tree, Mapping) else tree
