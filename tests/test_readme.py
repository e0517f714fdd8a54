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
    table = README[README.index("## Methods") : README.index("They compose")]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == [entry.name for entry in methods.catalogue()]


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
