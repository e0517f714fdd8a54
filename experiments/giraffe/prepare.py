"""RedPajama's sample as the paper trained on it: the long documents, 5,000 of them held out.

    python experiments/giraffe/prepare.py redpajama_sample.jsonl... --out=/data/redpajama

Reads JSON lines with a "text" (togethercomputer/RedPajama-Data-1T-Sample, one file or many) and writes train.jsonl and
heldout.jsonl: documents of over 20,480 and under 1,000,000 characters; which of them are held out is drawn by a fixed
seed. Memory is a few bytes a document.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SHORTEST, LONGEST = 20_480, 1_000_000  # characters, neither included
HELD_OUT, SEED = 5000, 0x5EED


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines, each with a text")
    parser.add_argument("--out", type=Path, required=True, help="a folder for train.jsonl and heldout.jsonl")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help=f"documents ({HELD_OUT:,}; a tenth at most)")
    args = parser.parse_args(argv)
    kept = [SHORTEST < len(text) < LONGEST for text in texts(args.files)]
    long = [i for i, keep in enumerate(kept) if keep]
    if len(long) < 2:
        sys.exit(f"{len(long)} of {len(kept):,} documents have {SHORTEST:,} to {LONGEST:,} characters: too few.")
    random.Random(SEED).shuffle(long)
    held_out = set(long[: max(1, min(args.held_out, len(long) // 10))])
    args.out.mkdir(parents=True, exist_ok=True)
    parts = {name: args.out / f"{name}.jsonl.part" for name in ("train", "heldout")}
    with open(parts["train"], "w", encoding="utf-8") as train, open(parts["heldout"], "w", encoding="utf-8") as other:
        for i, text in enumerate(texts(args.files)):
            if kept[i]:
                (other if i in held_out else train).write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    for name, part in parts.items():
        part.rename(args.out / f"{name}.jsonl")
    print(f"{len(long):,} of {len(kept):,} documents are long enough: {len(held_out):,} held out, the rest to train on")


def texts(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    text = json.loads(line)["text"]
                except (ValueError, KeyError, TypeError):
                    text = None
                if not isinstance(text, str):
                    sys.exit(f"{file}:{number}: not a JSON object with a text.")
                yield text


if __name__ == "__main__":
    main()
