"""Labels at the ends of lines in a plot: inside the canvas, never overlapping, one label for lines that coincide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from giraffe_jax.report import style

WRAP = 30  # most characters of a label's line
LINE = 13.0  # points from one line of a label to the next
TOGETHER = 0.006  # ends closer than this fraction of the axes look like one point
LOW, HIGH = -0.06, 1.02  # range of labels, in fractions of the axes' height


@dataclass(frozen=True)
class End:
    """The last point of a variant's line."""

    x: float
    y: float
    variant: str
    look: style.Look


def columns(variants: Sequence[str]) -> int:
    """Returns the width of these variants' labels in characters: the longest name (`WRAP` at most) and a comma."""
    return min(WRAP, max(14, *(len(variant) for variant in variants))) + 2


def wrap(names: Sequence[str], width: int) -> list[str]:
    """Returns the lines of a label with these names, wrapped at `width` characters; only longer names are broken."""
    whole = [name.replace(" ", "\u00a0") if len(name) < width else name for name in names]
    return [line.replace("\u00a0", " ") for line in textwrap.wrap(", ".join(whole), width)] or [""]


def lines(variants: Sequence[str]) -> int:
    """Returns the number of lines of these variants' labels if none are merged."""
    return sum(len(wrap([variant], columns(variants))) for variant in variants)


def margin(variants: Sequence[str]) -> float:
    """Returns the fraction of a 9 inch figure right of the axes that fits the longest label line, bold, in any font."""
    return 0.055 + 0.0098 * columns(variants)


def merge(heights: Sequence[float], ends: Sequence[End]) -> list[tuple[float, list[End]]]:
    """Returns groups of ends that coincide, with their mean height (in fractions of the axes), lowest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(ends)), key=lambda i: heights[i]):
        same = bool(groups) and heights[i] - heights[groups[-1][-1]] < TOGETHER and ends[i].x == ends[groups[-1][-1]].x
        groups[-1].append(i) if same else groups.append([i])
    return [(sum(heights[i] for i in g) / len(g), [ends[i] for i in sorted(g)]) for g in groups]


def write(axes: Any, ends: Sequence[End], width: int) -> None:
    """Writes labels of `width` characters beside the last points, moved as little as needed not to overlap."""
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((end.x, end.y)))[1] for end in ends]
    line = LINE / (axes.get_window_extent().height / axes.figure.dpi * 72)
    groups = merge(heights, ends)
    texts = [wrap([end.variant for end in group], width) for _, group in groups]
    places = spread([height for height, _ in groups], [len(text) * line for text in texts], LOW, HIGH)
    for i, ((_, group), text, place) in enumerate(zip(groups, texts, places, strict=True)):
        looks = {(end.look.colour, end.look.contrast and end.look.trained) for end in group}
        colour = group[0].look.colour if len({c for c, _ in looks}) == 1 else style.INK
        weight = "bold" if looks == {(group[0].look.colour, True)} else "normal"
        hairline = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            "", (group[0].x, group[0].y), xytext=(1.05, place), textcoords="axes fraction", annotation_clip=False,
            arrowprops=hairline,
        )  # fmt: skip
        for k, words in enumerate(text):
            y = place + (len(text) / 2 - 0.5 - k) * line
            axes.text(
                1.055, y, words, transform=axes.transAxes, va="center_baseline", fontsize=9, color=colour,
                fontweight=weight, gid=f"label-{i}-{k}",
            )  # fmt: skip


def spread(heights: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Returns centres of labels of these sizes, as close to `heights` as possible (least squares), in the same order,
    without overlaps and within `low..high`. If they do not all fit, they start at `high` and extend below `low`.

    This is isotonic regression: neighbours that would overlap are pooled around their mean, and the result is clipped
    to the bounds.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    offsets, total = [], 0.0
    for i in order:  # minus these offsets, "no overlap" becomes "non-decreasing"
        offsets.append(total + sizes[i] / 2)
        total += sizes[i]
    blocks: list[list[float]] = []  # [sum of targets, count]
    for i, offset in zip(order, offsets, strict=True):
        blocks.append([heights[i] - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            block_sum, count = blocks.pop()
            blocks[-1][0] += block_sum
            blocks[-1][1] += count
    pooled = [value / count for value, count in blocks for _ in range(int(count))]
    out = [0.0] * len(heights)
    for i, offset, value in zip(order, offsets, pooled, strict=True):
        out[i] = min(max(value, low), high - total) + offset
    return out
