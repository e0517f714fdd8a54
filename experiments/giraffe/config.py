"""The Giraffe paper's grid (arXiv:2308.10882): which change of positions to train with, and at which scale to read.

    giraffe run experiments/giraffe/config.py:/data/Llama-13b-hf,/data/redpajama          # as published, 13B or 7B
    giraffe run experiments/giraffe                                                       # on giraffe-mini, as it ships

At full size the argument is the weights, then the text: Llama 1 (trained on 2,048 tokens; windows of 4,096) or Llama 2
(4,096; 8,192). On giraffe-mini (256) everything is in proportion: windows of 512, T = 256. Each training method is
trained once and read at its own scale; `READ` adds the paper's other scales, which share the training.

Published: AdamW, 2e-5, 300 steps of warm-up, linear decay, 32 rows of 4,096 tokens, 2,400 to 8,100 steps by method
(here `STEPS`, the same for all, so that methods differ in nothing else); no begin token; documents of over 20,480
characters. README.md beside this file has the published numbers, what came out here, and what differs.
"""

import sysconfig
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

STDLIB = Path(sysconfig.get_path("stdlib"))
MINI = "giraffe-mini"
STEPS = 3000  # between the published 2,400 and 8,100
LENGTHS = (1.25, 2, 3, 4, 6, 8, 10)  # in trained lengths: 2.5 to 20 thousand tokens of 2,048


def scaled(factor: float) -> list[dict[str, Any]]:
    return [dict(name="linear", factor=factor)] if factor > 1 else []


def trained_with(original_len: int) -> dict[str, list[dict[str, Any]]]:
    """Returns the methods that are trained with, by name: the paper's, then the combinations it left out."""
    power, truncate = dict(name="power", exponent=0.5), dict(name="truncate", cutoff_len=float(original_len))
    return {
        "scale 1": [],
        "scale 4": scaled(4.0),
        "scale 16": scaled(16.0),
        "power 0.5": [power],
        "truncated": [truncate],
        "randomised, scale 4": [*scaled(4.0), dict(name="randomize")],
        # The released evaluation reads at 8,192, and training falls from there to 128.
        "xPos": [dict(name="xpos", scale_base=4.0 * original_len)],
        "scale 4, truncated": [*scaled(4.0), truncate],
        "power 0.5, randomised": [power, dict(name="randomize")],
        "yarn 4": [dict(name="yarn", factor=4.0)],  # not the paper's: what one would take today
    }


# Train scale -> eval scale, beyond its own: the paper's, and down as well as up.
READ = {"scale 1": (2.0,), "scale 4": (8.0,), "scale 16": (12.0, 32.0)}


def training(source: str, text: str, original_len: int) -> ConfigDict:
    """Returns the training of a variant: the paper's at full size, a budget of minutes on giraffe-mini."""
    mini = source == MINI
    c = ConfigDict()
    c.steps = 400 if mini else STEPS
    c.save_every = 400 if mini else 300
    c.keep = 1
    c.data = ConfigDict()
    c.data.seq_len = 2 * original_len
    c.data.batch_size = 8 if mini else 32
    if mini:
        # Half of the rows ask questions, as in its own training: text alone would teach it to forget them.
        kinds = ("lines", "lines", "records", "copy", "passkey")
        c.data.sources = [
            dict(kind="synthetic", synthetic=dict(kinds=kinds, lengths=(original_len, 2 * original_len))),
            dict(kind="text", path=str(STDLIB / "email" / "*.py")),
        ]
        c.optim = dict(lr=1e-3, schedule="linear", warmup_steps=40, final_lr=1e-5)
    else:
        c.data.sources = [dict(kind="parquet" if text.endswith(".parquet") else "jsonl", path=text)]
        c.optim = dict(lr=2e-5, schedule="linear", warmup_steps=300, final_lr=0.0)
    return c


def variants(source: str, text: str, original_len: int) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [dict(name="as it is", positions=[])]
    for name, positions in trained_with(original_len).items():
        train = training(source, text, original_len)
        out.append(dict(name=name, positions=positions, train=train))
        for scale in READ.get(name, ()):
            out.append(
                dict(name=f"{name} -> {scale:g}", positions=positions, eval_positions=scaled(scale), train=train)
            )
    return out


def get_config(about: str = MINI) -> ConfigDict:
    source, _, text = about.partition(",")
    mini = source == MINI
    original_len = 256 if mini else 4096 if "-2-" in Path(source).name else 2048
    lengths = [int(times * original_len) for times in LENGTHS]
    c = ConfigDict()
    c.name = "giraffe"
    c.title = "The Giraffe paper's grid" + (", on giraffe-mini" if mini else "")
    c.question = (
        "Which change of positions is worth training with, and does reading at another scale than trained help?"
    )
    c.source = source
    c.original_len = original_len
    c.variants = variants(source, text, original_len)
    style = dict(style="compact") if mini else dict(cue=False, scoring=["generate"], new_tokens=35)
    c.tasks = [dict(name="lines", lengths=lengths, n=100 if mini else 50, **style)]
    if mini:
        held_out = ("argparse.py", "heapq.py", "json/decoder.py", "subprocess.py", "unittest/case.py", "html/parser.py")
        documents = [str(STDLIB / name) for name in held_out]
        c.tasks += [
            dict(name="passkey", lengths=lengths, n=8, style="compact"),
            dict(name="perplexity", lengths=lengths, documents=documents, stride=32, n=36),
        ]
    c.model = dict() if mini else dict(attention="blockwise", remat="full", dtype="bfloat16")
    c.tokens_per_batch = 8192 if mini else 65536
    return c
