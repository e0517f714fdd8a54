"""The README's first screen is what CI runs, and what it says of the code is so."""

import re
import textwrap
from pathlib import Path

import numpy as np

from giraffe_jax.cli import VERBS, catalogue
from giraffe_jax.positions import frequencies

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_screen_has_exactly_the_two_commands_that_ci_runs():
    screen = README[: README.index("\n## ")]
    marked = re.findall(r"<!-- ci: (\w+) -->\n```bash\n(.+)\n```\n", screen)
    assert [name for name, _ in marked] == ["quickstart", "tests"]
    assert len(re.findall("^```", screen, re.MULTILINE)) == 4
    assert len(screen.splitlines()) <= 25


def test_the_table_of_methods_is_the_catalogue():
    section = README[README.index("## Methods") : README.index("[docs/methods.md]")]
    rows = {
        kind: re.findall(r"`(\w+)`", names) for kind, names in re.findall(r"^\| (\w+): .+? \| (.+) \|", section, re.M)
    }
    want = {kind: [entry.name for entry in catalogue.catalogue() if entry.kind == kind] for kind in catalogue.KINDS}
    assert rows == want


def test_the_field_guide_is_what_the_methods_say_of_themselves():
    from giraffe_jax.cli.field_guide import page_text

    page = Path(__file__).parent.parent / "docs" / "methods.md"
    assert page.read_text(encoding="utf-8") == page_text(catalogue.catalogue(), "methods"), (
        "giraffe methods --page=docs/methods.md"
    )
    assert {file.stem for file in page.with_suffix("").glob("*.svg")} == {entry.name for entry in catalogue.catalogue()}


def test_contributings_method_is_the_repositorys_and_one_file_of_code_and_one_test():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code, test = (textwrap.dedent(block) for block in re.findall(r"```python\n(.+?)```", text, re.DOTALL)[:2])
    method = ROOT / "giraffe_jax" / "positions" / "methods" / "resonance.py"
    assert code == method.read_text(encoding="utf-8")
    assert test in (ROOT / "tests" / "positions" / "test_resonance.py").read_text(encoding="utf-8")
    named = [f for f in (ROOT / "giraffe_jax").rglob("*.py") if "resonance" in f.read_text(encoding="utf-8").lower()]
    assert named == [method]  # nothing else of the package knows it


def test_it_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 150


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_verb_is_described():
    assert set(VERBS) <= set(re.findall(r"`giraffe (\w+)", README))


def test_the_config_is_one_that_can_be_built(tmp_path):
    from giraffe_jax import config, positions
    from giraffe_jax.training.config import TrainConfig

    section = README[README.index("### A config in ten lines") :]
    code = section[section.index("```python\n") + 10 :]
    (tmp_path / "config.py").write_text(code[: code.index("```")])
    flags = ["--config.optim.lr=1e-5", "--config.model.positions[0].factor=8"]
    built = config.build(TrainConfig, config.load(tmp_path / "config.py", flags))
    assert built.optim.lr == 1e-5
    assert positions.check(built.model["positions"])[0].numbers["factor"] == 8.0


def block(section, language):
    text = README[README.index(f"## {section}") :]
    text = text[text.index(f"```{language}\n") + len(language) + 4 :]
    return text[: text.index("```")]


def test_the_own_method_is_one(tmp_path, monkeypatch):
    code = block("Methods", "python")
    (tmp_path / "my_method.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (entry,) = re.findall(r"dict\(name=.*\)", code.split("#")[1])
    about: dict = dict(head_dim=64, theta=1e4, original_len=2048)
    ratio = frequencies([eval(entry)], **about)[0] / frequencies([], **about)[0]
    np.testing.assert_allclose(ratio, 8.0 ** -(np.arange(32) / 31), rtol=1e-6)
