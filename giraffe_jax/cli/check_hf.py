"""Load one Hugging Face directory here and with transformers (extra `oracle`), in float32, and compare logits,
next-token distributions and perplexities on a text: at half the original length, at the original length, and at the
extended context length (or twice the original). DIR may be a LoRA adapter of PEFT, which transformers loads with peft.

The text is --text, or the English reference text that ships with Python (pydoc_data). A directory without a tokenizer
gets random ids. Logits may differ by 2e-5 of the largest logit, or by the float32 rounding error of the last position's
angle if that is more: 2^-23 radians per token of length.
"""

import argparse
from pathlib import Path
from typing import Any

from giraffe_jax.cli import configs
from giraffe_jax.config import ConfigError

LEAST = 2e-5  # smallest tolerance, relative to the largest logit
CHUNK = 256  # positions whose logits are held in memory at once


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe check hf`."""
    parser.add_argument("directory", metavar="DIR", type=configs.source, help="a Hugging Face directory, or an adapter")
    configs.base_argument(parser)
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8 text to read (default: Python's own reference)"
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=configs.number(int, 2, high=2**24),
        metavar="N",
        help="lengths in tokens (default: half the original length, the original, the extended or twice the original)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints one line per length; returns 0 if all logits are within tolerance, else 1.

    Raises:
      ConfigError: torch, transformers or peft is missing, DIR is no Hugging Face directory, or the text is too short.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise ConfigError(f"check hf: {error}; `pip install 'giraffe-jax[oracle]'` has it.") from error
    from giraffe_jax import hf

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    where, adapter = hf.find_base(args.directory, args.base)
    if not (where / "config.json").is_file():
        raise ConfigError(f"{args.directory}: no config.json in it, so not a Hugging Face directory.")
    ours = hf.load(args.directory, base=args.base)
    model = _theirs(where, adapter)
    original = ours.config.original_len
    reach = max(int(model.config.max_position_embeddings), original)
    lengths = args.lengths or [max(original // 2, 2), original, reach if reach > original else 2 * original]
    tokens, description = _tokens(ours, args.text, max(lengths))
    print(f"{args.directory}: {description}\n")
    print("tokens  largest difference  allowed     KL mean      KL max  perplexity  transformers")
    worst, good = 0.0, True
    for length in lengths:
        row = compare(ours, model.eval(), tokens[:length])
        allowed = max(LEAST, length * 2.0**-23)
        good &= row["difference"] <= allowed  # False for a nan too
        worst = max(worst, row["difference"]) if row["difference"] == row["difference"] else row["difference"]
        print(
            f"{length:>6}{row['difference']:>20.1e}{allowed:>9.1e}{row['kl_mean']:>12.1e}{row['kl_max']:>12.1e}"
            f"{row['perplexity']:>12.4f}{row['theirs']:>14.4f}",
            flush=True,
        )
    print(f"\n{'passed' if good else 'FAILED'}: logits differ by up to {worst:.1e} of the largest")
    return 0 if good else 1


def _theirs(where: Path, adapter: Any) -> Any:
    """Returns transformers' model of a directory, with peft's merge of an adapter, in float32."""
    import torch
    import transformers

    from giraffe_jax.hf.peft_config import BASE_CONFIG

    config = {}
    if adapter is not None and (file := adapter.directory / BASE_CONFIG).is_file():
        config = {"config": transformers.AutoConfig.from_pretrained(file)}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        where, dtype=torch.float32, attn_implementation="sdpa", **config
    )
    if adapter is None or adapter.directory == where:  # transformers has loaded an adapter that is beside the weights
        return model
    try:
        import peft
    except ImportError as error:
        raise ConfigError(f"check hf: {error}; `pip install 'giraffe-jax[oracle]'` has it.") from error
    return peft.PeftModel.from_pretrained(model, str(adapter.directory)).merge_and_unload()  # type: ignore[operator]


def _tokens(lm: Any, text: Path | None, length: int) -> tuple[Any, str]:
    """Returns `length` token ids and a description of where they come from."""
    import numpy as np

    if lm.tokenizer is None:
        return np.random.default_rng(0).integers(0, lm.config.vocab_size, length), "random ids: it has no tokenizer"
    if text is None:
        from pydoc_data.topics import topics

        words, name = "\n\n".join(topics[key] for key in sorted(topics)), "Python's reference text"
    else:
        from giraffe_jax.data import reading

        words, name = reading.read_text(text, "--text"), str(text)
    ids = [*lm.tokenizer.prefix, *lm.tokenizer.encode(words)]
    if len(ids) < length:
        raise ConfigError(
            f"{name} has {len(ids)} tokens, but --lengths needs {length}; give a longer --text or smaller --lengths."
        )
    return np.array(ids[:length]), f"{name}, by its own tokenizer"


def compare(ours: Any, model: Any, tokens: Any) -> dict[str, float]:
    """Returns the largest difference of logits relative to the largest logit, the mean and largest KL divergence of the
    next-token distributions (of ours from theirs, nats), and both perplexities.

    Args:
      ours: inference.LM.
      model: transformers' model with the same weights.
      tokens: [T] ids.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    from giraffe_jax.model import Llama, unembedding

    length = len(tokens)
    encoding = ours.config.bind(float(length)).at(jnp.arange(length, dtype=jnp.float32)[None])
    read = jax.jit(lambda params, tokens, e: Llama(ours.config).apply({"params": params}, tokens, e)[0])  # type: ignore[index]
    with ours.config.at_precision():
        hidden = np.asarray(read(ours.params, jnp.asarray(tokens[None], jnp.int32), encoding))[0]
    with torch.no_grad():
        their_hidden = model.model(torch.tensor(tokens[None]), use_cache=False).last_hidden_state[0].numpy()
    head, their_head = np.asarray(unembedding(ours.params)), model.get_output_embeddings().weight.detach().numpy().T
    difference = largest = kl_max = 0.0
    kl, nll = 0.0, np.zeros(2)
    for start in range(0, length, CHUNK):
        part = slice(start, start + CHUNK)
        logits = np.stack([hidden[part] @ head, their_hidden[part] @ their_head]).astype(np.float64)
        difference = float(np.maximum(difference, np.abs(logits[0] - logits[1]).max()))  # keeps a nan
        largest = max(largest, float(np.abs(logits[1]).max()))
        top = logits.max(-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        divergence = (np.exp(log_p[1]) * (log_p[1] - log_p[0])).sum(-1)
        kl, kl_max = kl + divergence.sum(), max(kl_max, float(divergence.max()))
        targets = tokens[start + 1 : start + 1 + CHUNK]
        nll -= log_p[:, np.arange(len(targets)), targets].sum(-1)
    perplexity, theirs = np.exp(nll / (length - 1))
    return dict(
        difference=difference / largest, kl_mean=kl / length, kl_max=kl_max, perplexity=perplexity, theirs=theirs
    )
