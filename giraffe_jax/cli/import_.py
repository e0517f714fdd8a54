"""Import weights: a Hugging Face directory (safetensors) or a GGUF file becomes a checkpoint.

  giraffe import path/to/Llama-3.2-1B runs/llama
  giraffe generate --source=runs/llama --prompt="A giraffe"

DESTINATION becomes a workdir like that of a training run, to be used as the `source` of a config or of any verb that
takes one. SOURCE can be used as a `source` directly; importing saves the conversion each time, and a checkpoint is read
onto any mesh in parallel.
"""

import argparse
from pathlib import Path

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe import`."""
    sources = 'Hugging Face directory, PEFT adapter (merged into its base), .gguf file, "giraffe-mini", "smollm2"'
    parser.add_argument("source", metavar="SOURCE", type=configs.source, help=sources)
    configs.base_argument(parser)
    new = "a new folder; nothing is overwritten"
    parser.add_argument("destination", metavar="DESTINATION", type=configs.folder, help=new)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the weights")


def run(args: argparse.Namespace) -> int:
    """Writes the checkpoint and prints one line about it; returns 0.

    Raises:
      ConfigError: the destination exists, or the source has no tokenizer.
    """
    from giraffe_jax import hf
    from giraffe_jax.config import ConfigError
    from giraffe_jax.hf.write import check_new, new_directory
    from giraffe_jax.model import num_params

    check_new(args.destination)
    lm = hf.load(args.source, base=args.base, param_dtype=args.dtype)
    if lm.tokenizer is None:
        raise ConfigError(
            f"SOURCE: {args.source} has no tokenizer.json or tokenizer.model; put one beside its weights."
        )
    configs.quiet(args)
    with new_directory(args.destination) as folder:
        write(lm, folder, args.source)
    print(f"{args.source}: {num_params(lm.config):,} parameters as {args.dtype} in {args.destination}")
    return 0


def write(lm, folder: Path, source: str) -> None:
    """Writes an imported model as the checkpoint of step 0, with its tokenizer's files."""
    from giraffe_jax import checkpoint
    from giraffe_jax.checkpoint import TOKENIZER
    from giraffe_jax.config import to_dict

    (folder / TOKENIZER).mkdir(parents=True)
    for name, content in lm.tokenizer.files().items():
        (folder / TOKENIZER / name).write_bytes(content)
    with checkpoint.manager(folder) as checkpoints:
        checkpoint.save(checkpoints, 0, {"params": lm.params}, {"model": to_dict(lm.config), "source": source})
        checkpoints.wait_until_finished()
