"""transformers' side of the bench: PyTorch, attention by scaled_dot_product_attention, fused AdamW."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM

from giraffe_jax.bench.jobs import DECODED, DOCUMENT

CHUNK = 4096  # tokens of a row whose logits are in memory at once, if those of all do not fit


def prepare(settings: dict[str, Any]) -> tuple[Callable[[], Callable[[], Any]], dict[str, Any]]:
    """Loads or draws the weights; returns (a function that prepares the job and returns the function to time; facts for
    the row)."""
    torch.set_num_threads(settings["threads"])
    kind, length, rows = settings["kind"], settings["length"], settings["rows"]
    dtype, weights = (getattr(torch, settings[key]) for key in ("dtype", "param_dtype"))
    device = "cpu" if settings["platform"] == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} finds no GPU where JAX does")
    if kind.startswith("attention"):
        config = AutoConfig.from_pretrained(settings["path"])
        ready = _attention(config, rows, length, dtype, device, grad=kind.endswith("grad"))
        return lambda: ready, dict(note="scaled_dot_product_attention")
    model = _model(settings["path"], weights, device, random=settings["random"])
    draw = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, length))
    tokens = torch.tensor(draw, device=device)
    casts = f"weights {settings['param_dtype']}, autocast to {settings['dtype']}"
    notes = [f"all in {settings['dtype']}" if weights == dtype else casts, "attention sdpa"]
    if settings["remat"] != "none":
        # Named differently in newer and older versions of transformers.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable(dict(use_reentrant=False))
        notes.append("gradient checkpointing")
    notes += ["fused AdamW"] if kind in ("train", "packed") else []
    notes += ["documents by position_ids, which become a mask"] if kind == "packed" else []
    whole = kind != "nll" or _fits(tokens.numel() * model.config.vocab_size, device)
    notes += [] if whole else [f"logits of {CHUNK} tokens at once"]
    jobs = dict(forward=_forward, train=_train, packed=_packed, prefill=_prefill, decode=_decode)
    jobs |= dict(nll=_nll if whole else _nll_in_chunks)

    def cast():
        return torch.autocast(device, dtype, enabled=weights != dtype)

    facts = dict(params=sum(p.numel() for p in model.parameters()), note="; ".join(notes))
    return lambda: _finished(jobs[kind](model, tokens, cast)), facts


def _model(path: str, weights, device: str, *, random: bool) -> Any:
    if not random:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=weights, attn_implementation="sdpa")
        return model.to(device)
    config = AutoConfig.from_pretrained(path)
    with torch.device(device):  # initialised on the device, which is seconds faster
        return AutoModelForCausalLM.from_config(config, dtype=weights, attn_implementation="sdpa")


def _fits(num_logits: int, device: str) -> bool:
    """Returns whether the logits of all tokens, in the compute dtype and in float32, fit into the GPU's free memory."""
    return device == "cpu" or 10 * num_logits < 0.8 * torch.cuda.mem_get_info()[0]


def _finished(call: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a function that makes the call and waits for the GPU to finish."""

    def run():
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def _forward(model, tokens, cast):
    model.eval()

    def forward():
        with torch.inference_mode(), cast():
            return model(tokens, use_cache=False, logits_to_keep=1).logits

    return forward


def _nll(model, tokens, cast):
    model.eval()

    def nll():
        with torch.inference_mode(), cast():
            logits = model(tokens, use_cache=False).logits
            return cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")

    return nll


def _nll_in_chunks(model, tokens, cast):
    model.eval()

    def nll():
        with torch.inference_mode(), cast():
            hidden, targets = model.model(tokens, use_cache=False).last_hidden_state[:, :-1], tokens[:, 1:]
            parts = zip(hidden.split(CHUNK, dim=1), targets.split(CHUNK, dim=1), strict=True)
            return [
                cross_entropy(model.lm_head(h).flatten(0, 1).float(), t.flatten(), reduction="none") for h, t in parts
            ]

    return nll


def _packed(model, tokens, cast):
    # transformers recognises documents within a row by restarting positions, and masks pairs across documents.
    places = torch.arange(tokens.shape[1], device=tokens.device) % DOCUMENT
    return _train(model, tokens, cast, places.expand(tokens.shape))


def _train(model, tokens, cast, places=None):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with cast():
            loss = model(tokens, labels=tokens, position_ids=places, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def _prefill(model, tokens, cast):
    model.eval()

    def prefill():
        with torch.inference_mode(), cast():
            return model(tokens, use_cache=True, logits_to_keep=1).logits

    return prefill


def _decode(model, tokens, cast):
    model.eval()
    with torch.inference_mode(), cast():
        first = model(tokens, use_cache=True, logits_to_keep=1)

    def step():
        cache, token = first.past_key_values, first.logits[:, -1:].argmax(-1)
        with torch.inference_mode(), cast():
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
    """Returns the GPU's peak memory in bytes; None on a CPU, where the worker measures the process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
