"""Plans the base configs on slices of TPUs and on a node of GPUs, none of which has to be there: one row each, and the
README's table of all rows.

    pip install "giraffe-jax[plan]"                      # and [plan-gpu] for the GPUs
    python experiments/plan/run.py                       # hours of CPU; goes on where it ended
    python experiments/plan/run.py --only llama2_7b      # rows whose name contains these letters
    python experiments/plan/run.py --table               # prints the table of the rows in rows.jsonl

Each row is `giraffe plan --json` of experiments/plan/config.py in a process of its own. A row in rows.jsonl is not
planned again; delete its line to repeat it. If the compiler aborts, there is no row, and a line says so.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from giraffe_jax import records

HERE = Path(__file__).parent
# Of TPUs Google's names: v5p-N counts N TensorCores, two to a chip; v5e-N and v6e-N count chips.
SLICES = {
    "v5e-256": ("v5e:16x16", 256),
    "v5p-16": ("v5p:2x2x2", 8),
    "v5p-64": ("v5p:2x4x4", 32),
    "v5p-128": ("v5p:4x4x4", 64),
    "v6e-256": ("v6e:16x16", 256),
    "8 x H100": ("h100:1x8", 8),
}
MODELS = ("llama2_7b", "llama2_13b", "llama2_70b", "llama3_1_8b", "llama3_1_70b")
LENGTHS = (4096, 32768, 131072)


def cells() -> list[dict[str, Any]]:
    """Returns what is planned: name, slice, topology, chips and the argument of config.py."""
    wanted = [(model, length, name, "") for name in SLICES for model in MODELS for length in LENGTHS]
    wanted += [("llama3_1_8b", 1_048_576, "v5p-128", "")]
    for name in ("v5p-16", "8 x H100"):
        wanted += [("llama2_7b", 32768, name, ",lora"), ("llama3_1_8b", 131072, name, ",lora")]
    found = []
    for model, length, where, more in wanted:
        topology, chips = SLICES[where]
        about = f"{model},{length},{chips}{more}"
        found.append(dict(name=f"{about} {where}", about=about, slice=where, topology=topology, chips=chips))
    return found


def plan(words: Iterable[str]) -> dict[str, Any] | None:
    """Returns what `giraffe plan --json` says, or None where it did not come about, which is said."""
    command = [sys.executable, "-m", "giraffe_jax.cli", "plan", *words, "--json", "--tries=0"]
    done = subprocess.run(command, cwd=HERE.parent.parent, capture_output=True, text=True)
    if done.returncode in (0, 1) and done.stdout.startswith("{"):
        return json.loads(done.stdout)
    said = [line for line in done.stderr.splitlines() if line.startswith("giraffe: ") or "Check failed" in line]
    print(f"no plan, exit status {done.returncode}: {said[-1] if said else 'no message'}", flush=True)
    return None


def fill(path: Path, wanted: Iterable[Mapping[str, Any]], words: Any) -> None:
    """Appends the row of each cell that is not there; `words(cell)` are the flags of its plan."""
    with records.Rows(path) as rows:
        there = {row["name"] for row in records.read_rows(path)}
        for cell in wanted:
            if cell["name"] in there:
                continue
            print(cell["name"], flush=True)
            found = plan(words(cell))
            if found is not None:
                rows.append({**cell, **found})


def put(table: str, mark: str) -> None:
    """Puts a table into README.md, between the comments that have its mark."""
    readme = HERE / "README.md"
    before, start, rest = readme.read_text().partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- end of {mark} -->")
    if not start or not end:
        raise ValueError(f"{readme}: no comments <!-- {mark} --> and <!-- end of {mark} -->.")
    records.write_atomically(readme, f"{before}{start}{table}\n{end}{after}")


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns rows as Markdown."""
    lines = [
        "| model, tokens | slice | chips | mesh | rows a step, parts | fits | peak or needed GiB of GiB "
        "| executed / model | seconds a step, at least | tokens/s a chip, at most | attention |",
        "|" + "---|" * 11,
    ]
    for row in rows:
        model, length, _, *lora = row["about"].split(",")
        mesh = " ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
        size = row["needed_bytes"] if row["peak_bytes"] is None else row["peak_bytes"]
        known = row["executed_flops"] is not None
        lines.append(
            f"| {' '.join([model, *lora])} {int(length):,} | {row['slice']} | {row['chips']} | {mesh} "
            f"| {row['batch_size']}, {row['accumulate']} | {'yes' if row['fits'] else 'no'} "
            f"| {size / 2**30:.2f} of {row['hbm_bytes'] / 2**30:.2f} "
            + (
                f"| {row['executed_flops'] / row['model_flops']:.3f} | {row['step_seconds_bound']:.3g} "
                if known
                else "| | "
            )
            + (f"| {row['tokens_per_second']:,.0f} " if known else "| ")
            + f"| {row['attention'].split(',')[0]} |"
        )
    return "\n".join(lines)


def missing(wanted: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]) -> str:
    there = {row["name"] for row in rows}
    names = [cell["name"] for cell in wanted]
    return f"{len(there & set(names))} of {len(names)} rows are planned."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="letters in the name of what is planned")
    parser.add_argument("--table", action="store_true", help="plan nothing")
    args = parser.parse_args()
    path, wanted = HERE / "rows.jsonl", cells()
    if not args.table:
        chosen = [cell for cell in wanted if args.only in cell["name"]]
        fill(
            path,
            chosen,
            lambda cell: [f"--config={HERE / 'config.py'}:{cell['about']}", f"--topology={cell['topology']}"],
        )
    order = {cell["name"]: i for i, cell in enumerate(wanted)}
    rows = sorted((row for row in records.read_rows(path) if row["name"] in order), key=lambda row: order[row["name"]])
    put(f"{missing(wanted, rows)}\n\n{table(rows)}", "base configs")


if __name__ == "__main__":
    main()
