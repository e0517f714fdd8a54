"""Custom calls of a compiled module: the name of the called kernel, and its FLOPs as far as the text gives them."""

import re

import numpy as np

from giraffe_jax.plan.module import Computation, Op

_LIBRARIES = ("__cublas", "__cudnn")


def kernel_of(op: Op) -> str | None:
    """Returns the name of the kernel that a custom call runs, None if it runs none.

    For a Pallas kernel it is the name given to it, for a library's kernel the call's target ("__cudnn$fmhaSoftmax").
    """
    target = re.search(r'custom_call_target="([^"]*)"', op.attributes)
    if target is None:
        return None
    if target[1] == "tpu_custom_call":
        return op.name.partition(".")[0]
    if target[1] == "__gpu$xla.gpu.triton":
        match = re.search(r'op_name="[^"]*?([^"/]+)/pallas_call"', op.attributes)
        return op.name if match is None else match[1]
    return target[1] if target[1].startswith(_LIBRARIES) or "__triton" in target[1] else None


def stated(op: Op, c: Computation) -> float | None:
    """Returns the FLOPs of a kernel call in computation `c` as derived from its text, None if that is impossible."""
    estimate = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', op.attributes)
    if estimate is not None:  # a Pallas kernel's own estimate
        return float(estimate[1])
    kernel = kernel_of(op) or ""
    if kernel.startswith("__cublas"):
        return _product(op, c)
    return _attention(op, c, kernel) if kernel.startswith("__cudnn$fmha") else None


def _product(op: Op, c: Computation) -> float | None:
    contracted = _ints(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', op)
    lhs = c.ops[op.operands[0]].shapes[0].dims
    if not contracted or max(contracted) >= len(lhs):
        return None
    return float(2 * np.prod(op.shapes[0].dims, dtype=np.float64) * np.prod([lhs[i] for i in contracted]))


def _attention(op: Op, c: Computation, kernel: str) -> float | None:
    """Returns the FLOPs of two matmuls forward and five backward, over the pairs that cuDNN's mask allows."""
    logits = _ints(r'"intermediate_tensor_shape":[^\[]*"dimensions":\s*\[([^\]]*)\]', op)
    if len(logits) != 4:
        return None
    batch, heads, queries, keys = logits
    pairs = queries * keys
    if re.search(r'"mask_type":\s*"(PADDING_)?CAUSAL"', op.attributes) and queries == keys:
        pairs = queries * (queries + 1) // 2
    width = c.ops[op.operands[0]].shapes[0].dims[-1]
    return float(2 * (5 if kernel.endswith("Backward") else 2) * batch * heads * pairs * width)


def _ints(pattern: str, op: Op) -> list[int]:
    match = re.search(pattern, op.attributes)
    return [] if match is None else [int(n) for n in re.findall(r"\d+", match[1])]
