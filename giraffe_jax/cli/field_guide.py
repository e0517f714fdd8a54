"""The catalogue of position methods as a Markdown page: every method with its facts and a plot."""

from pathlib import Path
from typing import Any

import numpy as np

from giraffe_jax import positions
from giraffe_jax.cli.catalogue import KINDS, Entry
from giraffe_jax.config import ConfigError
from giraffe_jax.positions import bind

MODEL: dict[str, Any] = dict(
    head_dim=64, theta=1e4, original_len=256
)  # the model of the page's plots; small, since the distances of every method are measured
PANEL = (3.6, 2.6)  # inches


def draw_method(
    call: dict[str, Any], file: Path, *, head_dim: int, theta: float, original_len: int, length: int | None = None
) -> Path:
    """Draws a method's wavelengths, distances as attention sees them, and temperature; returns the file written.

    Args:
      call: the method and its parameters, as in a config.
      file: the .svg or .png file to write.
      head_dim, theta, original_len: of the model.
      length: sequence length in tokens; 4 * original_len by default.
    """
    import matplotlib.pyplot as plt

    length = length or 4 * original_len
    model: dict[str, Any] = dict(head_dim=head_dim, theta=theta, original_len=original_len)
    e = bind([call], length=length, num_layers=4, **model).at(np.arange(length, dtype=np.float32)[None])
    figure, panels = plt.subplots(1, 3, figsize=(3 * PANEL[0], PANEL[1]), layout="constrained")
    _wavelengths(panels[0], e, bind([], **model), original_len)
    _distances(panels[1], call, length, model)
    _temperature(panels[2], e, length)
    file.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "giraffe"}):
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
    return file


def _wavelengths(axes, e, plain, original_len: int) -> None:
    rows = np.atleast_2d(np.asarray(e.inv_freq))
    planes = np.arange(rows.shape[1])
    axes.plot(planes, 2 * np.pi / plain.inv_freq, color="0.7", label="plain RoPE")
    for row in np.unique(rows, axis=0):
        turning = row > 0
        axes.plot(planes[turning], 2 * np.pi / row[turning], color="C1", label="this method")
        axes.plot(planes[~turning], np.full((~turning).sum(), axes.get_ylim()[1]), "x", color="C1", markersize=3)
    axes.axhline(original_len, color="0.7", linestyle=":", linewidth=1)
    axes.set(title="wavelength, tokens", xlabel="rotary plane", yscale="log")
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    axes.legend(handles.values(), handles.keys(), frameon=False, fontsize=8)


def _distances(axes, call: dict[str, Any], length: int, model: dict[str, Any]) -> None:
    axes.plot([0, length], [0, length], color="0.7")
    try:
        seen = positions.distances([call], length=length, queries=[length - 1], **model)[0, ::-1]
        axes.plot(np.arange(length), seen, color="C1")
    except ConfigError:
        axes.text(0.5, 0.5, "differs between layers", ha="center", transform=axes.transAxes)
    axes.axhline(model["original_len"], color="0.7", linestyle=":", linewidth=1)
    axes.set(title="distance seen by the last token", xlabel="true distance, tokens", ylim=(0, None))


def _temperature(axes, e, length: int) -> None:
    gain = np.full(length, float(e.gain) ** 2)
    if e.query_scale is not None:
        gain = gain * np.asarray(e.query_scale)[0]
    axes.axhline(1, color="0.7")
    axes.plot(np.arange(length), gain, color="C1")
    axes.set(title="multiplier of logits", xlabel="query's position, tokens", ylim=(0, max(1.5, 1.1 * gain.max())))


def write_page(entries: list[Entry], page: Path) -> Path:
    """Writes the Markdown page, and its plots into a folder of the same name beside it; returns the page's path."""
    folder = page.parent / page.stem
    for entry in entries:
        call = {"name": entry.name, **_on_the_page(entry)}
        draw_method(call, folder / f"{entry.name}.svg", **MODEL)
    page.write_text(page_text(entries, page.stem), encoding="utf-8")
    return page


def page_text(entries: list[Entry], folder: str) -> str:
    """Returns the page as Markdown text.

    Args:
      entries: the methods.
      folder: of the plots, relative to the page.
    """
    lines = [
        "# The catalogue of methods",
        "",
        f"{len(entries)} methods. `giraffe methods --page=docs/methods.md` writes this page from their files. Each "
        f"plot is of a model with head_dim {MODEL['head_dim']}, theta {MODEL['theta']:g} and a pretraining context of "
        f"{MODEL['original_len']} tokens, on a sequence of {4 * MODEL['original_len']}: the wavelength of each rotary "
        "plane, the distance at which the last token sees each earlier one (measured through attention; of the slowest "
        "plane, where planes differ), and the factor on its logits. "
        "Grey is plain RoPE, dotted the pretraining context; crosses are planes that do not rotate.",
    ]
    for kind, description in KINDS.items():
        members = [entry for entry in entries if entry.kind == kind]
        if not members:
            continue
        lines += ["", f"## {kind}: {description}"]
        for entry in members:
            training = "needs no training" if entry.training_free else "trained with"
            lines += [
                "",
                f"### {entry.name}",
                "",
                entry.text,
                "",
                f"`{entry.name}({entry.parameters})`: {' '.join(entry.description.split())}",
                "",
                f"{training}; cached keys {entry.cache}; export: {entry.exported}; closed form: "
                f"[{entry.closed_form}](../tests/positions/{entry.closed_form})",
                "",
                f"![{entry.name}]({folder}/{entry.name}.svg)",
            ]
    return "\n".join(lines) + "\n"


def _on_the_page(entry: Entry) -> dict[str, Any]:
    """Returns the example's parameters, with those counted in tokens or planes scaled to the page's model."""
    if entry.name == "longrope":
        planes = MODEL["head_dim"] // 2
        slow = [1 + 3 * i / (planes - 1) for i in range(planes)]
        return dict(short_factor=[1.0] * planes, long_factor=slow, factor=4.0)
    tokens = {"window", "chunk_size", "local_size", "shift", "cutoff_len", "floor_scale", "threshold", "target_len"}
    tokens |= {"trained"}
    return {k: v * (16 if k in tokens else 8 if k == "planes" else 1) for k, v in entry.example.items()}
