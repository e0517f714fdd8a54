"""Import weights: a Hugging Face directory (safetensors) or a GGUF file becomes a checkpoint.

  giraffe import path/to/Llama-3.2-1B runs/llama

The checkpoint is a workdir: `source` of a config, and of `giraffe generate`. Configs take the
directory or the file itself too; importing saves the conversion, and reads onto any mesh in parallel.
"""

import argparse
import shutil
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help='directory, .gguf file, "giraffe-mini" or "smollm2"')
    parser.add_argument("destination", metavar="DST", help="a folder that does not exist yet")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the parameters")


def run(args: argparse.Namespace) -> int:
    from giraffe_jax.config import ConfigError

    destination = Path(args.destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConfigError(f"DST: {destination} exists; nothing is overwritten, choose a new folder.")
    from giraffe_jax import hf

    found = hf.load(args.source, param_dtype=args.dtype)
    if found.tokenizer is None:
        raise ConfigError(f"SRC: {args.source} has no tokenizer.json or tokenizer.model; put one beside its weights.")
    part = destination.with_name(destination.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write(found, part, args.source)
        part.replace(destination)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    from giraffe_jax.model import num_params

    print(f"{args.source}: {num_params(found.config):,} parameters as {args.dtype} in {destination}")
    return 0


def write(found, folder: Path, source: str) -> None:
    """Writes an imported model as the checkpoint of step 0, with its tokenizer's files."""
    from giraffe_jax import checkpoint
    from giraffe_jax.config import to_dict
    from giraffe_jax.loading import TOKENIZER

    (folder / TOKENIZER).mkdir(parents=True)
    for name, content in found.tokenizer.files().items():
        (folder / TOKENIZER / name).write_bytes(content)
    with checkpoint.manager(folder) as checkpoints:
        checkpoint.save(checkpoints, 0, {"params": found.params}, {"model": to_dict(found.config), "source": source})
        checkpoints.wait_until_finished()
