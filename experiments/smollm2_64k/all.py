"""All of experiments/smollm2_64k by one command: measure, train, choose the two best, train them further, export.

    python experiments/smollm2_64k/all.py smollm2_data runs/smollm2
    timeout --foreground -s INT 600 python experiments/smollm2_64k/all.py smollm2_data runs/smollm2
    python experiments/smollm2_64k/all.py smollm2_data runs/smollm2_try --try

Started again, the command goes on where it ended, so a GPU that is available for ten minutes at a time is enough (the
second line: a training finishes its step and saves it). --try does the same with two steps at 16,384 tokens on a CPU.

The two best trainings at 32,768 tokens are those with the most right answers at the longest length, the mean over
tasks; the best one that Hugging Face and llama.cpp can express is exported as WORKDIR/best-NAME-hf and
WORKDIR/best-NAME.gguf, and `giraffe check` compares both with this library on the first held-out work (extra `oracle`).
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from giraffe_jax import report
from giraffe_jax.config import build, load
from giraffe_jax.lab.cells import training_of
from giraffe_jax.lab.spec import ExperimentConfig
from giraffe_jax.records import slug
from giraffe_jax.report import metrics
from giraffe_jax.report.scores import Results

HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of the first command that did not succeed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="the folder that prepare.py writes, or has written")
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="where results, trainings and exports go")
    parser.add_argument("--try", dest="small", action="store_true", help="two steps at 16,384 tokens, on a CPU")
    args = parser.parse_args(argv)
    if not (args.data / "corpus.json").is_file():  # what prepare.py writes last
        follow([sys.executable, str(HERE / "prepare.py"), str(args.data)])
    parts = {"try": "try"} if args.small else {"zero": "zero", "32k": "train,32768", "32k_text": "train,32768,text"}
    for folder, part in parts.items():
        giraffe("run", config(args.data, part), f"--workdir={args.workdir / folder}")
    trained = "try" if args.small else "32k"
    ranking = ranked(report.read([args.workdir / trained]))
    print(f"trained variants, the best first: {', '.join(ranking)}", flush=True)
    if not args.small:
        best = "+".join(ranking[:2])
        giraffe("run", config(args.data, f"train,65536,{best}"), f"--workdir={args.workdir / '64k'}")
        folders = [str(args.workdir / folder) for folder in (*parts, "64k")]
        giraffe("report", *folders, f"--out={args.workdir / 'report'}")
    stem = export(config(args.data, parts[trained]), args.workdir / trained, ranking, args.workdir)
    text = min((args.data / "heldout").glob("*.txt"))
    lengths = ("8192", "16384") if args.small else ("8192", "32768")
    giraffe("check", "hf", f"{stem}-hf", f"--text={text}", "--lengths", *lengths)
    giraffe("check", "gguf", f"{stem}.gguf", f"--text={text}", "--lengths", "8192", "16384")
    return 0


def config(data: Path, part: str) -> str:
    """Returns the argument of `giraffe run` for a part of the experiment."""
    return f"{HERE / 'config.py'}:{data},{part}"


def ranked(results: Results) -> list[str]:
    """Returns the names of the trained variants, the best first: by the mean over tasks of the share of right answers
    at the longest length; equal ones by perplexity there.

    Variants that are read with other positions than they were trained with are left out: they are no trainings of their
    own.
    """
    own = {v["name"] for v in results.manifest["config"]["variants"] if not v.get("eval_positions")}

    def order(variant: str) -> tuple[float, float]:
        right, losses = [], []
        for task in results.tasks:
            rows = results.of(task, variant, max(results.lengths(task)))
            metric = metrics.of(results.of(task))[0]
            if metric == metrics.PERPLEXITY:
                tokens = [row["metrics"]["tokens"] for row in rows]
                losses.append(np.average([row["metrics"]["nll"] for row in rows], weights=tokens))
            else:
                right.append(np.mean([row["metrics"][metric.name] for row in rows]))
        return -float(np.mean(right)), float(np.mean(losses))

    return sorted((v for v in results.variants if results.trained[v] and v in own), key=order)


def export(file: str, workdir: Path, ranking: Sequence[str], out: Path) -> Path:
    """Exports the first variant that both formats can express, unless that is done; returns the paths' common part."""
    experiment = build(ExperimentConfig, load(file))
    for name in ranking:
        variant = next(v for v in experiment.variants if v.name == name)
        source = str(training_of(experiment, variant, experiment.seeds[0], workdir))
        stem = out / f"best-{slug(name)}"
        for target in (f"{stem}.gguf", f"{stem}-hf"):
            if not Path(target).exists() and follow(command("export", source, target), allowed=(0, 2)) == 2:
                break  # refused: a method that the format cannot express
        else:
            return stem
    raise SystemExit("no training can be exported: Hugging Face or llama.cpp can express none of the methods.")


def giraffe(*arguments: str) -> None:
    """Runs a command of `giraffe`; ends this script where it fails."""
    follow(command(*arguments))


def command(*arguments: str) -> list[str]:
    """Returns the command line of `giraffe` in this Python."""
    return [sys.executable, "-m", "giraffe_jax.cli", *arguments]


def follow(argv: Sequence[str], allowed: Sequence[int] = (0,)) -> int:
    """Runs a command in a process group of its own and returns its exit status; ends this script where that is not
    allowed. The first SIGINT or SIGTERM goes on to the command, which saves what it has."""
    print(f"$ {' '.join(argv)}", flush=True)
    started: list[subprocess.Popen] = []
    signals: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)  # a second one would make the command drop its step
        signals.append(number)
        for process in started:
            process.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    started.append(subprocess.Popen(argv, process_group=0))
    status = started[0].wait()
    if status not in allowed or signals:
        sys.exit(status or 128 + signal.SIGINT)
    return status


if __name__ == "__main__":
    sys.exit(main())
