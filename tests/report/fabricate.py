"""Rows of an experiment that never ran, like the quick start's: nine variants, three of them trained too, three tasks.

Windows and questions are the same for all variants and differ in how hard they are, as real ones do.
"""

import json
import math

import numpy as np

from giraffe_jax import records

LENGTHS = (256, 512, 1024, 2048)
METHODS = {
    "plain": [],
    "linear 4": [{"name": "linear", "factor": 4.0}],
    "ntk 4": [{"name": "ntk", "factor": 4.0}],
    "ntk 8": [{"name": "ntk", "factor": 8.0}],
    "yarn 4": [{"name": "yarn", "factor": 4.0}],
    "yarn 8": [{"name": "yarn", "factor": 8.0}],
    "dynamic": [{"name": "dynamic", "factor": 1.0}],
    "power": [{"name": "power", "exponent": 0.5}],
    "truncate": [{"name": "truncate", "cutoff_len": 256.0}],
}
TRAINED = {f"{name} + training": name for name in ("plain", "linear 4", "yarn 4")}
# variant: lines right, passkeys right, perplexity, at each length
FIGURES = {
    "plain": ((0.98, 0.75, 0.13, 0.00), (1.00, 0.35, 0.00, 0.00), (29, 63, 624, 776)),
    "linear 4": ((0.03, 0.02, 0.02, 0.00), (0.82, 0.58, 0.00, 0.00), (105, 106, 106, 173)),
    "ntk 4": ((0.98, 1.00, 0.65, 0.03), (1.00, 0.70, 0.00, 0.00), (30.3, 30.3, 96, 331)),
    "ntk 8": ((0.98, 0.95, 0.90, 0.23), (0.98, 0.55, 0.03, 0.00), (33, 38, 147, 903)),
    "yarn 4": ((0.97, 0.95, 0.92, 0.37), (0.85, 0.95, 0.98, 0.40), (37, 37, 40, 345)),
    "yarn 8": ((1.00, 1.00, 0.92, 0.58), (0.50, 0.73, 0.78, 0.85), (38.7, 40.0, 43.0, 44.8)),
    "dynamic": ((0.98, 0.97, 0.65, 0.23), (1.00, 0.37, 0.00, 0.00), (28.9, 35.7, 96, 903)),
    "power": ((0.00, 0.00, 0.00, 0.00), (0.00, 0.00, 0.00, 0.00), (410, 420, 455, 520)),
    "truncate": ((0.05, 0.00, 0.00, 0.00), (0.10, 0.00, 0.00, 0.00), (260, 270, 300, 380)),
    "plain + training": ((0.96, 0.94, 0.57, 0.02), (1.00, 0.99, 0.42, 0.00), (30.2, 30.2, 31.9, 48)),
    "linear 4 + training": ((0.93, 0.93, 0.83, 0.26), (1.00, 1.00, 0.98, 0.08), (33.3, 33.3, 33.4, 192)),
    "yarn 4 + training": ((1.00, 0.99, 0.96, 0.32), (1.00, 0.98, 0.98, 0.05), (30.6, 30.6, 30.9, 53)),
}
WINDOWS, SCORED = 16, 32
DEPTHS = 5


def manifest():
    train = {"steps": 50, "data": {"seq_len": 1024}}
    variants = [{"name": name, "positions": positions, "train": None} for name, positions in METHODS.items()]
    variants += [{"name": n, "positions": METHODS[m], "train": train} for n, m in TRAINED.items()]
    config = {
        "name": "fabricated",
        "title": "How far can a small Llama read?",
        "question": "Trained on 256 tokens: which change to its positions carries it to 1,024 and beyond?",
        "variants": variants,
    }
    model = {"parameters": 590_464, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32}
    model |= {"dtype": "float32", "precision": "highest"}
    return {
        "config": config,
        "source": {"name": "made-up", "fingerprint": "0123456789abcdef"},
        "model": model | {"d_model": 128, "vocab_size": 1280, "theta": 10000.0, "original_len": 256},
        "original_len": 256,
        "date": "2000-01-01",
        "command": "giraffe run experiments/fabricated",
        "versions": {"python": "3.11.2", "jax": "0.10.2", "commit": "abcdef012345"},
    }


def rows(seed=0, examples=40, figures=FIGURES, whole=False, documents=8):
    """Rows with these figures: perplexity exact up to rounding, shares of right answers as near as `examples` allow.

    `whole`: passkeys are generated too, and their rows hold the question, what was expected and the output. The windows
    are of so many `documents`, 16 of them or one of each.
    """
    count = max(WINDOWS, documents)
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 0.35, count)
    hard -= hard.mean()
    asked = {(task, n): rng.permutation(examples) for task in ("lines", "passkey") for n in LENGTHS}
    for variant, (lines, passkeys, perplexities) in figures.items():
        head = {"variant": variant, "trained": variant in TRAINED}
        for k, length in enumerate(LENGTHS):
            own = rng.normal(0, 0.05, count)
            for i, nll in enumerate(math.log(perplexities[k]) + hard + own - own.mean()):
                yield head | {
                    "task": "perplexity", "length": length, "example": i, "document": f"book-{i % documents}",
                    "window": i // documents, "protocol": "aligned", "metrics": {"nll": float(nll), "tokens": SCORED},
                    "bins": bins(length, perplexities, float(nll)),
                }  # fmt: skip
            for task, shares in (("lines", lines), ("passkey", passkeys)):
                ease = asked[task, length] + rng.normal(0, examples / 20, examples)
                right = np.argsort(np.argsort(ease)) < round(shares[k] * examples)
                for i in range(examples):
                    row = head | {
                        "task": task, "length": length, "example": i, "depth": (i % DEPTHS) / (DEPTHS - 1),
                        "metrics": {
                            "teacher": int(right[i]),
                            "answer_nll": float(0.1 + 3 * (1 - right[i]) + rng.random()),
                        },
                    }  # fmt: skip
                    yield row | generated(row) if whole and task == "passkey" else row


def generated(row):
    """What a row of a generated answer holds more."""
    right, number = row["metrics"]["teacher"], 10_000 + 37 * row["example"]
    return {
        "metrics": row["metrics"] | {"generate": right},
        "question": "... The grass is green. The sky is blue.\nWhat is the pass key? The pass key is",
        "expected": number,
        "output": f" {number}. Remember it." if right else " 1, 1, 1 & <the sky>",
    }


def training(directory):
    """The metrics of three runs of 50 steps whose loss falls as exp, with held-out losses each tenth step."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(TRAINED):
        where = directory / "train" / records.slug(name)
        where.mkdir(parents=True)
        lines = []
        for step in range(1, 51):
            loss = 3.4 + 0.2 * k + math.exp(-step / 12)
            lines.append({"step": step, "loss": loss + float(rng.normal(0, 0.08)), "lr": 1e-3})
            lines += [{"step": step, "eval_loss": loss + 0.02}] if step % 10 == 0 else []
        (where / "metrics.jsonl").write_bytes(b"".join(records.encode(line) for line in lines))


def bins(length, perplexities, nll):
    """Sums by position: the loss of each context is that of its length, up to the mean that the row has."""
    edges = np.unique(np.round(np.geomspace(1, length, 17)).astype(int))
    shape = [np.interp(math.log(high), np.log(LENGTHS), np.log(perplexities)) for high in edges[1:]]
    counts = np.diff(edges)
    shift = nll - shape[-1]
    return [
        [int(low), int(high), float((mean + shift + 1 / low) * n), int(n)]
        for low, high, mean, n in zip(edges, edges[1:], shape, counts, strict=False)
    ]


def write(directory, whole=False, **keywords):
    """A work directory with these rows; `whole` with all that a report shows."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "experiment.json").write_text(json.dumps(manifest()))
    (directory / "results.jsonl").write_bytes(b"".join(records.encode(row) for row in rows(whole=whole, **keywords)))
    if whole:
        training(directory)
    return directory
