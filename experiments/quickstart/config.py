"""The quick start: a Llama trained on 256 tokens, read at up to eight times that.

    giraffe run experiments/quickstart --jobs=2

giraffe-mini (0.6 million parameters, inside the package) is measured at 1, 2, 4 and 8 times its trained length with
plain RoPE and eight other ways to read positions, as it is; then three of them once more after a short fine-tuning at 4
times the length. Takes some minutes on two CPU cores and writes runs/quickstart/report.html. README.md beside this
file says what to expect.
"""

import sysconfig
from pathlib import Path

from ml_collections import ConfigDict

TRAINED_LEN = 256
LENGTHS = (256, 512, 1024, 2048)
# Long documents that every machine has: sources of Python's standard library that giraffe-mini was not trained on.
STDLIB = Path(sysconfig.get_path("stdlib"))
HELDOUT = (
    "argparse.py", "heapq.py", "json/decoder.py", "subprocess.py", "asyncio/streams.py", "xml/dom/minidom.py",
    "xml/etree/ElementTree.py", "unittest/case.py", "html/parser.py", "xmlrpc/client.py", "zoneinfo/_zoneinfo.py",
    "tomllib/_parser.py",
)  # fmt: skip

METHODS = {
    "plain": [],
    "linear 4": [dict(name="linear", factor=4.0)],
    "ntk 4": [dict(name="ntk", factor=4.0)],
    "ntk 8": [dict(name="ntk", factor=8.0)],
    "yarn 4": [dict(name="yarn", factor=4.0)],
    "yarn 8": [dict(name="yarn", factor=8.0)],
    "dynamic": [dict(name="dynamic", factor=1.0)],
    "power": [dict(name="power", exponent=0.5)],
    "truncate": [dict(name="truncate", cutoff_len=float(TRAINED_LEN))],
}
TRAINED = ("plain", "linear 4", "yarn 4")


def fine_tuning() -> ConfigDict:
    """Returns a short training at four times the trained length: retrieval documents, and text so as to keep it."""
    c = ConfigDict()
    c.steps = 100
    c.save_every = 100
    c.keep = 1
    c.data = ConfigDict()
    c.data.seq_len = 4 * TRAINED_LEN
    c.data.batch_size = 4
    kinds = ("lines", "lines", "records", "passkey")
    c.data.sources = [
        dict(kind="synthetic", synthetic=dict(kinds=kinds, lengths=(2 * TRAINED_LEN, 4 * TRAINED_LEN))),
        dict(kind="text", path=str(STDLIB / "email" / "*.py")),
    ]
    c.optim = dict(lr=1e-3, schedule="linear", warmup_steps=10, final_lr=1e-5)
    return c


def get_config(source: str = "giraffe-mini") -> ConfigDict:
    c = ConfigDict()
    c.name = "quickstart"
    c.title = "A Llama trained on 256 tokens, read at 2,048"
    c.question = (
        "Which change of its positions extends the model beyond its trained length: without training, and after a "
        "minute of fine-tuning?"
    )
    c.source = source
    c.original_len = TRAINED_LEN
    c.variants = [dict(name=name, positions=positions) for name, positions in METHODS.items()]
    c.variants += [dict(name=f"{name} + training", positions=METHODS[name], train=fine_tuning()) for name in TRAINED]
    documents = [str(STDLIB / name) for name in HELDOUT]
    c.tasks = [
        dict(name="perplexity", lengths=LENGTHS, documents=documents, protocol="aligned", stride=32, n=36),
        dict(name="lines", lengths=LENGTHS, n=40, style="compact"),
        dict(name="passkey", lengths=LENGTHS, n=8, style="compact"),
    ]
    c.tokens_per_batch = 8192
    return c
