"""Parts shared by the plots of a report: figures, length axes, the mark of the trained length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from giraffe_jax.report import labels, style
from giraffe_jax.report.scores import Results


def _figure(plt: Any, height: float, results: Results) -> tuple[Any, Any]:
    """Returns a figure and axes with room on the right for the longest label, and high enough for all labels."""
    height = max(height, 1.0 + labels.LINE / 72 * labels.lines(results.variants))
    figure, axes = plt.subplots(figsize=(9, height))
    right = 1 - labels.margin(results.variants)
    figure.subplots_adjust(left=0.085, right=right, top=1 - 0.32 / height, bottom=0.55 / height)
    return figure, axes


def _short(length: int) -> str:
    return f"{length / 1024:g}k" if length >= 1024 and length % 512 == 0 else f"{length:,}"


def _length_axis(axes: Any, lengths: Sequence[int]) -> None:
    """Makes the x axis logarithmic, with a tick at each length, and its number if there is room next to the others."""
    axes.set_xscale("log", base=2)
    margin = (max(lengths) / min(lengths)) ** 0.02 if len(lengths) > 1 else 1.5
    axes.set_xlim(min(lengths) / margin, max(lengths) * margin)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    x_of = {length: axes.transData.transform((length, 1))[0] for length in lengths}
    letter = 0.65 * axes.get_xticklabels()[0].get_fontsize() / 72 * axes.figure.dpi  # pixels; digits are 0.64 wide

    def apart(a: int, b: int) -> bool:
        return bool(abs(x_of[a] - x_of[b]) > letter * ((len(f"{a:,}") + len(f"{b:,}")) / 2 + 0.5))

    last = max(lengths)
    shown: list[int] = []
    for length in sorted(lengths):
        if length == last or (all(apart(length, other) for other in shown) and apart(length, last)):
            shown.append(length)
    axes.set_xticks(lengths, [f"{length:,}" if length in shown else "" for length in lengths])


def _log_ticks(axes: Any) -> None:
    """Sets readable ticks on a logarithmic y axis: 1, 2, 5, 10, ... or powers of ten if the range is wide."""
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    if high / low < 4:
        steps = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
    axes.set_yticks(ticks, [f"{tick:,.6g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(low, high)


def _trained_length(axes: Any, original_len: int | None) -> None:
    low, high = axes.get_xlim()
    if original_len is None or not low <= original_len <= high:
        return
    late = axes.transAxes.inverted().transform(axes.transData.transform((original_len, axes.get_ylim()[0])))[0] > 0.6
    axes.axvline(original_len, color=style.MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        f"trained length {original_len:,}", (original_len, 1), xycoords=("data", "axes fraction"), va="bottom",
        xytext=(-4 if late else 4, 6), textcoords="offset points", fontsize=8.5, color=style.MUTED,
        ha="right" if late else "left",
    )  # fmt: skip
