"""Every word of every SVG lies on its canvas, and no label lies over another: measured in the font they were set in."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import fabricate
import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from giraffe_jax import records, report
from giraffe_jax.report import labels, plots, scores, style, training
from giraffe_jax.report.axes import _length_axis

SVG = "{http://www.w3.org/2000/svg}"


def words(path):
    """(is a direct label, text, left, top, right, bottom) of every text element, and the canvas (width, height)."""
    root = ET.parse(path).getroot()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    found = []

    def walk(element, label):
        label = label or str(element.attrib.get("id", "")).startswith("label-")
        if element.tag == SVG + "text" and (element.text or "").strip():
            found.append((label, element.text, *extent(element)))
        for child in element:
            walk(child, label)

    walk(root, False)
    return found, (width, height)


def extent(element):
    style, turn = element.attrib["style"], element.attrib.get("transform", "")
    (size,) = map(float, re.findall(r"font(?:-size)?: (?:\w+ )*?([\d.]+)px", style))
    weight = "bold" if re.search(r"font-weight: (700|bold)|font: (700|bold)", style) else "normal"
    path = TextPath((0, 0), element.text, size=size, prop=FontProperties("DejaVu Sans", weight=weight))
    box = path.get_extents()
    anchor = re.search(r"text-anchor: (\w+)", style)
    shift = {"middle": -box.x1 / 2, "end": -box.x1}.get(anchor.group(1) if anchor else "start", 0.0)
    # Right and down from the point where the text is set, then turned about it.
    corners = np.array([[shift, -box.y1], [shift + box.x1, -box.y1], [shift, -box.y0], [shift + box.x1, -box.y0]])
    place = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", turn)
    point = (float(x) for x in (place.groups() if place else (element.attrib["x"], element.attrib["y"])))
    angle = re.search(r"rotate\(([-\d.]+)", turn)
    turned = np.deg2rad(float(angle.group(1)) if angle else 0.0)
    matrix = np.array([[np.cos(turned), np.sin(turned)], [-np.sin(turned), np.cos(turned)]])
    corners = corners @ matrix + np.array(list(point))
    return (*corners.min(axis=0), *corners.max(axis=0))


def alike(count=14):
    """Figures of many variants whose lines all end at one place: lines at 0, passkeys at 1, perplexity at 50."""
    figures = ((0.9, 0.5, 0.3, 0.0), (0.9, 0.9, 1.0, 1.0), (20, 30, 40, 50))
    return {f"variant number {i}": figures for i in range(count)}


LONG = {
    "a name that goes on for quite some time, with every parameter in it": fabricate.FIGURES["plain"],
    "averylongnamewithoutasinglespacethatcouldbebroken" * 2: fabricate.FIGURES["yarn 8"],
    "yarn 16, attention_factor=1.38629": fabricate.FIGURES["yarn 4"],
}
CASES = {
    "quick start": fabricate.FIGURES,
    "all at one place": alike(),
    "side by side": {f"v{i}": ((1.0, 0.9, 0.8, i / 40),) * 2 + ((20, 30, 40, 50 + i / 10),) for i in range(20)},
    "long names": LONG,
    "one": {"plain": fabricate.FIGURES["plain"]},
}


SLOW = ("quick start", "side by side", "long names")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in CASES])
def test_every_word_is_on_the_canvas_and_no_label_over_another(tmp_path, case):
    rows = fabricate.rows(figures=CASES[case])
    (tmp_path / "results.jsonl").write_bytes(b"".join(records.encode(row) for row in rows))
    (tmp_path / "experiment.json").write_text('{"original_len": 256}')
    report.write([tmp_path], png=False)
    files = sorted((tmp_path / "plots").glob("*.svg"))
    assert len(files) >= 6
    for file in files:
        check(file, direct="length" in file.name or "position" in file.name)


@pytest.mark.parametrize("case", ["all at one place", "long names", "one"])
def test_so_it_is_with_curves_of_training(tmp_path, case):
    rows = list(fabricate.rows(figures=CASES[case], examples=1))
    curves = {row["variant"]: (training.Curve({1: 4.0, 5000: 3.0}, {5000: 3.1}),) for row in rows}
    results = replace(scores.collect(rows), training=curves)
    plot = plots.draw(results, [], style.looks(results), [], png=False)[-1]
    assert (plot.name, plot.kind) == ("training", "training")
    (tmp_path / "training.svg").write_text(plot.svg)
    check(tmp_path / "training.svg", direct=True)


def check(file, direct):
    """All words are on the canvas; direct labels, if there are to be any, are apart, and so is all in a forest plot."""
    found, (width, height) = words(file)
    assert found
    for _, text, left, top, right, bottom in found:
        assert 0 <= left and right <= width and 0 <= top and bottom <= height, (file.name, text)
    assert any(label for label, *_ in found) == direct
    boxes = [box for label, *box in found if label or "forest" in file.name]
    for i, (text, left, top, right, bottom) in enumerate(boxes):
        for other, left2, top2, right2, bottom2 in boxes[:i]:
            apart = right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
            assert apart, (file.name, text, other)


def test_labels_of_lines_that_end_together_are_one():
    look = style.Look("#0072b2", "s", trained=False, contrast=False)
    lines = {"plain": 0.0, "b": 0.5, "linear 4": 0.001, "c": 0.02}
    ends = [labels.End(8.0, y, name, look) for name, y in lines.items()]
    groups = labels.merge([end.y for end in ends], ends)
    assert [[end.variant for end in group] for _, group in groups] == [["plain", "linear 4"], ["c"], ["b"]]
    assert labels.wrap(["plain", "linear 4", "power"], 18) == ["plain, linear 4,", "power"]
    assert labels.wrap(["ntk 4", "plain + training"], 18) == ["ntk 4,", "plain + training"]


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_spread_as_little_as_possible(seed):
    rng = np.random.default_rng(seed)
    heights, sizes = rng.uniform(-0.1, 1.1, 7), rng.choice([0.05, 0.1, 0.15], 7)
    places = np.array(labels.spread(list(heights), list(sizes), 0.0, 1.0))
    order = np.argsort(heights)
    need = (sizes[order][1:] + sizes[order][:-1]) / 2

    def feasible(x):
        inside = x[0] >= sizes[order][0] / 2 - 1e-9 and x[-1] <= 1 - sizes[order][-1] / 2 + 1e-9
        return inside and (np.diff(x) >= need - 1e-9).all()

    assert feasible(places[order])
    # The cost is convex and so is what is allowed: where no small step is better, none is.
    cost = np.sum((places - heights) ** 2)
    for step in (0.05, 0.01, 0.002):
        for _ in range(3000):
            other = places[order] + rng.normal(0, step, 7) * (rng.random(7) < 0.5)
            if feasible(other):
                assert np.sum((other - heights[order]) ** 2) >= cost - 1e-9
    assert labels.spread([0.1, 0.9], [0.05, 0.05], 0.0, 1.0) == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("lengths", [(256, 512, 1024, 2048), (311, 456, 528, 600, 890, 1180, 1468, 1758, 1990), (7,)])
def test_numbers_of_close_lengths_do_not_touch(lengths):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4))
    _length_axis(axes, lengths)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) >= min(len(lengths), 4) and len(axes.get_xticks()) == len(lengths)
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))
    assert {axes.get_xticklabels()[0].get_text(), axes.get_xticklabels()[-1].get_text()} == {
        f"{lengths[0]:,}",
        f"{lengths[-1]:,}",
    }
    plt.close(figure)


def test_no_name_is_cut(tmp_path):
    results = scores.collect(fabricate.rows(figures=LONG), {"original_len": 256})
    made = report.tables.tables(results, report.score_all(results))
    looks = style.looks(results)
    drawn = plots.draw(results, report.score_all(results), looks, made, png=False)
    for plot in drawn:
        texts = [t.text or "" for t in ET.fromstring(plot.svg[plot.svg.index("<svg") :]).iter(SVG + "text")]
        assert not any("…" in text for text in texts)
        shown = "".join(texts).replace(" ", "")
        assert all(name.replace(" ", "") in shown for name in LONG), plot.name


def test_steps_are_whole_numbers():
    figures = {"plain": fabricate.FIGURES["plain"]}
    results = replace(scores.collect(fabricate.rows(figures=figures, examples=1)), training={
        "plain": (training.Curve({1: 4.0, 2: 3.5, 3: 3.0}, {}),)
    })  # fmt: skip
    with style.drawing("test") as plt:
        axes = plots.by_step(plt, results, style.looks(results)).axes[0]
        assert all(float(tick).is_integer() for tick in axes.get_xticks()) and len(axes.get_xticks()) > 2
