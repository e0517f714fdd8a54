"""Learned and searched frequencies against the best that were made by hand, at 4 and 8 times the trained length.

    python experiments/learned/all.py

makes the tables searched_*.json beside this file and measures everything; README.md says how long that takes and what
came out. A part of it alone, a search of `needles`, `text` or `longrope2` at 4 or 8 times, or the experiment with the
tables that are there (a table that is not, and what is trained from it, is left out):

    giraffe search --config=experiments/learned/config.py:longrope2,8 --workdir=runs/searched-longrope2-8
    giraffe run experiments/learned
"""

import json
import sysconfig
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

HERE = Path(__file__).parent
TRAINED_LEN = 256
STDLIB = Path(sysconfig.get_path("stdlib"))
READ = str(STDLIB / "xml" / "*" / "*.py")  # by searches and trainings
# By the evaluation. The model was trained on neither these nor READ, see experiments/mini/prepare.py.
HELDOUT = (
    "argparse.py", "asyncio/streams.py", "dbm/dumb.py", "heapq.py", "html/parser.py", "json/decoder.py",
    "subprocess.py", "tomllib/_parser.py", "unittest/case.py", "unittest/loader.py", "unittest/mock.py",
    "unittest/runner.py", "unittest/suite.py", "venv/__init__.py", "xmlrpc/client.py", "zoneinfo/_zoneinfo.py",
)  # fmt: skip
TOKENS = 2048  # to a step of training, and to a batch of the objective of a search
BATCHES = 4  # of the objective, for each table
FACTORS = (4, 8)
KINDS = (
    "needles",
    "text",
    "longrope2",
)  # what is searched: LongRoPE's recipe on two objectives, LongRoPE2's on needles

FACTOR_METHODS = ("linear", "ntk", "yarn")
BY_HAND = {
    "plain": [],
    **{f"{name} {factor}": [dict(name=name, factor=float(factor))] for name in FACTOR_METHODS for factor in FACTORS},
    "ntk 16": [dict(name="ntk", factor=16.0)],
    "power": [dict(name="power", exponent=0.5)],
    "truncate": [dict(name="truncate", cutoff_len=float(TRAINED_LEN))],
    "self_extend": [dict(name="self_extend", window=128, group=16)],
}


def sources(kind: str, length: int) -> list[dict[str, Any]]:
    """Returns what is read: documents whose answers alone count ("needles"), text, or for "training" short and long
    documents and text, one to two to one."""

    def synthetic(weight: float, **options: Any) -> dict[str, Any]:
        return dict(kind="synthetic", weight=weight, synthetic=dict(kinds=("lines", "passkey"), **options))

    def text(weight: float) -> dict[str, Any]:
        return dict(kind="text", path=READ, weight=weight)

    if kind == "needles":
        return [synthetic(1.0, min_len=length // 2, drawn_weight=0.0, text_weight=0.0)]
    if kind == "text":
        return [text(1.0)]
    short = synthetic(0.25, min_len=TRAINED_LEN // 2, max_len=TRAINED_LEN, answer_weight=4.0)
    return [short, synthetic(0.5, min_len=2 * TRAINED_LEN, answer_weight=4.0), text(0.25)]


def data(kind: str, factor: int) -> dict[str, Any]:
    length = factor * TRAINED_LEN
    return dict(seq_len=length, batch_size=TOKENS // length, sources=sources(kind, length), seed=7)


def search(kind: str, factor: int) -> ConfigDict:
    """Returns a search of 8 generations, each table of it measured on 8,192 tokens."""
    read, recipe = ("needles", "longrope2") if kind == "longrope2" else (kind, "longrope")
    c = ConfigDict(dict(source="giraffe-mini", factor=float(factor), data=data(read, factor), generations=8))
    c.recipe, c.batches, c.model = recipe, BATCHES, dict(original_len=TRAINED_LEN)
    return c


def training(factor: int, frequencies: dict | None = None) -> dict[str, Any]:
    """Returns 40 steps at `factor` times the trained length; all variants read the same documents."""
    optim = dict(lr=1e-3, schedule="linear", warmup_steps=10, final_lr=1e-5)
    if frequencies and frequencies["train"] == "alone":
        optim |= dict(lr=3e-2, final_lr=1e-3)
    return dict(steps=40, save_every=40, keep=1, data=data("training", factor), optim=optim, frequencies=frequencies)


def variants() -> list[dict[str, Any]]:
    found = [dict(name=name, positions=positions) for name, positions in BY_HAND.items()]
    for factor in FACTORS:
        files = {kind: HERE / f"searched_{kind}_{factor}.json" for kind in KINDS}
        tables = {kind: json.loads(file.read_text()) for kind, file in files.items() if file.is_file()}
        found += [dict(name=f"searched {factor}, {kind}", positions=table) for kind, table in tables.items()]
        if "longrope2" in tables:
            name, table = f"searched {factor}, longrope2", tables["longrope2"]
            mixed = [dict(name="mixed", choices=[[], table])]
            found += [
                dict(name=f"{name} + training", positions=table, train=training(factor)),
                dict(name=f"{name} + mixed training", positions=mixed, train=training(factor)),
            ]
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
    """Returns the experiment; the config of a search with `needles,4`, `text,8`, `longrope2,8` ..."""
    if argument:
        known = {f"{kind},{factor}": (kind, factor) for kind in KINDS for factor in FACTORS}
        if argument not in known:
            raise ValueError(f"experiments/learned/config.py:{argument}: searches are {' '.join(known)}.")
        return search(*known[argument])
    c = ConfigDict()
    c.name = "learned"
    c.title = "Learned and searched frequencies against those made by hand"
    c.question = (
        "Does a table of frequencies that was learned by gradient, or searched by evolution, carry a Llama trained on "
        "256 tokens further than the formulas do, at 1,024 and at 2,048 tokens? What is left at 256?"
    )
    c.source = "giraffe-mini"
    c.original_len = TRAINED_LEN
    c.variants = variants()
    c.seeds = (0, 1, 2)
    lengths = (TRAINED_LEN, *(factor * TRAINED_LEN for factor in FACTORS))
    documents = [str(STDLIB / name) for name in HELDOUT]
    c.tasks = [
        dict(name="perplexity", lengths=lengths, documents=documents, protocol="strided", n=len(HELDOUT)),
        dict(name="lines", lengths=lengths, n=100, style="compact", seed=1),
    ]
    c.tokens_per_batch = 8192
    return c
