"""Parameters of a model: initialise, count, look up their logical axes, fit them to another config."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from giraffe_jax import sharding
from giraffe_jax.model.config import PARAM_AXES, ModelConfig
from giraffe_jax.model.llama import Llama


def num_params(config: ModelConfig) -> int:
    """Returns the number of parameters."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def init_params(config: ModelConfig, key: jax.Array) -> dict:
    """Returns freshly initialised parameters."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    encoding = config.bind(length=2).at(jnp.arange(2.0)[None])
    # Jitted: run eagerly, the initialisers and the model's forward pass in `init` would compile hundreds of programs.
    return jax.jit(lambda key: dict(Llama(config).init(key, tokens, encoding)["params"]))(key)


def param_axes(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Returns the logical axes of every parameter that the config's model may have.

    That is PARAM_AXES, and what its positions learn (positions/slot.py), which is small and replicated on every device.
    """

    def learned() -> dict[str, Any]:
        items = config.bind(length=2).at(jnp.arange(2.0)[None]).learned
        return {item.name: item.init(jax.random.key(0), config.num_heads) for item in items}

    shapes = sharding.paths(jax.eval_shape(learned))
    rows = {f"layers/attention/{path}": ("layers", *("features",) * x.ndim) for path, x in shapes.items()}
    return PARAM_AXES | rows


def learned_by(config: ModelConfig) -> dict[str, list[str]]:
    """Returns {method: paths of the parameters that it adds} for the config's methods that add any."""
    learned, known = {}, set(PARAM_AXES)
    for i, call in enumerate(config.positions, 1):
        paths = list(param_axes(dataclasses.replace(config, positions=config.positions[:i])))
        if added := [path for path in paths if path not in known]:
            learned[str(call["name"])] = added
        known.update(paths)
    return learned


def fit_params(config: ModelConfig, params: Mapping[str, Any], key: jax.Array) -> dict:
    """Returns the parameters of the config's model: those given, and freshly initialised ones where it has more.

    A model that adds a learned method, or qk_norm, has parameters that its source did not have; one that removes them
    drops theirs. Adapters are kept.
    """
    shapes = traverse_util.flatten_dict(jax.eval_shape(lambda: init_params(config, key)))
    given = traverse_util.flatten_dict(params)
    # Jitted, so that parameters that are not returned are not computed.
    fresh = jax.jit(lambda: {k: traverse_util.flatten_dict(init_params(config, key))[k] for k in shapes.keys() - given})
    return traverse_util.unflatten_dict(
        {k: v for k, v in (dict(given) | fresh()).items() if k in shapes or "lora" in k}
    )


def unembedding(params: Mapping[str, Any]) -> Float[Array, "D V"]:
    """Returns the matrix from hidden states to logits."""
    return params["lm_head"]["kernel"] if "lm_head" in params else params["embed"]["embedding"].T


def logits(params: Mapping[str, Any], hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Returns float32 logits of every token. Use it for short rows: the array has B T V numbers."""
    return jnp.einsum(
        "btd,dv->btv", hidden, unembedding(params).astype(hidden.dtype), preferred_element_type=jnp.float32
    )
