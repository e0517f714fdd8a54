"""Import weights: a Hugging Face directory (safetensors) or a GGUF file becomes a checkpoint.

  giraffe import path/to/Llama-3.2-1B runs/llama
  giraffe generate --source=runs/llama --prompt="A giraffe"

DESTINATION becomes a workdir, as a training run has: the `source` of a config, and of every verb that takes one. SOURCE
itself is one too; importing saves converting it each time, and a checkpoint is read onto any mesh in parallel.
"""

import argparse
from pathlib import Path

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    sources = 'Hugging Face directory, adapter of PEFT (which is merged), .gguf file, "giraffe-mini", "smollm2"'
    parser.add_argument("source", metavar="SOURCE", type=configs.source, help=sources)
    configs.base_argument(parser)
    new = "a new folder; nothing is overwritten"
    parser.add_argument("destination", metavar="DESTINATION", type=configs.folder, help=new)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the parameters")


def run(args: argparse.Namespace) -> int:
    from giraffe_jax import hf
    from giraffe_jax.config import ConfigError
    from giraffe_jax.hf.write import check_new, new_directory
    from giraffe_jax.model import num_params

    check_new(args.destination)
    found = hf.load(args.source, base=args.base, param_dtype=args.dtype)
    if found.tokenizer is None:
        raise ConfigError(
            f"SOURCE: {args.source} has no tokenizer.json or tokenizer.model; put one beside its weights."
        )
    configs.quiet(args)
    with new_directory(args.destination) as folder:
        write(found, folder, args.source)
    print(f"{args.source}: {num_params(found.config):,} parameters as {args.dtype} in {args.destination}")
    return 0


def write(found, folder: Path, source: str) -> None:
    """Writes an imported model as the checkpoint of step 0, with its tokenizer's files."""
    from giraffe_jax import checkpoint
    from giraffe_jax.checkpoint import TOKENIZER
    from giraffe_jax.config import to_dict

    (folder / TOKENIZER).mkdir(parents=True)
    for name, content in found.tokenizer.files().items():
        (folder / TOKENIZER / name).write_bytes(content)
    with checkpoint.manager(folder) as checkpoints:
        checkpoint.save(checkpoints, 0, {"params": found.params}, {"model": to_dict(found.config), "source": source})
        checkpoints.wait_until_finished()
