"""Continue a prompt.

  giraffe generate --source=giraffe-mini --prompt="It is a truth universally" -n 64
  giraffe generate --source=runs/llama --prompt-file=book.txt --positions='[dict(name="yarn", factor=4.0)]'

The generated text goes to standard output, everything else to standard error.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

from giraffe_jax.cli import configs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe generate`."""
    parser.add_argument(
        "--source",
        required=True,
        type=configs.source,
        metavar="SOURCE",
        help='a workdir, a Hugging Face directory, a PEFT adapter, a .gguf file, "giraffe-mini" or "smollm2"',
    )
    configs.base_argument(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue")
    prompt.add_argument("--prompt-file", metavar="FILE", help="a UTF-8 text file to continue; - reads standard input")
    parser.add_argument(
        "-n", type=configs.number(int, 1, high=2**24), default=64, metavar="N", help="maximum number of new tokens (64)"
    )
    parser.add_argument(
        "--positions", metavar="LIST", help="position methods, as in a config; by default the model's own"
    )
    parser.add_argument("--policy", choices=("pinned", "per_call", "running"), default="pinned",
                        help="the length that length-dependent methods use as the text grows (pinned)")  # fmt: skip
    parser.add_argument(
        "--temperature",
        type=configs.number(float, 0.0),
        default=0.0,
        help="sampling temperature; 0, the default, takes the most likely token",
    )
    parser.add_argument("--seed", type=configs.number(int, 0, high=2**31 - 1), default=0, help="seed of sampling")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="dtype to compute in (default: the model's)")


def run(args: argparse.Namespace) -> int:
    """Prints the continuation; returns 0. Warns where it goes beyond the context length of the position methods."""
    text = read_prompt(args)
    scaling = None if args.positions is None else parse_positions(args.positions)
    import jax

    from giraffe_jax import positions
    from giraffe_jax.inference import generate
    from giraffe_jax.loading import load

    if scaling is not None:
        positions.check(scaling, "--positions")
    overrides = {} if args.dtype is None else {"dtype": args.dtype, "param_dtype": args.dtype}
    lm = load(args.source, overrides, base=args.base)
    ids = lm.encode(text)
    encoding = lm.config.bind(scaling=scaling, where="--positions")
    reach = positions.reach(lm.config.positions if scaling is None else scaling, lm.config.original_len)
    if reach is not None and len(ids) + args.n > reach:
        warnings.warn(
            f"{len(ids):,} tokens of prompt and {args.n:,} to generate exceed the context length of {reach:,} tokens: "
            "beyond it the output is unreliable. --positions can extend it.",
            stacklevel=2,
        )
    key = jax.random.key(args.seed)
    settings: dict[str, Any] = dict(policy=args.policy, temperature=args.temperature, key=key)
    (new,) = generate(lm, [ids], args.n, encoding, **settings)
    print(f"{len(ids)} tokens of prompt, {len(new)} generated", file=sys.stderr)
    print(lm.tokenizer.decode(new))
    return 0


def read_prompt(args: argparse.Namespace) -> str:
    """Returns the prompt's text, from the command line, a file or standard input."""
    from giraffe_jax.config import ConfigError
    from giraffe_jax.data import reading

    if args.prompt is not None:
        return args.prompt
    try:
        if args.prompt_file == "-":
            return reading.decoded(sys.stdin.buffer.read(), "standard input", "--prompt-file")
        return reading.read_text(Path(args.prompt_file), "--prompt-file")
    except IsADirectoryError as error:
        raise ConfigError(f"--prompt-file: {args.prompt_file} is a directory, not a text file.") from error


def parse_positions(text: str) -> list[dict[str, Any]]:
    """Returns the list of methods that --positions spells: Python literals and calls like `dict(name="yarn")`.

    Raises:
      ConfigError: the text is not a list. Whether its methods exist is checked later.
    """
    from giraffe_jax.config import ConfigError, literal

    try:
        methods = literal(text)
    except ValueError as error:  # ConfigError too
        raise ConfigError(
            f"--positions: {text[:80]!r} is not a list of dicts like [dict(name='yarn', factor=4.0)]."
        ) from error
    if not isinstance(methods, list):
        raise ConfigError(
            f"--positions: expected a list of dicts like [dict(name='yarn', factor=4.0)], got {text[:80]!r}."
        )
    return methods
