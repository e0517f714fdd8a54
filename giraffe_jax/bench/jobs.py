"""The jobs that can be timed, the models, and closed forms of a job's FLOPs and bytes."""

import ast
import dataclasses
import importlib
import inspect
import re
from typing import Any, Literal, get_args

import jax
import numpy as np

from giraffe_jax import positions
from giraffe_jax.attention import Implementation, place_of_rows
from giraffe_jax.attention.intervals import intervals
from giraffe_jax.config import ConfigError, build, nearest, to_dict
from giraffe_jax.model import ModelConfig, num_params
from giraffe_jax.positions.layers import of_layer

Kind = Literal[
    "forward", "nll", "train", "packed", "prefill", "decode", "attention", "attention_grad", "bands", "bands_grad"
]
LONGEST = 2**24  # most tokens of a job: up to here, float32 positions are exact
DECODED = 64  # tokens that a decode job generates
MOST_ROWS = 4096
DOCUMENT = 500  # tokens per document in a packed row
REMAT_ABOVE = 2**14  # training steps with more tokens recompute layers in the backward pass
TRAINS = ("train", "packed")

# The model of the README's table on a GPU, about a billion parameters.
SHAPES = {
    "1b": ModelConfig(
        vocab_size=32000, d_model=2048, d_mlp=5632, num_layers=20, num_heads=16, num_kv_heads=4, head_dim=128,
        original_len=4096, tie_embeddings=True,
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """What is timed: one kind of work on `rows` sequences of `length` tokens.

    forward: hidden states of all tokens and the last one's logits. nll: the loss of every token. train: loss, gradients
    and AdamW. packed: the same on rows packed with documents of DOCUMENT tokens. prefill: prompts into a KV cache, and
    their last logits. decode: DECODED tokens after `length` cached ones. attention, attention_grad: causal attention of
    one layer, forward and with gradients. bands, bands_grad: the same with the bands, windows, chunks or biases of
    `method`, "rerope" or "rerope,window=256". `kernel` is a value of model.attention.
    """

    kind: Kind
    length: int
    rows: int = 1
    method: str = ""
    kernel: Implementation = "auto"

    def __str__(self) -> str:
        kind = f"{self.kind}:{self.method}" if self.method else self.kind
        size = f"{self.length}" + (f"x{self.rows}" if self.rows > 1 else "")
        return f"{kind}:{size}" + (f"@{self.kernel}" if self.kernel != "auto" else "")

    @property
    def peer(self) -> "Job | None":
        """The job that transformers is measured on for comparison; None if it has no counterpart."""
        return None if self.method else dataclasses.replace(self, kernel="auto")

    @property
    def plain(self) -> "Job | None":
        """For a job of one layer's attention, the plain one (one causal band, kernel "auto"), None if it is plain."""
        kind = self.kind.replace("bands", "attention")
        plain = dataclasses.replace(self, kind=kind, method="", kernel="auto")  # type: ignore[arg-type]
        return plain if kind.startswith("attention") and plain != self else None


def job(text: str) -> Job:
    """Returns the job of `kind:length`, `kind:lengthxrows` or `bands:method:length`, each with an optional `@kernel`.

    Raises:
      ConfigError: the text is no such job.
    """
    kind, _, size = text.partition(":")
    kinds = get_args(Kind)
    if kind not in kinds:
        raise ConfigError(f"--jobs {text}: the kind is one of {', '.join(kinds)}.{nearest(kind, kinds)}")
    size, at, kernel = size.partition("@")
    kernels = get_args(Implementation)
    if at and kernel not in kernels:
        raise ConfigError(
            f"--jobs {text}: after the @ comes one of {', '.join(kernels)}.{nearest(kernel, list(kernels))}"
        )
    method, like = "", kind
    if kind.startswith("bands"):
        method, _, size = size.rpartition(":")
        like = f"{kind}:rerope"
        if not method:
            raise ConfigError(f"--jobs {text}: a method and a length come after the colon, as in {like}:2048.")
        method_of(method, original_len=2048, where=f"--jobs {text}")
    match = re.fullmatch("([0-9]{1,8})(?:x([0-9]{1,4}))?", size)
    length, rows = (int(match[1]), int(match[2] or 1)) if match else (0, 0)
    if not 2 <= length <= LONGEST or not 1 <= rows <= MOST_ROWS or rows * length > LONGEST:
        raise ConfigError(
            f"--jobs {text}: after the colon come a length and maybe rows, {LONGEST} tokens at most, as in {like}:2048"
            f" or {like}:256x8."
        )
    return Job(kind, length, rows, method, kernel if at else "auto")  # type: ignore[arg-type]


def method_of(text: str, *, original_len: int, where: str = "bands") -> dict[str, Any]:
    """Returns the entry of `positions` for "rerope" or "rerope,window=256".

    Required parameters that the text leaves out are original_len / 4 if counted in tokens, else those of the method's
    EXAMPLE.

    Raises:
      ConfigError: an unknown method, or wrong parameters.
    """
    name, *words = text.split(",")
    function = positions.lookup(name, where)
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            arguments[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise ConfigError(f"{where}: parameters are KEY=NUMBER, as in rerope,window=256; got {word!r}.") from None
    example = getattr(importlib.import_module(function.__module__), "EXAMPLE", {})
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind == parameter.KEYWORD_ONLY and parameter.default is parameter.empty and key not in arguments:
            tokens = key in ("window", "group", "chunk_size")
            arguments |= {key: max(2, original_len // 4)} if tokens else {key: example[key]} if key in example else {}
    call = dict(name=name, **arguments)
    positions.check([call], where)
    return call


def banded(model: ModelConfig, job: Job) -> tuple[tuple, Any]:
    """Returns (bands, bias) of a job's method in the first layer, as arguments of attention.

    Raises:
      ConfigError: the method has neither, so that it is timed as plain attention.
    """
    if not job.method:
        return (), None
    call = method_of(job.method, original_len=model.original_len)
    shape: dict[str, Any] = dict(head_dim=model.head_dim, theta=model.theta, original_len=model.original_len)
    e = positions.bind([call], **shape, num_layers=1, length=float(job.length), where="bands")
    places = np.broadcast_to(np.arange(job.length, dtype=np.float32), (job.rows, job.length))
    e = e.at(places, key=jax.random.key(0))
    e = positions.with_learned(e, lambda item: item.init(jax.random.key(1), model.num_heads))
    bias, bands = e.bias, of_layer(e.bands, 0, 1)
    if not bands and bias is None:
        raise ConfigError(f"--jobs {job}: {call['name']} sees every key in one band; time {job.plain} instead.")
    return bands, bias


def pairs(model: ModelConfig, job: Job) -> int:
    """Returns the number of visible query-key pairs of a row, for a job of attention with bands."""
    bands, _ = banded(model, job)
    seen = intervals(place_of_rows(None, (1, job.length)), bands)
    return int((np.asarray(seen.high, np.int64) - np.asarray(seen.low, np.int64)).sum())


def flops(model: ModelConfig, job: Job) -> float:
    """Returns the model FLOPs of a job, two per multiply-add; attention counts only visible query-key pairs."""
    tokens = job.rows * (DECODED if job.kind == "decode" else job.length)
    attended = job.length + DECODED / 2 if job.kind == "decode" else job.length / 2
    if job.kind == "packed":  # full documents, and the rest of the row
        whole, rest = divmod(job.length, DOCUMENT)
        attended = (whole * DOCUMENT**2 + rest**2) / 2 / job.length
    if job.method:
        attended = pairs(model, job) / job.length
    attention = 4.0 * tokens * attended * model.num_heads * model.head_dim
    if job.kind in ("attention", "bands"):
        return attention
    if job.kind in ("attention_grad", "bands_grad"):
        return 3 * attention
    head = model.vocab_size * model.d_model
    matrices = num_params(model) - (1 if model.tie_embeddings else 2) * head
    predicted = job.rows if job.kind in ("forward", "prefill") else tokens
    once = 2.0 * (matrices * tokens + head * predicted) + model.num_layers * attention
    return 3 * once if job.kind in TRAINS else once


def moved(model: ModelConfig, job: Job, itemsize: int) -> float:
    """Returns the bytes that decoding has to read: all weights and the KV cache, for every token.

    Args:
      model: its config.
      job: a decode job.
      itemsize: bytes per number.
    """
    cached = 2 * model.num_layers * (job.length + DECODED / 2) * model.num_kv_heads * model.head_dim * job.rows
    head = 0 if model.tie_embeddings else model.vocab_size * model.d_model
    return DECODED * itemsize * (num_params(model) - head + cached)


def shape(text: str) -> ModelConfig:
    """Returns the ModelConfig of "1b" or "1b,num_layers=4,vocab_size=512": a name of SHAPES, and keys to change.

    Raises:
      ConfigError: an unknown name or key, or a wrong value.
    """
    name, *words = text.split(",")
    if name not in SHAPES:
        raise ConfigError(f"--shape {text}: it begins with one of {', '.join(SHAPES)}, as in 1b,num_layers=4.")
    keys: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            keys[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise ConfigError(
                f"--shape {text}: after the name come KEY=NUMBER of a model, as in 1b,num_layers=4; got {word!r}."
            ) from None
    return build(ModelConfig, to_dict(SHAPES[name]) | keys, "--shape")
