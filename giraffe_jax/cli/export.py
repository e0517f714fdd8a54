"""Export weights: any source becomes a Hugging Face directory that transformers and vLLM load, or a GGUF file.

  giraffe export runs/llama2_32k llama2-32k-hf
  giraffe export runs/llama2_32k llama2-32k-hf --dtype=bfloat16 --max-len=32768
  giraffe export runs/llama2_32k llama2-32k.gguf --dtype=float16

Position methods are written as Hugging Face's own (`rope_scaling`) where it has them, and else as a longrope table of
the same frequencies; for llama.cpp as `rope_freqs.weight`. Logits there are those here (`giraffe check hf` proves it).
What cannot be said is refused by name, and nothing is written.
"""

import argparse

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    sources = 'workdir of a run, Hugging Face directory, .gguf file, "giraffe-mini", "smollm2"'
    parser.add_argument("source", metavar="SOURCE", type=configs.source, help=sources)
    new = "a new folder, or a new file NAME.gguf; nothing is overwritten"
    parser.add_argument("destination", metavar="DESTINATION", type=configs.folder, help=new)
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of the weights; smaller ones are rounded")
    reach = "max_position_embeddings to write, in tokens; by default how far the positions reach"
    tokens = configs.number(int, 1, high=2**31 - 1)
    parser.add_argument("--max-len", type=tokens, metavar="N", help=reach)
    parser.add_argument("--max_len", type=tokens, dest="max_len", help=argparse.SUPPRESS)
    gain = "write the positions' gain into the query map, for readers that ignore attention_factor (GGUF: always so)"
    parser.add_argument("--gain-in-weights", action="store_true", help=gain)
    parser.add_argument("--no-tokenizer", action="store_true", help="without its tokenizer: for token ids alone")


def run(args: argparse.Namespace) -> int:
    import json

    from giraffe_jax import hf
    from giraffe_jax.hf.export import check_new, check_new_file, rope_in_words
    from giraffe_jax.loading import load
    from giraffe_jax.model import num_params

    as_gguf = str(args.destination).endswith(".gguf")
    (check_new_file if as_gguf else check_new)(args.destination)
    loaded = load(args.source)
    what = (loaded.params, loaded.config, None if args.no_tokenizer else loaded.tokenizer, args.destination)
    settings = dict(dtype=args.dtype, max_len=args.max_len)
    if as_gguf:
        hf.save_gguf(*what, **settings)
        words = "positions as rope_freqs.weight" if loaded.config.positions else "plain positions"
    else:
        out = hf.save(*what, **settings, gain_in_weights=args.gain_in_weights)
        words = rope_in_words(json.loads((out / "config.json").read_text()))
    print(f"{args.source}: {num_params(loaded.config):,} parameters as {args.dtype}, {words}, in {args.destination}")
    return 0
