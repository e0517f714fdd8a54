"""The README's first screen is what CI runs, and what it says of the code is so."""

import re
from pathlib import Path

from giraffe_jax.cli import VERBS, methods

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


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
    want = {kind: [entry.name for entry in methods.catalogue() if entry.kind == kind] for kind in methods.KINDS}
    assert rows == want


def test_the_field_guide_is_what_the_methods_say_of_themselves():
    from giraffe_jax.cli.field_guide import page_text

    page = Path(__file__).parent.parent / "docs" / "methods.md"
    assert page.read_text(encoding="utf-8") == page_text(methods.catalogue(), "methods"), (
        "giraffe methods --page=docs/methods.md"
    )
    assert {file.stem for file in page.with_suffix("").glob("*.svg")} == {entry.name for entry in methods.catalogue()}


def test_every_verb_is_described():
    assert set(VERBS) <= set(re.findall(r"`giraffe (\w+)", README))


def test_the_config_is_one_that_can_be_built(tmp_path):
    from giraffe_jax import config, positions
    from giraffe_jax.train import TrainConfig

    section = README[README.index("## A config in ten lines") :]
    code = section[section.index("```python\n") + 10 :]
    (tmp_path / "config.py").write_text(code[: code.index("```")])
    flags = ["--config.optim.lr=1e-5", "--config.model.positions[0].factor=8"]
    built = config.build(TrainConfig, config.load(tmp_path / "config.py", flags))
    assert built.optim.lr == 1e-5
    assert positions.check(built.model["positions"])[0].numbers["factor"] == 8.0
