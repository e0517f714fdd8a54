"""Plans of this library beside MaxText 0.2.4's: the same model, length, batch, chips and mesh, compiled by both.

    pip install "giraffe-jax[plan]"
    python experiments/plan/peer.py                      # hours of CPU; goes on where it ended
    python experiments/plan/peer.py --only 4096          # rows whose name contains these letters
    python experiments/plan/peer.py --table              # prints the table of the rows in peer.jsonl

MaxText's figures are in peer.json: peak GiB a chip, executed over model FLOPs, GB of collectives a chip and step, with
AdamW in float32, bfloat16 compute, splash attention in blocks of 512 and scanned layers. Its remat "minimal" keeps the
outputs of matmuls and is compared with "save_matmuls" here. Its two kinds of context parallelism, all-gather and ring,
have rows of their own, each compared with the same kind here.

Where a device has 32,768 tokens or more and layers are recomputed, this library runs the MLP in chunks of 4,096 tokens
(model.mlp_chunk). One of MaxText's rows is also compared with the other remat policies here.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from typing import Any

from run import HERE, fill, missing, put

from giraffe_jax import records

_REMAT = {"full": "full", "minimal": "save_matmuls"}
OTHERS = ("offload", "offload_residual", "save_attention")  # remat of ours beside the peer's "full" at 32,768 tokens


def cells() -> list[dict[str, Any]]:
    """Returns the peer's rows, each with a name and its figures under "peer"."""
    figures = ("peak_gib", "executed", "collective_gb")
    found = []
    for row in json.loads((HERE / "peer.json").read_text()):
        mesh = " x ".join(f"{axis} {size}" for axis, size in row["mesh"].items())
        name = f"{row['model']} {row['tokens']} {row['topology']} {mesh} {row['sequences']} rows {row['remat']}"
        name += f" {row['context']}" if "context" in row else ""
        asked = {key: value for key, value in row.items() if key not in figures}
        peer = {key: row[key] for key in figures}
        found.append({"name": name, "asked": asked, "peer": peer})
        if (row["model"], row["tokens"], row["mesh"], row["chips"]) == ("llama2_7b", 32768, {"fsdp": 8}, 8):
            found += [
                {"name": f"{name}; ours {ours}", "asked": {**asked, "ours": ours}, "peer": peer} for ours in OTHERS
            ]
    return found


def words(cell: Mapping[str, Any]) -> list[str]:
    """Returns the flags of our plan of a row."""
    asked = cell["asked"]
    mesh = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | asked["mesh"]
    remat = asked.get("ours", _REMAT[asked["remat"]])
    each = asked["tokens"] * asked["sequences"] // (mesh["data"] * mesh["fsdp"] * mesh["context"])
    chunk = 4096 if each >= 32768 and mesh["tensor"] == 1 and remat != "save_matmuls" else 0
    return [
        f"--config={HERE / 'config.py'}:{asked['model']},{asked['tokens']},{asked['chips']}",
        f"--topology={asked['topology']}",
        *[f"--config.mesh.{axis}={size}" for axis, size in mesh.items()],
        f"--config.data.batch_size={asked['sequences']}",
        "--config.accumulate=1",
        f"--config.model.remat={remat}",
        f"--config.model.mlp_chunk={chunk}",
        *([f"--config.model.context={asked['context']}"] if "context" in asked else []),
    ]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns rows as Markdown, ours / the peer's = ratio."""
    lines = [
        "| model, tokens, topology, mesh, rows, remat | peak GiB | executed / model | collectives, GB | attention |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        peer = row["peer"]
        size = row["needed_bytes"] if row["peak_bytes"] is None else row["peak_bytes"]
        parts = [against(size / 2**30, peer["peak_gib"]) + ("" if row["fits"] else " (does not fit)")]
        known = row["executed_flops"] is not None
        parts.append(against(row["executed_flops"] / row["model_flops"], peer["executed"]) if known else "")
        ours = sum(size for by_axes in (row["collective_bytes"] or {}).values() for size in by_axes.values()) / 1e9
        theirs = None if peer["collective_gb"] is None else sum(peer["collective_gb"].values())
        parts.append(against(ours, theirs) if known else "")
        lines.append(f"| {row['name']} | {' | '.join(parts)} | {row['attention'].split(',')[0]} |")
    return "\n".join(lines)


def against(ours: float, theirs: float | None) -> str:
    """Returns "ours / theirs = ratio", or ours alone."""
    return f"{ours:.4g}" if theirs is None else f"{ours:.4g} / {theirs:.4g} = {ours / theirs:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="letters in the name of what is planned")
    parser.add_argument("--table", action="store_true", help="plan nothing")
    args = parser.parse_args()
    path, wanted = HERE / "peer.jsonl", cells()
    if not args.table:
        fill(path, [cell for cell in wanted if args.only in cell["name"]], words)
    order = {cell["name"]: i for i, cell in enumerate(wanted)}
    rows = sorted((row for row in records.read_rows(path) if row["name"] in order), key=lambda row: order[row["name"]])
    put(f"{missing(wanted, rows)}\n\n{table(rows)}", "peer")


if __name__ == "__main__":
    main()
