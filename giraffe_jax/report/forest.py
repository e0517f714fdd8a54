"""The forest plot: each variant's paired differences to plain RoPE and to the best variant, at the decisive lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from giraffe_jax.report import findings, paired, style
from giraffe_jax.report.labels import wrap
from giraffe_jax.report.paired import Difference
from giraffe_jax.report.scores import Results
from giraffe_jax.report.tables import Table, multiple

Panel = tuple[int, str, str, list[Difference]]  # length, "plain" or "best", its name, each variant minus it

ROW, LINE, HEAD, FOOT = 0.205, 0.135, 0.42, 0.5  # heights in inches; LINE: of each further line of a name or title
NAMES, VALUES = 0.170, 0.165  # fractions of the figure's width, left and right of a panel
NAME, TITLE = 19, 54  # most characters of a line


def panels(results: Results, table: Table) -> list[Panel]:
    """Returns the comparisons at each decisive length: all variants with plain RoPE, and all with the best one."""
    out, plain = [], results.baseline
    for length in findings.lengths_that_matter(table)[:2]:
        order = table.ranked(length)
        bases = [base for base in (plain, order[0] if order else None) if base is not None]
        for i, base in enumerate(dict.fromkeys(bases)):
            compared = paired.differences(results, table.task, table.metric, length, base, table.variants)
            out.append((length, "plain" if i == 0 and base == plain else "best", base, compared))
    return out


def draw(
    plt: Any, table: Table, shown: Sequence[Panel], looks: Mapping[str, style.Look], variants: Sequence[str]
) -> Any:
    """Draws a panel per length (across): against plain RoPE (above) and against the best of that length (below).

    Only `variants` are drawn, but Holm's correction counts all comparisons that were made. None without comparisons.
    """
    significant = paired.holm(d for *_, compared in shown for d in compared)
    shown = [(n, kind, base, [d for d in compared if d.variant in variants]) for n, kind, base, compared in shown]
    shown = [panel for panel in shown if panel[3]]
    lengths = list(dict.fromkeys(length for length, *_ in shown))
    rows = [kind for kind in ("plain", "best") if any(k == kind for _, k, *_ in shown)]
    if not rows:
        return None
    names = {d.variant: wrap([d.variant], NAME) for *_, compared in shown for d in compared}
    high = ROW + LINE * (max(map(len, names.values())) - 1)  # of a row
    titles = {panel[:3]: wrap([_title(table, panel)], TITLE if len(lengths) > 1 else 2 * TITLE) for panel in shown}
    heads = [HEAD + LINE * (max(len(lines) for (_, k, _), lines in titles.items() if k == kind) - 1) for kind in rows]
    counts = [max(len(compared) for _, k, _, compared in shown if k == kind) for kind in rows]
    inches = [head + high * count + FOOT for head, count in zip(heads, counts, strict=True)]
    figure = plt.figure(figsize=(9, sum(inches)))
    for panel in shown:
        row, column, width = rows.index(panel[1]), lengths.index(panel[0]), 0.985 / len(lengths)
        tall = high * counts[row] / sum(inches)
        top = 1 - (sum(inches[:row]) + heads[row]) / sum(inches)
        axes = figure.add_axes((0.006 + column * width + NAMES, top - tall, width - NAMES - VALUES, tall))
        _panel(axes, table, panel, counts[row], looks, significant, names)
        title_x = -(NAMES - 0.01) / axes.get_position().width
        axes.set_title("\n".join(titles[panel[:3]]), fontsize=9, loc="left", pad=6, x=title_x)
    return figure


def _title(table: Table, panel: Panel) -> str:
    length, kind, base, _ = panel
    times = multiple(length, table.original_len)
    extreme = "highest" if table.metric.better == "high" else "lowest"
    against = f"minus {base}" if kind == "plain" else f"minus the {extreme}, {base}"
    return f"{length:,} tokens" + (f" ({times})" if times else "") + f": {against}"


def written(d: Difference, star: bool) -> str:
    """Returns the text beside a difference: its value, its interval if it has one, and a star if `star`."""
    low, value, high = (findings.shown(x, d.metric.share) for x in (d.estimate.low, d.estimate.value, d.estimate.high))
    return value + ("" if d.few else f" [{low}, {high}]") + " *" * star


def _panel(
    axes: Any,
    table: Table,
    panel: Panel,
    rows: int,
    looks: Mapping[str, style.Look],
    significant: Mapping[paired.Pair, bool],
    names: Mapping[str, Sequence[str]],
) -> None:
    compared = panel[3]
    share = table.metric.share
    by = 100 if share else 1
    axes.set_ylim(rows - 0.5, -0.5)
    ends = [by * x for d in compared for x in (d.estimate.low, d.estimate.value, d.estimate.high) if math.isfinite(x)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
    axes.axvline(0, color=style.MUTED, linewidth=1.1, zorder=1)
    for y, d in enumerate(compared):
        look, e = looks[d.variant], d.estimate
        if math.isfinite(e.low):
            axes.plot([by * e.low, by * e.high], [y, y], color=look.colour, linewidth=2.0 if d.apart else 1.2, zorder=2)
        axes.plot(
            [by * e.value], [y], marker=look.marker, markersize=5.5, color=look.colour, zorder=3,
            markerfacecolor=look.colour if d.apart else style.CARD, markeredgewidth=1.2,
        )  # fmt: skip
        axes.annotate(
            "\n".join(names[d.variant]), (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0), fontsize=8.5,
            textcoords="offset points", ha="right", va="center_baseline", color=look.colour,
            fontweight="bold" if look.contrast and look.trained else "normal",
        )  # fmt: skip
        axes.annotate(
            written(d, significant[d.pair]), (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0), fontsize=7.5,
            textcoords="offset points", ha="left", va="center_baseline", color=style.INK if d.apart else style.MUTED,
        )  # fmt: skip
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.locator_params(axis="x", nbins=3, integer=share and high - low > 3)
    axes.tick_params(axis="x", labelsize=8)
    better = "right" if table.metric.better == "high" else "left"
    axes.set_xlabel(f"{findings.unit(compared[0])}; better is {better}", fontsize=8)
