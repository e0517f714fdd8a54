"""Attention of rows whose tokens are sharded over the mesh axis `context`: each device computes its own queries.

Keys and values are sent between the devices of a row, by an all-gather (gather.py) or around a ring (ring.py), and each
device runs on its queries the kernel that a single device would run (parts.py). Tokens are in the order of columns.py.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from giraffe_jax import sharding
from giraffe_jax.attention import alone, gather, ring
from giraffe_jax.attention.blockwise import ATTENTION_LSE, ATTENTION_OUT
from giraffe_jax.attention.columns import AXIS
from giraffe_jax.attention.parts import Part
from giraffe_jax.attention.places import Place

How = Literal["all-gather", "ring"]
_MODULES: dict[How | None, Any] = {"all-gather": gather, "ring": ring, None: alone}


def attend(how: How | None, part: Part, q: tuple, k: tuple, v, *, place: Place, bands: tuple, bias: Any):
    """Returns causal attention of whole rows to themselves: [B T N H].

    Args:
      how: how devices that share rows exchange keys and values; None if each holds whole rows.
      part: the kernel.
      q, k, v, bands, bias: as in attention.attend.
      place: from `Columns.place`; in zig-zag order where devices share rows.
    """
    out: Any = _attend(how, part, q, k, v, place, bands, bias)
    return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(how, part, q, k, v, place, bands, bias):
    return _forward(how, part, q, k, v, place, bands, bias)[0]


def _attend_forward(how, part, q, k, v, place, bands, bias):
    out, lse = _forward(how, part, q, k, v, place, bands, bias)
    out = checkpoint_name(out, ATTENTION_OUT)
    lse = checkpoint_name(lse, ATTENTION_LSE)
    return out, (q, k, v, place, bands, bias, out, lse)  # k and v of this device: to be exchanged again


def _attend_backward(how, part, saved, d_out):
    *inputs, out, lse = saved
    d_q, d_k, d_v, d_bias = _over_devices(functools.partial(_backward_here, how, part), *inputs, out, lse, d_out)
    return d_q, d_k, d_v, None, None, d_bias


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(how, part, *inputs):
    return _over_devices(functools.partial(_forward_here, how, part), *inputs)


def _over_devices(function, q, k, v, place, bands, bias, *outputs):
    """Runs the function on each device's rows, tokens and heads; `outputs` as in engine._over_devices."""
    tokens = PartitionSpec(sharding.RULES["batch"], AXIS)
    heads, whole = PartitionSpec(*tokens, "tensor"), PartitionSpec()
    specs = (heads, heads, heads, tokens, whole, whole, *[heads] * len(outputs))
    out_specs = (heads, heads, heads, whole) if outputs else heads
    run = jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)
    return run(q, k, v, place, bands, bias, *outputs)


def _forward_here(how, part, q, k, v, place, bands, bias):
    return _MODULES[how].forward(part, q, k, v, place, bands, _of_heads(bias, q[0].shape[2]))


def _backward_here(how, part, q, k, v, place, bands, bias, out, lse, d_out):
    of_heads = _of_heads(bias, q[0].shape[2])
    d_q, d_k, d_v, d_bias = _MODULES[how].backward(part, q, k, v, place, bands, of_heads, out, lse, d_out)
    d_bias = d_bias.bias if isinstance(d_bias, _OfHeads) else d_bias
    d_bias = None if bias is None else lax.psum(d_bias, sharding.AXES)  # all rows share the bias
    cast = functools.partial(jax.tree.map, lambda g, x: g.astype(x.dtype))
    return cast(d_q, q), cast(d_k, k), cast(d_v, v), cast(d_bias, bias)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("bias",), meta_fields=("total",))
@dataclasses.dataclass(frozen=True)
class _OfHeads:
    """A bias of `total` heads, restricted to this device's heads."""

    bias: Any
    total: int

    def __call__(self, i, j, num_heads: int):
        values = self.bias(i, j, self.total)
        values = jnp.broadcast_to(values, (*values.shape[:-3], self.total, *values.shape[-2:]))
        return lax.dynamic_slice_in_dim(values, lax.axis_index("tensor") * num_heads, num_heads, axis=-3)


def _of_heads(bias, local_heads: int):
    num_shards = lax.axis_size("tensor")
    return bias if bias is None or num_shards == 1 else _OfHeads(bias, local_heads * num_shards)
