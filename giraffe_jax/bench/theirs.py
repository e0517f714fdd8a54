"""transformers' side of the bench: PyTorch, attention by scaled_dot_product_attention, fused AdamW."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM

from giraffe_jax.bench import DECODED, DOCUMENT


def prepare(settings: dict[str, Any]) -> Callable[[], Callable[[], Any]]:
    """Loads the weights and returns the function that readies the job, which returns the function to time."""
    torch.set_num_threads(settings["threads"])
    kind, length, dtype = settings["kind"], settings["length"], getattr(torch, settings["dtype"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = settings["rows"]
    if kind.startswith("attention"):
        config = AutoConfig.from_pretrained(settings["path"])
        return lambda: _attention(config, rows, length, dtype, device, grad=kind.endswith("grad"))
    model: Any = AutoModelForCausalLM.from_pretrained(settings["path"], dtype=dtype, attn_implementation="sdpa")
    model.to(device)
    draw = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, length))
    tokens = torch.tensor(draw, device=device)
    jobs = dict(forward=_forward, nll=_nll, train=_train, packed=_packed, prefill=_prefill, decode=_decode)
    return lambda: _finished(jobs[kind](model, tokens))


def _finished(call: Callable[[], Any]) -> Callable[[], Any]:
    """Returns the call followed by the wait for what it started."""

    def run():
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def _forward(model, tokens):
    model.eval()

    def forward():
        with torch.inference_mode():
            return model(tokens, use_cache=False, logits_to_keep=1).logits

    return forward


def _nll(model, tokens):
    model.eval()

    def nll():
        with torch.inference_mode():
            logits = model(tokens, use_cache=False).logits
            return cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")

    return nll


def _packed(model, tokens):
    # By restarting positions transformers knows documents of one row, and masks the pairs of two.
    places = torch.arange(tokens.shape[1], device=tokens.device) % DOCUMENT
    return _train(model, tokens, places.expand(tokens.shape))


def _train(model, tokens, places=None):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(tokens, labels=tokens, position_ids=places, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def _prefill(model, tokens):
    model.eval()

    def prefill():
        with torch.inference_mode():
            return model(tokens, use_cache=True, logits_to_keep=1).logits

    return prefill


def _decode(model, tokens):
    model.eval()
    with torch.inference_mode():
        first = model(tokens, use_cache=True, logits_to_keep=1)

    def step():
        cache, token = first.past_key_values, first.logits[:, -1:].argmax(-1)
        with torch.inference_mode():
            for _ in range(DECODED):
                token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        cache.crop(-DECODED)

    return step


def _attention(config, rows: int, length: int, dtype, device: str, *, grad: bool):
    torch.manual_seed(0)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    q, k, v = (
        torch.randn(rows, n, length, config.head_dim, dtype=dtype, device=device, requires_grad=grad) for n in heads
    )
    d = torch.randn_like(q)

    def forward():
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def both():
        q.grad = k.grad = v.grad = None
        forward().backward(d)

    return _finished(both if grad else forward)


def peak_bytes() -> int | None:
    """Returns the device's own peak where it keeps one; the CPU's is the process's."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
