"""Export weights: any source becomes a Hugging Face directory that transformers and vLLM load.

  giraffe export runs/llama2_32k llama2-32k-hf
  giraffe export runs/llama2_32k llama2-32k-hf --dtype=bfloat16 --max-len=32768

Position methods are written as Hugging Face's own (`rope_scaling`) where it has them, and else as a longrope table of
the same frequencies; logits there are those here. What neither can say is refused by name, and nothing is written.
"""

import argparse

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    sources = 'workdir of a run, Hugging Face directory, .gguf file, "giraffe-mini", "smollm2"'
    parser.add_argument("source", metavar="SOURCE", type=configs.source, help=sources)
    new = "a new folder; nothing is overwritten"
    parser.add_argument("destination", metavar="DESTINATION", type=configs.folder, help=new)
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of the weights; smaller ones are rounded")
    reach = "max_position_embeddings to write, in tokens; by default how far the positions reach"
    tokens = configs.number(int, 1, high=2**31 - 1)
    parser.add_argument("--max-len", type=tokens, metavar="N", help=reach)
    parser.add_argument("--max_len", type=tokens, dest="max_len", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    import json

    from giraffe_jax import hf
    from giraffe_jax.hf.export import check_new, rope_in_words
    from giraffe_jax.loading import load
    from giraffe_jax.model import num_params

    check_new(args.destination)
    loaded = load(args.source)
    out = hf.save(
        loaded.params, loaded.config, loaded.tokenizer, args.destination, dtype=args.dtype, max_len=args.max_len
    )
    words = rope_in_words(json.loads((out / "config.json").read_text()))
    print(f"{args.source}: {num_params(loaded.config):,} parameters as {args.dtype}, {words}, in {args.destination}")
    return 0
