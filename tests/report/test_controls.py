"""Everything that can be used on the page is used, in chromium: headings that sort, links, what folds; both widths and
schemes."""

import html
import json
import math
import re
import shutil

import fabricate
import pytest
import screens

from giraffe_jax import report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium"),
]
# Appended to a copy of the page; what it saw goes to the page around it, which has the width of a window.
PROBE = """<script>
(async () => {
  const later = () => new Promise(done => setTimeout(done, 60));
  const colour = (part, name) => getComputedStyle(document.querySelector(part))[name];
  const seen = { width: innerWidth, needs: document.documentElement.scrollWidth, sorts: [], links: [], folds: [] };
  seen.colours = [colour("body", "backgroundColor"), colour("h1", "color"), colour("figure", "backgroundColor"),
    colour("figure svg text", "fill"), colour("td.best", "backgroundColor"), colour("tbody th", "backgroundColor")];
  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0];
    for (const head of table.tHead.rows[0].cells) {
      const read = () => [...body.rows].map(row => row.cells[head.cellIndex])
        .map(cell => cell.dataset.value ?? cell.textContent);
      const button = head.querySelector("button"), texts = [read()], says = [];
      button.focus();
      for (let i = 0; i < 2; i++) {
        button.click();
        texts.push(read());
        says.push([head.getAttribute("aria-sort"), table.querySelectorAll("[aria-sort]").length]);
      }
      seen.sorts.push({ texts, says, focused: document.activeElement === button, rows: body.rows.length });
    }
  }
  for (const link of document.querySelectorAll("nav a")) {
    link.click();
    await later();
    const target = document.querySelector(":target");
    seen.links.push([link.getAttribute("href"), target && "#" + target.id, Math.abs(scrollY)]);
  }
  for (const fold of document.querySelectorAll("details")) {
    const states = [[fold.open, fold.offsetHeight]];
    for (let i = 0; i < 2; i++) {
      fold.querySelector("summary").click();
      await later();
      states.push([fold.open, fold.offsetHeight]);
    }
    seen.folds.push(states);
  }
  seen.needsAfter = document.documentElement.scrollWidth;
  seen.inside = [...document.querySelectorAll(".scroll")].map(part => [part.scrollWidth, part.clientWidth]);
  parent.postMessage(JSON.stringify(seen), "*");
})();
</script>"""
AROUND = """<body style='margin:0'><iframe src='probed.html' style='border:0;width:{}px;height:900px'></iframe>
<pre></pre><script>onmessage = e => {{ document.querySelector("pre").textContent = e.data; }}</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs")
    figures = {name: fabricate.FIGURES[name] for name in ("plain", "yarn 4")}
    runs = [fabricate.write(where / "a", whole=True), fabricate.write(where / "b", figures=figures)]
    return report.write(runs, where / "out", png=False)


def use(page, folder, width, scheme):
    folder.mkdir()
    (folder / "probed.html").write_text(page.read_text() + PROBE)
    (folder / "around.html").write_text(AROUND.format(width))
    done = screens.chromium(
        folder / "around.html", "--dump-dom", "--virtual-time-budget=20000", f"--window-size={max(width, 500)},900",
        f"--blink-settings=preferredColorScheme={screens.SCHEMES[scheme]}", profile=folder / "profile",
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    (text,) = re.findall(r"<pre>(.+?)</pre>", done.stdout, re.S)
    return json.loads(html.unescape(text))


def is_sorted(values, down):
    """Numbers by size, with what is missing at the end; texts are in some order of people's, so only reversed."""
    there = [v for v in values if v != ""]
    if values[: len(there)] != there:
        return False
    try:
        numbers = [float(v) for v in there]
    except ValueError:
        return True
    assert not any(math.isnan(x) for x in numbers)
    return numbers == sorted(numbers, reverse=down)


def test_every_control_does_what_it_says(page, tmp_path):
    colours = {}
    for width in (1280, 390):
        for scheme in screens.SCHEMES:
            seen = use(page, tmp_path / f"{width}-{scheme}", width, scheme)
            assert seen["width"] == width and max(seen["needs"], seen["needsAfter"]) <= width
            assert width < 1280 or all(needs <= there for needs, there in seen["inside"]), "nothing moves sideways"
            colours[width, scheme] = seen["colours"]
            tables = page.read_text().count("<table")
            assert len(seen["sorts"]) == page.read_text().count("<th scope='col'>") > 4 * tables
            for column in seen["sorts"]:
                before, up, down = column["texts"]
                assert column["says"] == [["ascending", 1], ["descending", 1]] and column["focused"]
                assert sorted(before) == sorted(up) == sorted(down) and len(up) == column["rows"]
                assert is_sorted(up, False) and is_sorted(down, True), column
                if len(set(before)) == len(before) and "" not in before:
                    assert down == up[::-1]
            assert [target for _, target, _ in seen["links"]] == [href for href, _, _ in seen["links"]]
            assert len(seen["links"]) == 4 and len({y for _, _, y in seen["links"]}) == 4
            assert len(seen["folds"]) == 1
            for (closed, low), (opened, high), (again, last) in seen["folds"]:
                assert (closed, opened, again) == (False, True, False) and low == last < high
    for width in (1280, 390):
        light, dark = colours[width, "light"], colours[width, "dark"]
        assert all(one != other for one, other in zip(light, dark, strict=True)), (light, dark)
    assert colours[1280, "dark"] == colours[390, "dark"]


def test_pictures_are_small_and_of_their_size(page, tmp_path):
    picture = screens.shoot(page, tmp_path / "picture.png", "narrow", "dark")
    assert picture.size == screens.SIZES["narrow"] and sum(picture.getpixel((2, 2))) < 150
    assert len(screens.small(picture)) < screens.LARGEST
