"""The forest plot: each variant's paired difference, to plain RoPE and to the best, at the lengths that matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from giraffe_jax.report import findings, paired, style
from giraffe_jax.report.labels import clipped
from giraffe_jax.report.paired import Difference
from giraffe_jax.report.scores import Results
from giraffe_jax.report.tables import Table, multiple

Panel = tuple[int, str, str, list[Difference]]  # length, "plain" or "best", its name, each variant less it

ROW, HEAD, FOOT = 0.205, 0.42, 0.5  # inches
NAMES, VALUES = 0.170, 0.148  # of the figure's width, left and right of a panel


def panels(results: Results, table: Table) -> list[Panel]:
    """What is compared at each length that matters: all variants with plain, and with the best there."""
    out, plain = [], results.baseline
    for length in findings.lengths_that_matter(table)[:2]:
        order = table.ranked(length)
        bases = [base for base in (plain, order[0] if order else None) if base is not None]
        for i, base in enumerate(dict.fromkeys(bases)):
            found = paired.differences(results, table.task, table.metric, length, base, table.variants)
            out.append((length, "plain" if i == 0 and base == plain else "best", base, found))
    return out


def draw(
    plt: Any, table: Table, shown: Sequence[Panel], looks: Mapping[str, style.Look], variants: Sequence[str]
) -> Any:
    """A panel per length (across), against plain (above) and against the best of that length (below).

    It has lines for `variants` alone; what a difference has to hold against is the number of all that were looked at.
    """
    stay = paired.holm(d for *_, found in shown for d in found)
    shown = [(n, kind, base, [d for d in found if d.variant in variants]) for n, kind, base, found in shown]
    lengths = list(dict.fromkeys(length for length, *_ in shown))
    rows = [kind for kind in ("plain", "best") if any(k == kind and found for _, k, _, found in shown)]
    if not rows:
        return None
    heights = [max(len(found) for _, k, _, found in shown if k == kind) for kind in rows]
    inches = [HEAD + ROW * count + FOOT for count in heights]
    figure = plt.figure(figsize=(9, sum(inches)))
    for row, kind in enumerate(rows):
        for column, length in enumerate(lengths):
            panel = next((p for p in shown if p[0] == length and p[1] == kind and p[3]), None)
            if panel is None:
                continue
            top = 1 - (sum(inches[:row]) + HEAD) / sum(inches)
            width = 0.985 / len(lengths)
            box = (0.006 + column * width + NAMES, top - ROW * heights[row] / sum(inches), width - NAMES - VALUES)
            axes = figure.add_axes((*box, ROW * heights[row] / sum(inches)))
            _panel(axes, table, panel, heights[row], looks, stay)
    return figure


def _panel(
    axes: Any,
    table: Table,
    panel: Panel,
    rows: int,
    looks: Mapping[str, style.Look],
    stay: Mapping[paired.Pair, bool],
) -> None:
    length, kind, base, found = panel
    share = table.metric.share
    by = 100 if share else 1
    axes.set_ylim(rows - 0.5, -0.5)
    ends = [by * x for d in found for x in (d.estimate.low, d.estimate.value, d.estimate.high) if math.isfinite(x)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
    axes.axvline(0, color=style.MUTED, linewidth=1.1, zorder=1)
    names = clipped([d.variant for d in found], 19)
    for y, d in enumerate(found):
        look, e = looks[d.variant], d.estimate
        if math.isfinite(e.low):
            axes.plot([by * e.low, by * e.high], [y, y], color=look.colour, linewidth=2.0 if d.apart else 1.2, zorder=2)
        axes.plot(
            [by * e.value], [y], marker=look.marker, markersize=5.5, color=look.colour, zorder=3,
            markerfacecolor=look.colour if d.apart else style.CARD, markeredgewidth=1.2,
        )  # fmt: skip
        axes.annotate(
            names[d.variant], (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0), fontsize=8.5,
            textcoords="offset points", ha="right", va="center_baseline", color=look.colour,
            fontweight="bold" if look.contrast and look.trained else "normal",
        )  # fmt: skip
        span = f" [{findings.shown(e.low, share)}, {findings.shown(e.high, share)}]" if math.isfinite(e.low) else ""
        text = findings.shown(e.value, share) + span + (" *" if stay[d.pair] else "")
        axes.annotate(
            text, (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0), fontsize=7.5,
            textcoords="offset points", ha="left", va="center_baseline", color=style.INK if d.apart else style.MUTED,
        )  # fmt: skip
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.locator_params(axis="x", nbins=3)
    axes.tick_params(axis="x", labelsize=8)
    times = multiple(length, table.original_len)
    against = f"minus {base}" if kind == "plain" else f"minus the best, {base}"
    title = f"{length:,} tokens" + (f" ({times})" if times else "") + f": {against}"
    left = -(NAMES - 0.01) / axes.get_position().width
    axes.set_title(clipped([title], 56)[title], fontsize=9, loc="left", pad=6, x=left)
    better = "right" if table.metric.better == "high" else "left"
    axes.set_xlabel(f"{'points' if share else 'nats a token'}; better is {better}", fontsize=8)
