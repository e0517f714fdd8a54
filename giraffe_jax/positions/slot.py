"""Learned positions: parameters that a method adds to every layer's attention, and how a layer applies them.

A method adds an item to `Encoding.learned`, by `learn`. The model, which knows no method, creates each item's
parameters in every layer, under layers/attention/<name>/ in the parameter tree, and applies the item inside the layer.
Everything else (training, optimizers, checkpoints, meshes, cached decoding) treats them as any parameter of the model.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from giraffe_jax.positions.encoding import Encoding

APPLIED = ("head_scale", "bias")  # fields that attention reads inside a layer: those that `apply` may change
TAKEN = ("q", "k", "v", "o", "q_norm", "k_norm", "lora")  # names of an attention's other parameters
RESERVED = ("kernel", "lora")  # keys by which optimizers and adapters recognise weight matrices


class Mistake(ValueError):
    """A learned item is malformed; the message says what is wrong with it."""


class Learned(Protocol):
    """An item of `Encoding.learned`: a pytree, whose numbers are float32 in the step.

    Write it as a frozen dataclass, with `@jax.tree_util.register_dataclass` if it holds numbers of its own and
    `@jax.tree_util.register_static` if it does not.
    """

    @property
    def name(self) -> str:
        """A name that no other item has; its parameters are under layers/attention/<name>/."""
        ...

    def init(self, key: jax.Array, num_heads: int) -> Mapping[str, Any]:
        """Returns one layer's initial parameters, a dict of float arrays, nested or not.

        On a mesh they are replicated on every device, so they should be small.
        """
        ...

    def apply(self, e: Encoding, params: Any) -> Encoding:
        """Returns the encoding with one layer's parameters applied; it may change `head_scale` and `bias` only."""
        ...


def learn(e: Encoding, item: Any) -> Encoding:
    """Returns the encoding with one more learned item, a `Learned`.

    Raises:
      Mistake: it is not a `Learned`, or its name is taken.
    """
    return checked(e.replace(learned=(*e.learned, item)))


def with_learned(e: Encoding, make: Callable[[Any], Any]) -> Encoding:
    """Returns the encoding of one layer: learned items are applied, with parameters make(item), and removed."""
    for item in e.learned:
        e = item.apply(e, make(item))
    return e.replace(learned=())


def scale_heads(e: Encoding, scale: Any) -> Encoding:
    """Returns the encoding with logits multiplied by `scale`, [#B #T #N] per query and head, and by earlier scales."""
    return e.replace(head_scale=scale if e.head_scale is None else e.head_scale * scale)


def checked(e: Encoding) -> Encoding:
    """Returns the encoding as it is.

    Raises:
      Mistake: one of its learned items is not a `Learned`, or has a name that is taken.
    """
    seen: list[str] = []
    for item in e.learned:
        name, kind = getattr(item, "name", None), type(item).__name__
        if not isinstance(name, str) or not name.isidentifier():
            raise Mistake(f"{kind} learns, but its name is {name!r}; a name such as 'slopes' is expected.")
        if name in TAKEN:
            raise Mistake(f"{kind} is named {name!r}, as parameters of attention are ({', '.join(TAKEN)}); rename it.")
        if name in seen:
            raise Mistake(f"{name} is there already, and both would own the same parameters.")
        if missing := [method for method in ("init", "apply") if not callable(getattr(item, method, None))]:
            raise Mistake(
                f"{kind} ({name!r}) has no {' and no '.join(missing)}; what learns has a name, init(key, num_heads) "
                "and apply(e, params)."
            )
        tree = jax.tree.structure(item)
        if jax.tree_util.all_leaves([item]) or tree != jax.tree.structure(copy.copy(item)):
            raise Mistake(
                f"{kind} ({name!r}) is not a pytree equal to its copies; write @jax.tree_util.register_static and "
                "@dataclasses.dataclass(frozen=True) above it."
            )
        seen.append(name)
    return e


def check_shapes(e: Encoding) -> None:
    """Raises Mistake if a learned item's parameters, or the head_scale or bias made from them, do not fit attention.

    Only shapes are evaluated. Errors raised by the method's own code are passed on.
    """
    if e.num_heads is not None:
        jax.eval_shape(_try_in_a_layer, e.replace(key=None, pending=()))


def _try_in_a_layer(e: Encoding) -> Any:
    num_heads = e.num_heads or 1
    positions = jnp.zeros((1, 2)) if e.positions is None else e.positions
    e = e.replace(positions=positions, query_scale=None)
    items = e.learned
    for item in items:
        label = f"{type(item).__name__} ({item.name!r})"
        params = item.init(jax.random.key(0), num_heads)
        _check_params(params, label)
        before, e = e, item.apply(e, params)
        if not isinstance(e, Encoding):
            raise Mistake(f"{label}: apply returned {type(e).__name__}; it ends in `return e.replace(...)`.")
        for field in (f.name for f in dataclasses.fields(e)):
            if field not in APPLIED and getattr(e, field) is not getattr(before, field):
                raise Mistake(
                    f"{label}: apply changed {field}, which is used before the layers; it may change "
                    f"{' and '.join(APPLIED)}. The method itself may change {field}."
                )
        _check_fits(e.head_scale, (*positions.shape, num_heads), f"{label}: apply returned head_scale", "B T N")
    if e.bias is not None:  # once it has all parameters
        rows, tokens = positions.shape
        i, j = jnp.zeros((rows, 1, tokens, 1), jnp.int32), jnp.zeros((1, 1, 1, 3), jnp.int32)
        label = f"with parameters of {', '.join(item.name for item in items)}, bias(i, j, num_heads) is"
        _check_fits(e.bias(i, j, num_heads), (rows, num_heads, tokens, 3), label, "B N T S")
    return ()


def _check_params(params: Any, name: str) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not isinstance(params, Mapping) or not leaves:
        kind = type(params).__name__ if leaves else "nothing"
        raise Mistake(f"{name}: init returned {kind}; a dict of arrays is expected, as in dict(slope=jnp.ones(...)).")
    for path, leaf in leaves:
        keys = [getattr(part, "key", None) for part in path]
        if not all(isinstance(key, str) for key in keys):
            raise Mistake(f"{name}: init returned {jax.tree_util.keystr(path)}; dicts with texts as keys are expected.")
        if reserved := [key for key in keys if key in RESERVED]:
            raise Mistake(f"{name}: init names a parameter {reserved[0]!r}, kept for matrices and adapters.")
        if not jnp.issubdtype(getattr(leaf, "dtype", None) or type(leaf), jnp.floating) or not hasattr(leaf, "shape"):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise Mistake(f"{name}: init returned {'/'.join(map(str, keys))} of {kind}; arrays of floats are expected.")


def _check_fits(value: Any, shape: tuple[int, ...], label: str, axes: str) -> None:
    """Raises Mistake if a value does not broadcast to a shape."""
    value_shape = () if value is None else jnp.shape(value)
    try:
        fits = jnp.broadcast_shapes(value_shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise Mistake(f"{label} of shape {value_shape}; expected [{axes}] = {shape}, or 1 in place of any of them.")
