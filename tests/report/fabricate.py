"""Rows of an experiment that never ran, for the report's tests: eight methods, two of them trained too, three tasks."""

import json
import math

import numpy as np

from giraffe_jax import records

LENGTHS = (256, 512, 1024, 2048)
METHODS = {
    "plain": ([], 0.95),
    "linear 4": ([{"name": "linear", "factor": 4.0}], 0.30),
    "ntk 4": ([{"name": "ntk", "factor": 4.0}], 0.22),
    "ntk 8": ([{"name": "ntk", "factor": 8.0}], 0.16),
    "dynamic": ([{"name": "dynamic", "factor": 1.0}], 0.18),
    "yarn 4": ([{"name": "yarn", "factor": 4.0}], 0.12),
    "power": ([{"name": "power", "exponent": 0.5}], 0.5),
    "truncate": ([{"name": "truncate", "low": 0.1, "high": 0.2}], 0.75),
}
TRAINED = {"linear 4 + training": "linear 4", "yarn 4 + training": "yarn 4"}


def manifest():
    variants = [{"name": name, "positions": positions, "train": None} for name, (positions, _) in METHODS.items()]
    variants += [{"name": n, "positions": METHODS[m][0], "train": {"steps": 200}} for n, m in TRAINED.items()]
    config = {
        "name": "fabricated",
        "title": "How far can a small Llama read?",
        "question": "Trained on 256 tokens: which change to its positions carries it to 1,024 and beyond?",
        "variants": variants,
    }
    versions = {"python": "3.11.2", "jax": "0.10.2"}
    source = {"name": "made-up", "fingerprint": "0123456789abcdef"}
    return {"config": config, "source": source, "original_len": 256, "versions": versions}


def rows(seed=0, examples=20):
    rng = np.random.default_rng(seed)
    for entry in manifest()["config"]["variants"]:
        name, trained = entry["name"], entry["train"] is not None
        slope = METHODS[TRAINED.get(str(name), str(name))][1] * (0.1 if trained else 1.0)
        for length in LENGTHS:
            over = max(0.0, math.log2(length / 256))
            for i in range(8):
                edges = np.unique(np.round(np.geomspace(1, length, 17)).astype(int))
                bins, total = [], 0.0
                for low, high in zip(edges, edges[1:], strict=False):
                    n = int(high - low)
                    mean = (
                        2.2 + 1.5 / math.sqrt(low) + slope * 2 * max(0.0, math.log2(high / 256)) + rng.normal(0, 0.06)
                    )
                    bins.append([int(low), int(high), mean * n, n])
                    total += mean * n
                tokens = sum(b[3] for b in bins)
                yield {
                    "variant": name, "trained": trained, "task": "perplexity", "length": length, "example": i,
                    "document": f"book-{i}", "protocol": "truncated",
                    "metrics": {"nll": total / tokens, "tokens": tokens}, "bins": bins,
                }  # fmt: skip
            for task, ease in (("lines", 1.3), ("passkey", 0.9)):
                for i in range(examples * 5):
                    depth = (i % 5) / 4
                    chance = 0.98 * math.exp(-ease * slope * 2 * over * (1.2 - 0.5 * depth))
                    right = int(rng.random() < chance)
                    yield {
                        "variant": name, "trained": trained, "task": task, "length": length, "example": i,
                        "depth": depth,
                        "metrics": {"teacher": right, "answer_nll": 0.1 + (1 - chance) * 3 + rng.random()},
                    }  # fmt: skip


def write(directory, **keywords):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "experiment.json").write_text(json.dumps(manifest()))
    (directory / "results.jsonl").write_bytes(b"".join(records.encode(row) for row in rows(**keywords)))
    return directory
