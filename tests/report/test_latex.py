"""tables.tex: names escaped, as many cells in each row as columns, bold where the page marks."""

import re
import shutil
import subprocess

import fabricate
import pytest

from giraffe_jax import report
from giraffe_jax.report import latex, scores, tables

NASTY = "a&b %_#$ {c}~^\\ [d]* <e>|\nf"


@pytest.fixture(scope="module")
def made():
    figures = {NASTY: fabricate.FIGURES["plain"], "yarn 8": fabricate.FIGURES["yarn 8"]}
    rows = [r for r in fabricate.rows(figures=figures) if r["length"] < 2048 or r["variant"] == NASTY]
    results = scores.collect(rows, {"original_len": 256})
    return tables.tables(results, report.score_all(results))


def test_special_characters_are_escaped():
    assert latex.escape(NASTY) == (
        r"a\&b \%\_\#\$ \{c\}\textasciitilde{}\textasciicircum{}\textbackslash{} {[}d]{*} "
        r"\textless{}e\textgreater{}\textbar{} f"
    )


def test_rows_have_as_many_cells_as_columns_and_bold_is_what_is_marked(made):
    text = latex.all_latex(made)
    blocks = re.findall(r"\\begin\{tabular\}\{(\w+)\}\n\\toprule\n(.*?)\\bottomrule", text, re.S)
    assert len(blocks) == len(made) == 5 and text.count(r"\begin{table}") == text.count(r"\end{table}") == 5
    for table, (columns, body) in zip(made, blocks, strict=True):
        rows = [line for line in body.splitlines() if line != r"\midrule"]
        assert len(rows) == 1 + len(table.variants) and all(row.endswith(r" \\") for row in rows)
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(columns)}
        assert body.count(r"\textbf") == sum(v is not None for v in table.best.values())
        assert body.count("{") == body.count("}")
    perplexity = blocks[0][1]
    assert r"\textbf{43.0} {\scriptsize " in perplexity and "% (" not in text
    assert text.count("effective length \\\\") == 2 and r"\textless{} 256" in text and "85\\%" in text
    assert text.isascii()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_pdflatex_sets_them(made, tmp_path):
    (tmp_path / "tables.tex").write_text(latex.all_latex(made))
    (tmp_path / "a.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{tables}\\end{document}"
    )
    subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
