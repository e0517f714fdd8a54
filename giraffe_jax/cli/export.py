"""Export weights: any source becomes a Hugging Face directory that transformers and vLLM load, or a GGUF file.

  giraffe export runs/llama2_32k llama2-32k-hf
  giraffe export runs/llama2_32k llama2-32k-hf --dtype=bfloat16 --max-len=32768
  giraffe export runs/llama2_32k llama2-32k.gguf --dtype=float16
  giraffe export runs/longlora longlora-adapter --adapter
  giraffe export their-adapter merged-hf --base=Llama-3.2-1B

Position methods are written as Hugging Face's own (`rope_scaling`) if it has them, else as a longrope table of the same
frequencies; for llama.cpp as `rope_freqs.weight`. The logits stay the same (`giraffe check hf` checks that). A method
that the format cannot express is rejected by name, and nothing is written.

--adapter writes what a run with config.lora has trained in PEFT's format (LoRA; norms and embeddings in
modules_to_save), for the base model that the run started from. SOURCE may be such an adapter too: it is merged into its
base.
"""

import argparse
from pathlib import Path

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe export`."""
    sources = 'workdir of a run, Hugging Face directory, PEFT adapter, .gguf file, "giraffe-mini", "smollm2"'
    parser.add_argument("source", metavar="SOURCE", type=configs.source, help=sources)
    new = "a new folder, or a new file NAME.gguf; nothing is overwritten"
    parser.add_argument("destination", metavar="DESTINATION", type=configs.folder, help=new)
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="dtype of the weights to write (float32)")
    reach = "max_position_embeddings to write, in tokens (default: the context length of the position methods)"
    tokens = configs.number(int, 1, high=2**31 - 1)
    parser.add_argument("--max-len", type=tokens, metavar="N", help=reach)
    parser.add_argument("--max_len", type=tokens, dest="max_len", help=argparse.SUPPRESS)
    gain = "fold the positions' gain into the query weights, for readers that ignore attention_factor (GGUF: always)"
    parser.add_argument("--gain-in-weights", action="store_true", help=gain)
    configs.base_argument(parser, "; with --adapter, the base to name if the source of the run is not a directory")
    adapter = "write only the run's adapter, as PEFT's adapter_config.json and adapter_model.safetensors"
    parser.add_argument("--adapter", action="store_true", help=adapter)
    parser.add_argument("--no-tokenizer", action="store_true", help="do not write the tokenizer")


def run(args: argparse.Namespace) -> int:
    """Writes the export and prints one line about it; returns 0.

    Raises:
      ConfigError: the destination exists, or the format cannot express the model.
    """
    import json

    from giraffe_jax import hf
    from giraffe_jax.hf.rope import rope_in_words
    from giraffe_jax.hf.write import check_new, check_new_file
    from giraffe_jax.loading import load
    from giraffe_jax.model import num_params

    as_gguf = str(args.destination).endswith(".gguf")
    if args.adapter:
        return _adapter(args, as_gguf)
    (check_new_file if as_gguf else check_new)(args.destination)
    loaded = load(args.source, base=args.base)
    inputs = (loaded.params, loaded.config, None if args.no_tokenizer else loaded.tokenizer, args.destination)
    settings = dict(dtype=args.dtype, max_len=args.max_len)
    if as_gguf:
        hf.save_gguf(*inputs, **settings)
        words = "positions as rope_freqs.weight" if loaded.config.positions else "plain positions"
    else:
        out = hf.save(*inputs, **settings, gain_in_weights=args.gain_in_weights)
        words = rope_in_words(json.loads((out / "config.json").read_text()))
    print(f"{args.source}: {num_params(loaded.config):,} parameters as {args.dtype}, {words}, in {args.destination}")
    return 0


def _adapter(args: argparse.Namespace, as_gguf: bool) -> int:

    from giraffe_jax import hf
    from giraffe_jax.checkpoint import split_source
    from giraffe_jax.config import ConfigError
    from giraffe_jax.hf.peft_config import BASE_CONFIG
    from giraffe_jax.hf.rope import rope_in_words
    from giraffe_jax.hf.write import check_new
    from giraffe_jax.loading import load_unmerged
    from giraffe_jax.tokenizer import read_json

    if as_gguf or args.gain_in_weights:
        conflict = "a .gguf destination" if as_gguf else "--gain-in-weights, which changes the base"
        raise ConfigError(
            f"--adapter: writes a PEFT directory with the adapter only, so it does not go with {conflict}."
        )
    check_new(args.destination)
    lm, adapters = load_unmerged(args.source)
    base = args.base or _base_of(Path(split_source(args.source)[0]))
    words = None if args.no_tokenizer else lm.tokenizer
    settings = dict(dtype=args.dtype, max_len=args.max_len)
    adapter_config = hf.save_adapter(lm.params, lm.config, adapters, base, words, args.destination, **settings)
    saved = f", {', '.join(adapter_config['modules_to_save'])} whole" if adapter_config["modules_to_save"] else ""
    targets = ", ".join(adapter_config["target_modules"])
    print(f"{args.source}: adapter of rank {adapters.rank} for {targets}{saved} as {args.dtype} in {args.destination}")
    print(f"its base: {adapter_config['base_model_name_or_path']}")
    file = Path(args.destination) / BASE_CONFIG
    if file.is_file():
        rope = rope_in_words(read_json(file))
        print(
            f"a PEFT adapter cannot store positions, and this one has others than its base: {rope}. Load the base with "
            f'{BASE_CONFIG} (transformers: from_pretrained(BASE, config=AutoConfig.from_pretrained("{file}"))).'
        )
    return 0


def _base_of(workdir: Path) -> str:
    """Returns the directory of weights that a run started from: its source, or the base of an adapter source."""
    from giraffe_jax.checkpoint import is_workdir
    from giraffe_jax.config import ConfigError
    from giraffe_jax.hf.load import find_base
    from giraffe_jax.training.workdir import CONFIG, read_json

    config = read_json(workdir / CONFIG, "a run's config")
    source = config.get("source")
    if not source:
        raise ConfigError(f"--adapter: {workdir} started from random weights: there is no base to put an adapter on.")
    if is_workdir(source.partition("@")[0]):
        raise ConfigError(
            f"--base: {workdir} started from {source}, a run. PEFT needs its weights as a Hugging Face directory: "
            f"`giraffe export {source} NEW`, then --base=NEW."
        )
    return str(find_base(source, config.get("base"))[0])
