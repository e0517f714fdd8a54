"""The how-to pages: their code runs, and what they say of the code is so."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from giraffe_jax import evals, load
from giraffe_jax.cli.keys import sections
from giraffe_jax.config import build
from giraffe_jax.data import DataConfig
from giraffe_jax.model.config import REMAT
from giraffe_jax.positions import frequencies
from giraffe_jax.sharding import AXES

DOCS = Path(__file__).parents[2] / "docs"


def code(page: str, number: int = 0) -> str:
    """Returns the n-th Python block of a page."""
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)[number]


def test_the_own_task_asks_what_it_says(tmp_path, monkeypatch):
    (tmp_path / "echo_of_docs.py").write_text(code("own_task.md").replace("echo.Echo", "echo_of_docs.Echo"))
    monkeypatch.syspath_prepend(tmp_path)
    table = SimpleNamespace()
    exec(code("own_task.md", 1), {"c": table})
    task = evals.build(table.tasks[0] | dict(name="echo_of_docs.Echo", lengths=[96], n=5))
    module, lm = evals.module(task.name), load("giraffe-mini")
    rows = list(module.rows(task, lm, 96, lm.config.bind(96), tokens_per_batch=512))
    assert len(rows) == 5 and all("teacher" in row["metrics"] for row in rows)
    for example in module.examples(task, lm.tokenizer, 96):
        prompt = lm.tokenizer.decode(example.prompt)
        assert re.match(r"\d{3}\.( The grass is green\.)+ The number was", prompt)
        assert prompt.startswith(f"{example.expected}.") and 80 < len(example.prompt) + len(example.answer) <= 96


def test_the_own_method_is_what_its_docstring_says(tmp_path, monkeypatch):
    (tmp_path / "halfway_of_docs.py").write_text(code("encoding.md"))
    monkeypatch.syspath_prepend(tmp_path)
    llama = dict(head_dim=64, theta=1e4, original_len=2048)
    ours, _ = frequencies([dict(name="halfway_of_docs.halfway", sharp=2.0)], **llama)
    plain, _ = frequencies([], **llama)
    np.testing.assert_allclose(ours / plain, 1 - (np.arange(32) / 31) ** 2 / 2, rtol=1e-6)


def test_memorys_table_has_every_remat_policy_but_one():
    """ "offload_attention" is in the config reference."""
    said = re.findall(r'^ +\| `"(\w+)"` \|', (DOCS / "memory.md").read_text(encoding="utf-8"), re.M)
    assert set(said) == {"none", *REMAT} - {"offload_attention"}


def test_meshes_table_has_every_axis():
    page = (DOCS / "meshes.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `(\w+)` \|", page, re.M)) == AXES


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_all_code_is_python_and_keys_of_a_config_are_keys(page):
    """`c.data = dict(...)` builds a DataConfig, and other keys that are set are those of a config."""
    text = page.read_text(encoding="utf-8")
    known = {key.name.replace("[i]", "") for _, _, found in sections() for key in found}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                name = ast.unparse(node.targets[0])
                assert not name.startswith("c.") or name.removeprefix("c.") in known, f"{page.name}: {name}"
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "c.data":
                build(DataConfig, eval(ast.unparse(node.value)))
    for name in re.findall(r"`c\.([a-z_.]+)(?: = [^`]+)?`", text):
        assert name in known or name == "lora", f"{page.name}: c.{name}"
