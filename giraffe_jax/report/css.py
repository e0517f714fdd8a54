"""The page's style sheet, whose colours come from `style.css_variables`, and its script that makes tables sortable."""

# Each column heading becomes a button that sorts ascending, then descending; cells without a number stay at the end.
SORT = """\
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
      body.append(...[...body.rows].sort((a, b) => {
        const [x, y] = [key(a, i), key(b, i)];
        return x === "" || y === "" ? (x === "") - (y === "") : order(x, y) * (down ? -1 : 1);
      }));
    });
  });
}
"""

SHEET = """\
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --wash: #f3f1eb; --mark: #e8f1ec; --bad: #a63328;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", "URW Palladio L", "Noto Serif", Georgia,
    serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --wash: #20252d; --mark: #1f3530; --bad: #f09a8f; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.6 var(--serif); overflow-wrap: break-word;
}
main { max-width: 76rem; margin: 0 auto; padding: 4.5rem 1.5rem 5rem; }
header { border-bottom: 1px solid var(--grid); padding-bottom: 1.8rem; }
.kicker, .facts, small, figcaption, th, .figure span, footer, summary, nav { font-family: var(--sans); }
.kicker {
  margin: 0 0 .9rem; font-size: .78rem; letter-spacing: .09em; text-transform: uppercase; color: var(--muted);
}
h1 {
  margin: 0 0 .7rem; font-size: clamp(1.9rem, 5vw, 2.75rem); line-height: 1.14; font-weight: 600;
  letter-spacing: -.012em; text-wrap: balance;
}
h2 { margin: 4rem 0 .4rem; font-size: 1.55rem; line-height: 1.25; font-weight: 600; letter-spacing: -.005em; }
h3 { margin: 2.4rem 0 .3rem; font: 600 .95rem/1.4 var(--sans); }
p { margin: .7rem 0; max-width: 44rem; }
.question { font-size: 1.18rem; font-style: italic; color: var(--muted); text-wrap: pretty; }
.verdict { font-size: 1.08rem; line-height: 1.55; max-width: 52rem; margin: 1rem 0; text-wrap: pretty; }
.verdict b { font-weight: 600; }
.verdict + .facts { margin-top: 1.6rem; }
.facts { font-size: .86rem; color: var(--muted); margin: .3rem 0 0; max-width: none; }
.facts b { font-weight: 600; color: var(--ink); }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; margin: 2rem 0 1.2rem;
}
.figure {
  background: var(--card); border: 1px solid var(--grid); border-radius: 10px; padding: 1.2rem 1.3rem 1.15rem;
}
.figure strong {
  display: block; font-size: 2.7rem; line-height: 1.05; font-weight: 500; letter-spacing: -.02em;
  font-variant-numeric: lining-nums;
}
.finding b { font-weight: 600; }
.figure span { display: block; margin-top: .55rem; font-size: .84rem; line-height: 1.45; color: var(--muted); }
.how { color: var(--muted); font-size: .95rem; }
.how b { color: var(--ink); font-weight: 600; }
figure {
  max-width: 62rem; margin: 1.4rem 0 1.8rem; padding: 1.1rem 1.1rem .9rem; background: var(--card);
  border: 1px solid var(--grid); border-radius: 10px;
}
figure svg { font-family: var(--sans); display: block; width: 100%; min-width: 40rem; height: auto; }
figcaption { font-size: .84rem; line-height: 1.5; color: var(--muted); margin: .8rem .2rem 0; max-width: 46rem; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
.scroll:focus-visible { outline: 2px solid var(--c1); outline-offset: 3px; }
table {
  border-collapse: collapse; width: 100%; font: .9rem/1.35 var(--sans);
  font-variant-numeric: tabular-nums lining-nums; margin: .8rem 0 .4rem;
}
th, td { padding: .5rem .75rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
thead th { font-weight: 600; border-bottom: 1.5px solid var(--muted); vertical-align: bottom; }
thead th:first-child { text-align: left; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--c1); outline-offset: 3px; }
th[aria-sort=ascending] button::before { content: "↑ "; }
th[aria-sort=descending] button::before { content: "↓ "; }
tbody th {
  font-weight: 500; text-align: left; position: sticky; left: 0; background: var(--paper);
  white-space: normal; overflow-wrap: anywhere; min-width: 9rem; max-width: 22rem;
}
th:first-child { padding-left: 0; }
th i { display: inline-block; width: .72em; height: .72em; border-radius: 50%; margin-right: .6em; }
th i.hollow { background: none; border: 2px solid; }
td small, th small { display: block; font-size: .76rem; font-weight: 400; color: var(--muted); }
table.variants td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
table.variants td:nth-child(2) { min-width: 12rem; }
table.variants th { text-align: left; }
table.between thead th { white-space: normal; overflow-wrap: anywhere; min-width: 5rem; }
.strip { display: block; }
.kind { color: var(--muted); font-size: .82rem; }
td.best { background: var(--mark); font-weight: 650; }
td.best small { font-weight: 400; }
.failures li { margin: .3rem 0; overflow-wrap: anywhere; }
.failures code { color: var(--bad); }
nav { margin: 1.6rem 0 0; font-size: .86rem; display: flex; flex-wrap: wrap; gap: .35rem 1.2rem; }
a { color: var(--c1); text-decoration-thickness: 1px; text-underline-offset: .18em; }
details { margin: 1rem 0; border-top: 1px solid var(--grid); padding-top: .8rem; }
summary { cursor: pointer; font-size: .92rem; font-weight: 600; }
pre, code { font: .82rem/1.5 var(--mono); }
pre { overflow-x: auto; background: var(--wash); border-radius: 8px; padding: 1rem 1.1rem; margin: .8rem 0; }
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.3rem; font: .9rem/1.5 var(--sans);
  margin: 1rem 0;
}
dd pre { margin: 0; padding: .5rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
footer {
  margin-top: 4rem; padding-top: 1.2rem; border-top: 1px solid var(--grid); font-size: .82rem;
  color: var(--muted);
}
@media (max-width: 40rem) {
  body { font-size: 16px; }
  main { padding: 2.4rem 1.1rem 3rem; }
  h2 { margin-top: 3rem; }
  figure { margin-left: -.4rem; margin-right: -.4rem; padding: .7rem .7rem .6rem; }
  tbody th { min-width: 7.6rem; max-width: 9.5rem; white-space: normal; }
  dl { grid-template-columns: 1fr; gap: .1rem; }
  dd { margin-bottom: .5rem; }
}
@media (max-width: 46rem) {
  .scroll + figcaption::before { content: "Swipe sideways for the rest. "; font-style: italic; }
}
@media print {
  body { background: none; font-size: 11pt; }
  main { max-width: none; padding: 0; }
  figure svg { min-width: 0; }
  h2, h3 { break-after: avoid; }
  figure, .figure, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
}
"""
