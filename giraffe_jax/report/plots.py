"""Results -> figures: paired differences, scores against length, loss against position, retrieval by depth.

Each `by_` function returns a matplotlib figure, or None if the rows have nothing to show. `draw` makes all plots.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from giraffe_jax.report import forest, labels, metrics, paired, style, training
from giraffe_jax.report.axes import _figure, _length_axis, _log_ticks, _short, _trained_length
from giraffe_jax.report.findings import floor, main_tables
from giraffe_jax.report.labels import End
from giraffe_jax.report.metrics import PERPLEXITY, Metric
from giraffe_jax.report.scores import Results, Score, depth_grid, loss_curve
from giraffe_jax.report.tables import Table, number, task_name

Looks = Mapping[str, style.Look]
MOST = 24  # most variants of a plot; nobody can tell more lines from each other


@dataclass(frozen=True)
class Plot:
    """A finished plot; `kind` selects its explanation on the page."""

    name: str
    kind: str
    task: str
    title: str
    svg: str
    png: bytes | None  # None if not requested
    note: str = ""
    few: bool = False  # whether all its differences have too few pairs
    left_out: str = ""  # a sentence on the variants that it does not show


def draw(
    results: Results, scores: Sequence[Score], looks: Looks, tables: Sequence[Table], *, png: bool = True
) -> list[Plot]:
    """Returns every plot that the rows allow, in the order of the page; none for tasks at floor.

    With more than `MOST` variants, a task's plots show those that are best beyond the trained length.
    """
    out = []
    plot_of = functools.partial(_plot, png=png)
    floors = {table.task for table in tables if floor(table)}
    shown = {table.task: chosen(results, table) for table in reversed(tables)}  # by the first table of each task
    for table in main_tables(tables):
        if table.task not in floors:
            topic = "paired differences" if table.metric == PERPLEXITY else f"{table.metric.title}, paired differences"
            panels = forest.panels(results, table)
            pairs = lambda plt, t=table, p=panels: forest.draw(plt, t, p, looks, shown[t.task])  # noqa: E731
            plot = plot_of("forest", table.task, topic, pairs)
            differences = [d for *_, compared in panels for d in compared]
            few = all(d.few for d in differences)
            out.append(plot and replace(plot, note=paired.chance(differences), few=few))
    for task in results.tasks:
        drawn = results.only(shown.get(task, results.variants))
        for metric in metrics.of(results.of(task)) if task not in floors else ():
            line = lambda plt, r=drawn, t=task, m=metric: by_length(plt, r, scores, looks, t, m)  # noqa: E731
            if metric == PERPLEXITY:
                out.append(plot_of("perplexity", task, "by length", line))
                curve = lambda plt, r=drawn, t=task: by_position(plt, r, looks, t)  # noqa: E731
                out.append(plot_of("position", task, "loss by position", curve))
            elif metric.share:
                out.append(plot_of("retrieval", task, metric.title, line, metric.name))
                heat = lambda plt, r=drawn, t=task, m=metric: by_depth(plt, r, t, m.name)  # noqa: E731
                out.append(plot_of("depth", task, f"{metric.title}, by depth", heat, metric.name))
    drawn = results.only(shown[tables[0].task] if tables else results.variants)
    out.append(plot_of("training", "", "Loss in training", lambda plt: by_step(plt, drawn, looks)))
    note = ""
    if len(results.variants) > MOST:
        plain = f"{results.baseline} and the {MOST - 1}" if results.baseline else f"the {MOST}"
        note = f"Of {len(results.variants)} variants: {plain} that are best beyond the trained length; tables have all."
    return [replace(plot, left_out=note) for plot in out if plot is not None]


def chosen(results: Results, table: Table) -> list[str]:
    """Returns the variants that plots show: all, or `MOST` of them: plain RoPE and those that a table ranks best."""
    if len(results.variants) <= MOST:
        return results.variants
    plain = [results.baseline] if results.baseline in table.variants else []
    best = [variant for variant in table.furthest() if variant not in plain]
    return [*plain, *best[: MOST - len(plain)]]


def _plot(kind: str, task: str, topic: str, make: Callable[[Any], Any], metric: str = "", *, png: bool) -> Plot | None:
    name = "-".join(
        part for part in (task, metric, {"perplexity": "length", "retrieval": "length"}.get(kind, kind)) if part
    )
    with style.drawing(name) as plt:
        figure = make(plt)
        if figure is None:
            return None
        svg, pixels = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        if png:
            figure.savefig(pixels, format="png", dpi=160, metadata={"Software": None})
    title = f"{task_name(task)}, {topic}" if task else topic
    return Plot(name, kind, task, title, svg.getvalue(), pixels.getvalue() if png else None)


def by_length(plt: Any, results: Results, scores: Sequence[Score], looks: Looks, task: str, metric: Metric) -> Any:
    """Plots a line per variant over lengths with its 95% band; perplexity on a log scale, shares from 0 to 100%."""
    task_scores = [s for s in scores if (s.task, s.metric) == (task, metric.name)]
    lengths = sorted({s.length for s in task_scores})
    figure, axes = _figure(plt, 4.7 if metric == PERPLEXITY else 4.2, results)
    ends = []
    for variant in results.variants:
        points = [s for s in task_scores if s.variant == variant and math.isfinite(s.estimate.value)]
        if not points:
            continue
        look = looks[variant]
        x, y = [s.length for s in points], [s.estimate.value for s in points]
        axes.plot(x, y, **look.line, zorder=3 if look.trained else 2.5, clip_on=False)
        banded = [s for s in points if math.isfinite(s.estimate.low) and math.isfinite(s.estimate.high)]
        low, high = [s.estimate.low for s in banded], [s.estimate.high for s in banded]
        axes.fill_between([s.length for s in banded], low, high, color=look.colour, alpha=0.10, linewidth=0, zorder=1)
        ends.append(End(x[-1], y[-1], variant, look))
    if not ends:
        return None
    _length_axis(axes, lengths)
    if metric == PERPLEXITY:
        axes.set_yscale("log")
        _log_ticks(axes)
        axes.set_ylabel("perplexity (log scale, lower is better)")
    else:
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
        axes.set_ylabel("answers right")
    axes.set_xlabel("length, tokens")
    _trained_length(axes, results.original_len)
    labels.write(axes, ends, labels.columns(results.variants))
    return figure


def by_position(plt: Any, results: Results, looks: Looks, task: str) -> Any:
    """Plots the mean loss against the number of preceding tokens, in passes of the task's longest length."""
    length = max(results.lengths(task))
    figure, axes = _figure(plt, 4.7, results)
    ends, middles, even = [], [], False
    for variant in results.variants:
        bins = loss_curve(results.of(task, variant, length))
        even = bool(bins) and bins[-1][1] - bins[-1][0] < 4 * (bins[0][1] - bins[0][0])  # uniform bins: linear axis
        curve = [((low + high) / 2 if even else (low * high) ** 0.5, e) for low, high, e in bins if e.value == e.value]
        curve = [(x, e) for x, e in curve if x >= 16] or curve  # the first tokens say nothing about length
        if len(curve) < 2:
            continue
        look = looks[variant]
        x, y = [x for x, _ in curve], [e.value for _, e in curve]
        axes.plot(x, y, **(look.line | {"marker": "", "linewidth": look.line["linewidth"] * 0.85}))
        banded = [(x, e) for x, e in curve if math.isfinite(e.low)]
        axes.fill_between(
            [x for x, _ in banded], [e.low for _, e in banded], [e.high for _, e in banded],
            color=look.colour, alpha=0.08, linewidth=0,
        )  # fmt: skip
        ends.append(End(x[-1], y[-1], variant, look))
        middles += x
    if not ends:
        return None
    low = 0 if even else min(middles)
    if even:
        ticks = [length * k // 8 for k in range(9)]
    else:
        axes.set_xscale("log", base=2)
        ticks = [2**k for k in range(math.ceil(math.log2(max(low, 1))), int(math.log2(length)) + 1)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlim(low, max(*middles, *ticks))
    axes.set_xlabel(f"tokens before the predicted one, in passes of {length:,} tokens")
    axes.set_ylabel("loss, nats a token (lower is better)")
    _trained_length(axes, results.original_len)
    labels.write(axes, ends, labels.columns(results.variants))
    return figure


def by_step(plt: Any, results: Results, looks: Looks) -> Any:
    """Plots loss against step for every training run: thin lines for batches, markers for held-out text if any."""
    trained = [variant for variant in results.variants if variant in results.training]
    if not trained:
        return None
    figure, axes = _figure(plt, 4.2, results)
    ends = []
    for variant in trained:
        look = looks[variant]
        for run in results.training[variant]:
            x, y = training.points(run.batches)
            thin = bool(run.held_out)
            axes.plot(x, y, color=look.colour, linewidth=0.9 if thin else 1.3, alpha=0.5 if thin else 1.0)
            if thin:
                x, y = training.points(run.held_out)
                axes.plot(x, y, **(look.line | {"linestyle": "-"}), zorder=3, clip_on=False)
        ends.append(End(x[-1], y[-1], variant, look))
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token (lower is better)")
    labels.write(axes, ends, labels.columns(results.variants))
    return figure


def by_depth(plt: Any, results: Results, task: str, metric: str) -> Any:
    """Plots a heat map per variant: length across, depth of the answer down, share of right answers in each cell."""
    from matplotlib.colors import LinearSegmentedColormap

    depths, lengths, _ = depth_grid(results.of(task), metric)
    if len(depths) < 2:
        return None
    variants = [v for v in results.variants if results.of(task, v)]
    columns = min(4, len(variants))
    count = math.ceil(len(variants) / columns)
    names = {variant: labels.wrap([variant], 26) for variant in variants}
    extra = 0.14 * (max(map(len, names.values())) - 1)  # inches, for names of several lines
    size = 0.36 + 0.22 * len(depths)
    figure, grid = plt.subplots(
        count, columns, figsize=(9, 0.45 + count * (size + 0.55 + extra)), squeeze=False, sharex=True, sharey=True
    )
    colours = LinearSegmentedColormap.from_list("right", ["#f4ead7", "#9cc7ae", "#2f8a87", "#0b4a5e"])
    for axes in grid.flat[len(variants) :]:
        axes.set_visible(False)
    for i, variant in enumerate(variants):
        axes = grid.flat[i]
        _, _, cells = depth_grid(results.of(task, variant), metric)
        table = [[cells[d, n].value if (d, n) in cells else math.nan for n in lengths] for d in depths]
        axes.pcolormesh(table, cmap=colours, vmin=0, vmax=1, edgecolors=style.CARD, linewidth=1.2)
        for row, values in enumerate(table):
            for column, value in enumerate(values):
                if math.isfinite(value):
                    ink = "#fefefe" if value > 0.55 else "#26303a"
                    text = f"{100 * value:.0f}"
                    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7.5, color=ink)
        axes.set_title("\n".join(names[variant]), fontsize=9, pad=5)
        axes.set_xticks([k + 0.5 for k in range(len(lengths))], [_short(n) for n in lengths], fontsize=8)
        axes.set_yticks([k + 0.5 for k in range(len(depths))], [f"{100 * d:.0f}%" for d in depths], fontsize=8)
        axes.invert_yaxis() if not axes.yaxis_inverted() else None
        axes.tick_params(length=0, labelbottom=i + columns >= len(variants))
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if results.original_len in lengths and results.original_len != lengths[-1]:
            edge = lengths.index(results.original_len) + 1
            axes.axvline(edge, color=style.INK, linewidth=2)
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.085, right=0.995, top=1 - (0.32 + extra) / height, bottom=0.5 / height, wspace=0.09,
        hspace=(0.42 + extra) / size,
    )  # fmt: skip
    figure.supxlabel("length, tokens", fontsize=9, color=style.MUTED, y=0.06 / height)
    figure.supylabel("depth of the answer", fontsize=9, color=style.MUTED, x=0.003)
    return figure


def describe(results: Results, task: str) -> str:
    """Returns one line of text for screen readers: what the plot shows, and at which lengths."""
    if not task:
        return f"{len(results.training)} variants"
    count, lengths = min(MOST, len(results.variants)), results.lengths(task)
    return f"{task_name(task)} of {count} variants at {number(lengths[0])} to {number(lengths[-1])} tokens"
