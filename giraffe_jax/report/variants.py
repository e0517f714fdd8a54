"""The table of the variants: name, methods with their parameters, training, stretch of each plane, and the distances
that the last token sees.

A plane's stretch is plain RoPE's frequency over the variant's, at the longest measured length. For a user's method it
is what the run computed and saved, as distances always are (`drawn`). For methods that change something else (masks,
biases, training), the table names their kind.
"""

from __future__ import annotations

import html
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.report.drawn import Drawn
from giraffe_jax.report.scores import Results

FREQUENCIES = ("frequencies", "length")
KINDS = {
    "bands": "other positions by distance",
    "bias": "a bias on the logits",
    "decay": "frequencies, and a decay with distance",
    "layers": "other positions by layer",
    "mask": "a mask",
    "temperature": "a temperature of the logits",
    "training": "positions drawn anew while training",
}
WIDTH, HEIGHT, MIDDLE = 150, 30, 4
SQUARE = 54  # side of the plot of distances, whose axes have the same scale


def as_html(results: Results, swatches: Mapping[str, str]) -> str:
    """Returns the table as HTML; empty if no manifest lists the variants.

    Args:
      results: of the report.
      swatches: HTML of each variant's colour mark, by name.
    """
    entries = {entry["name"]: entry for entry in results.manifest.get("config", {}).get("variants", ())}
    names = [name for name in results.variants if name in entries]
    if not names:
        return ""
    model, lengths = results.manifest.get("model") or {}, [row["length"] for row in results.rows]
    methods = {name: evaluated(entries[name]) for name in names}
    drawn = {name: results.drawn.get(name) for name in names}
    ratios = {name: stretch(methods[name], model, max(lengths), drawn[name]) for name in names}
    finite = [abs(np.log2(r[np.isfinite(r) & (r > 0)])).max(initial=0.0) for r in ratios.values() if r is not None]
    scale = max(1.0, *finite) if finite else 1.0
    planes = any(r is not None for r in ratios.values())
    seen = any(d is not None and d.distances for d in drawn.values())
    head = "<th scope='col'>variant</th><th scope='col'>positions</th><th scope='col'>trained</th>"
    head += "<th scope='col'>stretch of each plane<small>fastest to slowest</small></th>" if planes else ""
    head += "<th scope='col'>distances<small>seen by the last token</small></th>" if seen else ""
    body = []
    for name in names:
        entry = entries[name]
        text = " → ".join(method(item) for item in methods[name]) or "RoPE as trained"
        if entry.get("eval_positions") is not None:
            text += f" (trained with {' → '.join(method(i) for i in entry.get('positions') or ()) or 'RoPE as it is'})"
        cells = [f"<td>{html.escape(text)}</td>", f"<td>{html.escape(training(entry.get('train')))}</td>"]
        if planes:
            cells.append(f"<td>{_stretched(ratios[name], methods[name], scale)}</td>")
        if seen:
            cells.append(f"<td>{_distances(drawn[name])}</td>")
        body.append(f"<tr><th scope='row'>{swatches[name]}{html.escape(name)}</th>{''.join(cells)}</tr>")
    table = f"<table class='variants'><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(body)}</tbody></table>"
    note = (
        f"<p class='how'><small>Stretch: plain RoPE's frequency over the variant's, at {max(lengths):,} tokens, for "
        "each rotary plane; bars are logarithmic, up where a plane turns slower. A plane that does not turn at all "
        "is grey and reaches the top.</small></p>"
    )
    across = (
        "<p class='how'><small>Distances: across, how far back a token is; up, how far back the last token of the "
        "pass sees it, measured through attention. Grey is the true distance; where there is no line, it is not seen. "
        "Empty: all distances are true ones.</small></p>"
    )
    return f"<div class='scroll' tabindex='0'>{table}</div>" + (note if planes else "") + (across if seen else "")


def evaluated(entry: Mapping[str, Any]) -> list[Any]:
    """Returns the methods that a variant is evaluated with, from its entry in the config."""
    eval_positions = entry.get("eval_positions")
    return list((entry.get("positions") if eval_positions is None else eval_positions) or ())


def method(item: Mapping[str, Any]) -> str:
    """Returns a method as a call, `yarn(factor=4)`; long lists are abbreviated to their length."""
    arguments = [f"{key}={_value(value)}" for key, value in item.items() if key != "name"]
    return f"{item.get('name')}({', '.join(arguments)})"


def training(train: Mapping[str, Any] | None) -> str:
    """Returns a variant's training (steps and length) in a few words."""
    if train is None:
        return "no"
    steps, length = train.get("steps"), (train.get("data") or {}).get("seq_len")
    return (f"{steps:,} steps" if steps else "yes") + (f" at {length:,} tokens" if length else "")


def kinds(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the kind of each method; "own" for a user's method, which a report does not import."""
    from giraffe_jax import positions

    known = set(positions.names())
    names = [str(item.get("name")) for item in methods]
    modules = [importlib.import_module(f"giraffe_jax.positions.methods.{n}") if n in known else None for n in names]
    return ["own" if module is None else module.ABOUT["kind"] for module in modules]


def stretch(
    methods: Sequence[Mapping[str, Any]], model: Mapping[str, Any], length: int, drawn: Drawn | None = None
) -> np.ndarray | None:
    """Returns plain RoPE's frequencies over the variant's, [R], inf where a plane does not rotate; None if unknown.

    For a user's method they come from `drawn`, which was saved when it was measured.
    """
    if "own" in kinds(methods):
        return None if drawn is None or drawn.stretch is None else np.asarray(drawn.stretch, np.float64)
    shape: dict[str, Any] = {key: model.get(key) for key in ("head_dim", "theta", "original_len")}
    if None in shape.values() or not set(kinds(methods)) <= {*FREQUENCIES, "temperature", "decay"}:
        return None
    from giraffe_jax import positions

    try:
        plain, _ = positions.frequencies([], **shape)
        scaled, _ = positions.frequencies(methods, **shape, length=length)
    except ConfigError:  # the method needs more than the manifest records
        return None
    if scaled.shape != plain.shape:
        return None
    with np.errstate(divide="ignore"):
        return np.asarray(plain / scaled, np.float64)


def _stretched(ratios: np.ndarray | None, methods: Sequence[Mapping[str, Any]], scale: float) -> str:
    other = [KINDS.get(kind, "a method of one's own") for kind in kinds(methods) if kind not in FREQUENCIES]
    effects = "; ".join(dict.fromkeys(other))
    if ratios is None:
        return f"<span class='kind'>{html.escape(effects or 'not known')}</span>"
    finite = ratios[np.isfinite(ratios)]
    span = f"{finite.min():.3g}–{finite.max():.3g}×" if finite.size else ""
    span = f"{finite[0]:.3g}×" if finite.size and np.allclose(finite, finite[0], rtol=5e-3) else span
    still = int((~np.isfinite(ratios)).sum())
    words = ", ".join(part for part in (span, f"{still} of {len(ratios)} still" if still else "", effects) if part)
    return strip(ratios, scale) + f"<small>{html.escape(words)}</small>"


def _distances(drawn: Drawn | None) -> str:
    if drawn is None or not drawn.distances:
        return ""
    furthest = max((seen for _, seen in drawn.distances if np.isfinite(seen)), default=0.0)
    top, by = max(furthest, drawn.reach), SQUARE - 3
    pieces: list[list[str]] = [[]]
    for true, seen in drawn.distances:
        if np.isfinite(seen):
            pieces[-1].append(f"{1.5 + true / drawn.reach * by:.1f},{SQUARE - 1.5 - max(seen, 0.0) / top * by:.1f}")
        elif pieces[-1]:
            pieces.append([])
    lines = "".join(f"<path d='M{' '.join(piece)}' stroke='var(--ink)'/>" for piece in pieces if piece)
    end = f"{1.5 + by:.1f},{SQUARE - 1.5 - drawn.reach / top * by:.1f}"
    plain = f"<path d='M1.5,{SQUARE - 1.5} {end}' stroke='var(--grid)'/>"
    words = f"up to {furthest:,.0f} of {drawn.reach - 1:,}"
    return (
        f"<svg class='strip' viewBox='0 0 {SQUARE} {SQUARE}' width='{SQUARE}' height='{SQUARE}' role='img' "
        f"aria-label='distances seen: {words}' fill='none' stroke-width='1.5'>{plain}{lines}</svg>"
        f"<small>{words}</small>"
    )


def strip(ratios: np.ndarray, scale: float) -> str:
    """Returns an SVG of each plane's stretch, [R], as bars on a log scale up to 2^scale; planes that do not rotate are
    grey."""
    width, room = WIDTH / len(ratios), HEIGHT - MIDDLE - 1
    base = HEIGHT - MIDDLE
    bars = []
    for plane, ratio in enumerate(ratios):
        still = not np.isfinite(ratio)
        tall = room if still else float(np.log2(abs(ratio))) / scale * room
        tall = max(-MIDDLE + 0.5, tall) if tall < 0 else max(0.8, tall)
        y = base - max(tall, 0)
        bars.append(
            f"<rect x='{plane * width:.2f}' y='{y:.2f}' width='{width * 0.78:.2f}' height='{abs(tall):.2f}' "
            f"fill='var({'--grid' if still else '--muted'})'/>"
        )
    label = ", ".join("still" if not np.isfinite(r) else f"{r:.3g}" for r in ratios)
    return (
        f"<svg class='strip' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' role='img' "
        f"aria-label='stretch of each plane: {label}'>{''.join(bars)}</svg>"
    )


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple) and len(value) > 6:
        return f"[{len(value)} numbers]"
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
