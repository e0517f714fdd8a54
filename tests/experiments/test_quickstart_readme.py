"""What the README shows of the quick start is what a run wrote."""

import csv
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("quickstart_readme", ROOT / "experiments/quickstart/readme.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_the_tables_of_the_results_beside_its_pictures(script):
    readme = (ROOT / "experiments/quickstart/README.md").read_text(encoding="utf-8")
    assert script.with_tables(readme, script.tables()) == readme
    with open(ROOT / "docs/quickstart/results.csv", encoding="utf-8", newline="") as file:
        [row] = [
            r for r in csv.DictReader(file) if (r["variant"], r["task"], r["length"]) == ("plain", "perplexity", "256")
        ]
    line = next(line for line in readme.splitlines() if line.startswith("| plain | ") and "%" not in line)
    assert line.split("|")[2].split()[0] == f"{float(row['value']):.1f}"


def test_a_run_that_is_not_finished_changes_nothing(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "DOCS", tmp_path / "docs")
    with pytest.raises(SystemExit):
        script.main([str(tmp_path)])
    assert "results.csv" in capsys.readouterr().err and not (tmp_path / "docs").exists()
