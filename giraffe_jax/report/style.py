"""The style of all plots: a colour and a marker per method, the same everywhere, safe for colour-blind readers.

Colours are those of Okabe and Ito (2008), darkened where needed on white, and extended; each has a lighter twin for
dark pages. Plots are drawn with the light colours; `themed` replaces them with CSS variables, so that a plot follows
the page. Markers differ too, so colour is never the only distinction.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from giraffe_jax.report.scores import Results

INK, MUTED, GRID, CARD = "#1d2430", "#68717f", "#dfe3e8", "#fefefd"
PLAIN = ("#59616d", "#aab3c0")
PALETTE = (
    ("#0072b2", "#58aee8"),
    ("#d55e00", "#f58b45"),
    ("#00966d", "#35c99c"),
    ("#b4519a", "#e294cf"),
    ("#b98200", "#edb73e"),
    ("#4b41a8", "#9d95f2"),
    ("#3a9fd0", "#93d6f7"),
    ("#96304f", "#e5768f"),
    ("#5f7f1a", "#a9c95c"),
)
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p")
THEME = {
    INK: ("--ink", "#e8ebf0"),
    MUTED: ("--muted", "#98a2b0"),
    GRID: ("--grid", "#2c333d"),
    CARD: ("--card", "#1a1e25"),
}
VARIABLES = (
    {light: (name, light, dark) for light, (name, dark) in THEME.items()}
    | {light: (f"--c{i}", light, dark) for i, (light, dark) in enumerate((PLAIN, *PALETTE))}
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How a variant is drawn. Variants with the same positions share colour and marker; if a report has trained and
    untrained ones, the latter get dashed lines."""

    colour: str
    marker: str
    trained: bool
    contrast: bool  # whether the report holds both trained and untrained variants

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments of matplotlib's `plot`: thin and dashed for an untrained variant among trained ones."""
        thin = self.contrast and not self.trained
        return {
            "color": self.colour,
            "marker": self.marker,
            "linewidth": 1.3 if thin else 2.2,
            "linestyle": (0, (3.2, 2.0)) if thin else "-",
            "markersize": 5.0,
            "markerfacecolor": "none" if thin else self.colour,
            "markeredgewidth": 1.2,
        }

    @property
    def swatch(self) -> str:
        """The HTML of a dot in the variant's colour, hollow if its line is dashed."""
        colour = f"var({VARIABLES[self.colour][0]})"
        if self.contrast and not self.trained:
            return f"<i class='hollow' style='border-color:{colour}'></i>"
        return f"<i style='background:{colour}'></i>"


def looks(results: Results) -> dict[str, Look]:
    """Returns the look of every variant, for all plots and tables of a report."""
    trained = results.trained
    contrast = len(set(trained.values())) == 2
    taken: set[tuple[str, int, bool]] = set()
    seen: dict[tuple[str, int], tuple[str, str]] = {}
    out: dict[str, Look] = {}
    for variant in results.variants:
        positions = results.positions(variant)
        key = json.dumps(positions, sort_keys=True) if positions is not None else variant
        # The same positions again (from another run, with other code or eval_positions) get another look.
        copy = next(k for k in itertools.count() if (key, k, trained[variant]) not in taken)
        taken.add((key, copy, trained[variant]))
        if (key, copy) not in seen:
            plain = copy == 0 and (positions == [] or variant == results.baseline)
            i = sum(colour != PLAIN[0] for colour, _ in seen.values()) % len(PALETTE)
            seen[key, copy] = (PLAIN[0], "o") if plain else (PALETTE[i][0], MARKERS[i])
        out[variant] = Look(*seen[key, copy], trained[variant], contrast)
    return out


@contextmanager
def drawing(name: str) -> Iterator[Any]:
    """Context manager for matplotlib.pyplot with the project's settings and a file-only backend; closes all figures.

    `name` seeds the identifiers in SVG files, so that the same rows give the same bytes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context(_settings(name)):
        try:
            yield plt
        finally:
            plt.close("all")


def _settings(name: str) -> dict[Any, Any]:
    return {
        "svg.hashsalt": f"giraffe-jax {name}",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelsize": 9.5,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID,
        "axes.linewidth": 1.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "text.color": INK,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.major.size": 4,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "figure.facecolor": "white",
        "axes.facecolor": "none",
        "legend.frameon": False,
    }


def themed(svg: str, prefix: str) -> str:
    """Returns an SVG file as inline HTML: fluid width, ids made unique by `prefix`, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", svg)
    for light, (name, _, _) in VARIABLES.items():
        svg = svg.replace(light, f"var({name})")
    return svg


def css_variables() -> str:
    """Returns the colours as CSS variables: light by default, dark if the reader's system prefers it."""
    light = " ".join(f"{name}: {value};" for name, value, _ in VARIABLES.values())
    dark = " ".join(f"{name}: {value};" for name, _, value in VARIABLES.values())
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
