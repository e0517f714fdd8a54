"""Load one GGUF file here and with llama.cpp (extra `oracle`), and compare token ids of a text, the loss of every token
and perplexities: at half the context length that the file names and at the whole.

The text is --text, or the English reference text that ships with Python (pydoc_data). llama.cpp keeps keys and values
in half precision, so perplexities may differ by 1%; it multiplies quantised weights with quantised activations, so
check a file of float32 or float16 before you quantise it.
"""

import argparse
from pathlib import Path

from giraffe_jax.cli import check_hf
from giraffe_jax.config import ConfigError

ALLOWED = 0.01  # relative difference of perplexities


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe check gguf`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a GGUF file, such as `giraffe export` writes")
    check_hf.reference_arguments(parser, "half the file's context length and the whole")


def run(args: argparse.Namespace) -> int:
    """Prints one line per length; returns 0 if token ids are equal and perplexities within tolerance, else 1.

    Raises:
      ConfigError: xllamacpp is missing, FILE is no GGUF file that both can read, or the text is too short.
    """
    import numpy as np

    from giraffe_jax import hf
    from giraffe_jax.cli import llama_cpp

    if not args.file.is_file():
        raise ConfigError(f"check gguf: {args.file} is not a file.")
    llama_cpp.check_installed()  # before the file is loaded
    ours = hf.load(args.file)
    original = ours.config.original_len
    lengths = args.lengths or [max(original // 2, 2), original]
    tokens, description = check_hf.reference_tokens(ours, args.text, max(lengths))
    print(f"{args.file}: {description}")
    good = True
    if ours.tokenizer is not None:
        text = check_hf.reference_text(args.text)[0][: 4 * max(lengths)]
        expected = [*ours.tokenizer.prefix, *ours.tokenizer.encode(text)]
        ((ids,), _) = llama_cpp.compute(args.file, texts=[text])
        good = ids == expected
        same = next((i for i, pair in enumerate(zip(ids, expected, strict=False)) if pair[0] != pair[1]), len(ids))
        print(f"token ids of its first {len(text):,} characters: "
              + ("equal" if good else f"DIFFER from token {same:,} on"))  # fmt: skip
    print("\ntokens  perplexity  llama.cpp  relative difference  mean difference of a token's loss")
    worst = 0.0
    for length in lengths:
        row = [int(token) for token in tokens[:length]]
        loss = ours.score(row).nll
        (theirs,) = llama_cpp.compute(args.file, rows=[row])[1]
        perplexity, their_perplexity = np.exp(loss.mean(dtype=np.float64)), np.exp(theirs.mean())
        difference = abs(perplexity / their_perplexity - 1)
        good &= bool(difference <= ALLOWED)  # False for a nan too
        worst = difference if difference != difference else max(worst, difference)
        print(
            f"{length:>6}{perplexity:>12.4f}{their_perplexity:>11.4f}{difference:>21.1e}"
            f"{np.abs(loss - theirs).mean():>35.1e}",
            flush=True,
        )
    print(f"\n{'passed' if good else 'FAILED'}: perplexities differ by up to {worst:.1e}, allowed {ALLOWED:.0e}")
    return 0 if good else 1
