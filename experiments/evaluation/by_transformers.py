"""Perplexity by transformers, from the papers' definitions: its model and tokenizer, torch's loss, windows cut here.

    python experiments/evaluation/by_transformers.py MODEL --documents a.txt b.txt --lengths 1024 2048 --windows 2

MODEL is a Hugging Face directory. Writes a JSON list with an entry for every window: protocol, length, document,
window, ids (a hash of them), nats (summed over what is scored) and tokens (how many are). Imports nothing of this
project: it is what `protocols.py` and `sixteen.py` compare with.

- strided: a window of `length` tokens moves on by `stride` (an eighth of it), all of the first window's tokens and of
  the others the last `stride` are scored, so every token once (Press et al. 2022, arXiv:2108.12409).
- truncated: the first `length` tokens of a document (Peng et al. 2023, arXiv:2309.00071, figure 1).
- chunked: windows that do not overlap, everything in them scored.
- aligned: windows of all lengths end at the same tokens, `stride` (an eighth of the shortest) apart, of which the last
  `stride` are scored.

A token with nothing before it is never scored. Where the tokenizer begins texts with a token, every window does.
"""

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROTOCOLS = ("strided", "truncated", "chunked", "aligned")


def load(directory: str | Path) -> tuple[Any, Any]:
    """Returns (model in float32, tokenizer) of a Hugging Face directory."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(directory)


def spans(protocol: str, body: int, longest: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields (start, end, how many of its last tokens are scored) of a text's windows, without end.

    Args:
      protocol: one of PROTOCOLS.
      body: tokens of the text in a window.
      longest: that of the longest windows, which those that are aligned end with.
      stride: from window to window where they are strided or aligned.
    """
    if protocol == "truncated":
        yield 0, body, body
        return
    step = body if protocol == "chunked" else stride
    end = longest if protocol == "aligned" else body
    first = protocol != "aligned"
    while True:
        yield end - body, end, body if first else step
        first, end = False, end + step


def score(model: Any, window: list[int]) -> torch.Tensor:
    """Returns the loss in nats, in float64, of every token of a window but its first."""
    ids = torch.tensor([window])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, :-1]  # those at a token are about the next one
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").double()


def measure(
    model: Any,
    tokenizer: Any,
    documents: Sequence[Path],
    lengths: Sequence[int],
    count: int,
    protocols: Sequence[str] = PROTOCOLS,
) -> Iterator[dict[str, Any]]:
    """Yields an entry for each of the first `count` windows of every document, by every protocol, at every length."""
    prefix = tokenizer("")["input_ids"]
    longest = max(lengths) - len(prefix)
    for document in documents:
        text = document.read_text(encoding="utf-8")
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        known: dict[str, torch.Tensor] = {}  # protocols have windows in common
        for protocol, length in itertools.product(protocols, lengths):
            stride = (min(lengths) if protocol == "aligned" else length) // 8
            windows = spans(protocol, length - len(prefix), longest, stride)
            for k, (start, end, scored) in enumerate(itertools.islice(windows, count)):
                if end > len(ids):
                    break
                window = prefix + ids[start:end]
                name = fingerprint(window)
                if name not in known:
                    known[name] = score(model, window)
                nats = known[name][-scored:]  # of a text's first token too, where a begin token stands before it
                entry = dict(protocol=protocol, length=length, document=document.name, window=k, ids=name)
                yield entry | dict(nats=nats.sum().item(), tokens=len(nats))


def fingerprint(ids: Sequence[int]) -> str:
    """Returns a hash of token ids, by which two programs can tell that they read the same."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:16]


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Returns the `count` likeliest tokens, each given all before it, fewer where the text ends."""
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return out[0, len(prompt) :].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face directory")
    parser.add_argument("--documents", type=Path, nargs="+", required=True, help="text files")
    parser.add_argument("--protocols", nargs="+", default=PROTOCOLS, choices=PROTOCOLS)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--windows", type=int, default=2, help="of every document, at most (2)")
    parser.add_argument("--prompts", type=Path, help="JSON list of [prompt ids, count]: their greedy text instead")
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    if args.prompts:
        return json.dump([greedy(model, *p) for p in json.loads(args.prompts.read_text())], sys.stdout)
    rows = measure(model, tokenizer, args.documents, args.lengths, args.windows, args.protocols)
    json.dump(list(rows), sys.stdout)


if __name__ == "__main__":
    main()
