"""The quick start: a Llama trained on 256 tokens, read at up to eight times that.

    giraffe run experiments/quickstart

giraffe-mini (1.3 million parameters, inside the package) is measured at 1, 2, 4 and 8 times its trained length with
plain RoPE and eight other ways to read positions, as it is; then twice more after a short fine-tuning at 4 times the
length. Takes some seven minutes on two CPU cores and writes runs/quickstart/report.html. Expect, at 1,024 tokens,
perplexity above 200 for plain RoPE and below 30 for self_extend, and line retrieval at 0% and 100%. See README.md
beside this file.
"""

import sysconfig
from pathlib import Path

from ml_collections import ConfigDict

TRAINED_LEN = 256
LENGTHS = (256, 512, 1024, 2048)
# Long documents that every machine has: sources of Python's standard library. These were kept from giraffe-mini.
STDLIB = Path(sysconfig.get_path("stdlib"))
HELDOUT = ("argparse.py", "heapq.py", "json/decoder.py", "subprocess.py", "asyncio/streams.py")

METHODS = {
    "plain": [],
    "linear 4": [dict(name="linear", factor=4.0)],
    "ntk 4": [dict(name="ntk", factor=4.0)],
    "ntk 8": [dict(name="ntk", factor=8.0)],
    "dynamic": [dict(name="dynamic", factor=1.0)],
    "yarn 4": [dict(name="yarn", factor=4.0)],
    "power": [dict(name="power", exponent=0.5)],
    "truncate": [dict(name="truncate", cutoff_len=float(TRAINED_LEN))],
    "self_extend": [dict(name="self_extend", window=128, group=16)],
}


def fine_tuning() -> ConfigDict:
    """Returns a short training at four times the trained length: retrieval documents, and text so as to keep it."""
    c = ConfigDict()
    c.steps = 40
    c.save_every = 40
    c.keep = 1
    c.data = ConfigDict()
    c.data.seq_len = 4 * TRAINED_LEN
    c.data.batch_size = 4
    c.data.sources = [
        dict(kind="synthetic", weight=0.75, synthetic=dict(kinds=("lines", "passkey"), min_len=128, answer_weight=4.0)),
        dict(kind="text", path=str(STDLIB / "email" / "*.py"), weight=0.25),
    ]
    c.optim = dict(lr=1e-3, schedule="linear", warmup_steps=10, final_lr=1e-5)
    return c


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.name = "quickstart"
    c.title = "A Llama trained on 256 tokens, read at 2,048"
    c.question = (
        "Which change to how a model knows where its tokens are carries it past its trained length: at once, and after "
        "a minute of fine-tuning?"
    )
    c.source = "giraffe-mini"
    c.original_len = TRAINED_LEN
    c.variants = [dict(name=name, positions=positions) for name, positions in METHODS.items()]
    c.variants += [
        dict(name=f"{name} + training", positions=METHODS[name], train=fine_tuning()) for name in ("ntk 8", "yarn 4")
    ]
    c.tasks = [
        dict(
            name="perplexity",
            lengths=LENGTHS,
            documents=[str(STDLIB / name) for name in HELDOUT],
            protocol="strided",
            n=5,
        ),
        dict(name="lines", lengths=LENGTHS, n=20, style="compact"),
        dict(name="passkey", lengths=LENGTHS, n=4, style="compact"),
    ]
    c.tokens_per_batch = 8192
    return c
