"""Export weights: any source becomes a Hugging Face directory that transformers and vLLM load.

  giraffe export runs/llama2_32k llama2-32k-hf
  giraffe export runs/llama2_32k llama2-32k-hf --dtype=bfloat16 --max-len=32768

The position methods are written as `rope_scaling`, natively where Hugging Face has the method and else as a longrope
table with the same frequencies; what neither can say is refused by name. Logits are then those of this project.
"""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help='workdir, Hugging Face directory, .gguf file or "giraffe-mini"')
    parser.add_argument("destination", metavar="DST", help="a folder that does not exist yet")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of the weights; smaller ones are rounded")
    parser.add_argument("--max-len", type=int, metavar="N", help="max_position_embeddings; by default what is reached")


def run(args: argparse.Namespace) -> int:
    from giraffe_jax import hf
    from giraffe_jax.loading import load
    from giraffe_jax.model import num_params

    loaded = load(args.source)
    hf.save(
        loaded.params, loaded.config, loaded.tokenizer, args.destination, dtype=args.dtype, max_len=args.max_len
    )  # fmt: skip
    print(f"{args.source}: {num_params(loaded.config):,} parameters as {args.dtype} in {args.destination}")
    return 0
