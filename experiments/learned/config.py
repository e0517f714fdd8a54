"""Learned and searched frequencies against the best that were made by hand, at 4 and 8 times the trained length.

    giraffe search --config=experiments/learned/config.py:needles,4 --workdir=runs/searched-needles-4
    giraffe run experiments/learned

The first line is how each searched_*.json beside this file was made (needles and text, 4 and 8; copy its
positions.json); the second one measures everything. README.md says how long that takes and what came out.
"""

import json
import sysconfig
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

HERE = Path(__file__).parent
TRAINED_LEN = 256
STDLIB = Path(sysconfig.get_path("stdlib"))
READ = str(STDLIB / "email" / "*.py")  # by searches and trainings
HELDOUT = ("argparse.py", "heapq.py", "json/decoder.py", "subprocess.py", "asyncio/streams.py")  # by the evaluation
TOKENS = 2048  # to a step of training, and of the objective of a search

FACTOR_METHODS = ("linear", "ntk", "yarn")
BY_HAND = {
    "plain": [],
    **{f"{name} {factor}": [dict(name=name, factor=float(factor))] for name in FACTOR_METHODS for factor in (4, 8)},
    "ntk 16": [dict(name="ntk", factor=16.0)],
    "power": [dict(name="power", exponent=0.5)],
    "truncate": [dict(name="truncate", cutoff_len=float(TRAINED_LEN))],
    "self_extend": [dict(name="self_extend", window=128, group=16)],
}


def sources(kind: str, length: int) -> list[dict[str, Any]]:
    """Returns what is read: documents whose answers alone count ("needles"), text, or both, three to one ("both")."""
    needles = dict(kinds=("lines", "passkey"), min_len=length // 2, drawn_weight=0.0, text_weight=0.0)
    both = dict(kinds=("lines", "passkey"), min_len=128, answer_weight=4.0)
    text = dict(kind="text", path=READ, weight=0.25)
    return {
        "needles": [dict(kind="synthetic", synthetic=needles)],
        "text": [text],
        "both": [dict(kind="synthetic", synthetic=both, weight=0.75), text],
    }[kind]


def data(kind: str, factor: int) -> dict[str, Any]:
    length = factor * TRAINED_LEN
    return dict(seq_len=length, batch_size=TOKENS // length, sources=sources(kind, length), seed=7)


def search(kind: str, factor: int) -> ConfigDict:
    """Returns a search of 8 generations, each table of it measured on 2,048 tokens."""
    c = ConfigDict(dict(source="giraffe-mini", factor=float(factor), data=data(kind, factor), generations=8))
    c.model = dict(original_len=TRAINED_LEN)
    return c


def training(factor: int, frequencies: dict | None = None) -> dict[str, Any]:
    """Returns 40 steps at `factor` times the trained length, as the quick start does, with half of its batch."""
    optim = dict(lr=1e-3, schedule="linear", warmup_steps=10, final_lr=1e-5)
    if frequencies and frequencies["train"] == "alone":
        optim |= dict(lr=3e-2, final_lr=1e-3)
    return dict(steps=40, save_every=40, keep=1, data=data("both", factor), optim=optim, frequencies=frequencies)


def variants() -> list[dict[str, Any]]:
    found = [dict(name=name, positions=positions) for name, positions in BY_HAND.items()]
    for factor in (4, 8):
        for kind in ("needles", "text"):
            file = HERE / f"searched_{kind}_{factor}.json"
            if file.is_file():
                found.append(dict(name=f"searched {factor}, {kind}", positions=json.loads(file.read_text())))
        for start in (f"yarn {factor}", f"ntk {2 * factor}"):
            about: dict[str, Any] = dict(positions=BY_HAND[start])
            alone, beside = dict(train="alone"), dict(train="with_weights", lr=3e-2)
            found += [
                dict(name=f"{start}, learned alone", train=training(factor, alone), **about),
                dict(name=f"{start} + training", train=training(factor), **about),
                dict(name=f"{start}, learned + training", train=training(factor, beside), **about),
            ]
    return found


def get_config(argument: str = "") -> ConfigDict:
    """Returns the experiment; the config of a search with `needles,4`, `text,8` ..."""
    if argument:
        kind, _, factor = argument.partition(",")
        return search(kind, int(factor))
    c = ConfigDict()
    c.name = "learned"
    c.title = "Learned and searched frequencies against those made by hand"
    c.question = (
        "Does a table of frequencies that was learned by gradient, or searched by evolution, carry a Llama trained on "
        "256 tokens further than the formulas do, at 1,024 and at 2,048 tokens?"
    )
    c.source = "giraffe-mini"
    c.original_len = TRAINED_LEN
    c.variants = variants()
    lengths = (4 * TRAINED_LEN, 8 * TRAINED_LEN)
    documents = [str(STDLIB / name) for name in HELDOUT]
    c.tasks = [
        dict(name="perplexity", lengths=lengths, documents=documents, protocol="strided", n=5),
        dict(name="lines", lengths=lengths, n=25, style="compact", seed=1),
    ]
    c.tokens_per_batch = 8192
    return c
