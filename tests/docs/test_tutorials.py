"""The tutorials, followed to the letter in an empty folder: every file they show is written, every command is run.

    pytest -n0 -m slow tests/docs/test_tutorials.py        # some ten minutes on two cores

A Python block is the file that the paragraph above it names last; a bash block is run line by line. A comment above a
block says what it needs ("<!-- needs: transformers -->"), or that its command ends with another exit status than 0;
blocks marked `text` are shown and not run.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


class Block(NamedTuple):
    """A code block of a page: its language, its text, the file it is, and what the comment above it says."""

    language: str
    text: str
    file: str
    needs: tuple[str, ...]
    status: int


def blocks(page: str) -> list[Block]:
    """Returns the code blocks of a page in order."""
    found = []
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        above = page[: match.start()].rstrip().split("\n\n")[-1]
        comment = re.search(r"<!-- (.+) -->$", above)
        paragraph = page[: match.start()].rstrip().split("\n\n")[-2] if above.startswith("<!--") else above
        files = re.findall(r"`([\w/]+\.py)`", paragraph)
        said = comment[1] if comment else ""
        needs = re.search(r"needs: ([\w, ]+)", said)
        status = re.search(r"exit status: (\d)", said)
        found.append(
            Block(
                match[1],
                match[2],
                files[-1] if files else "",
                tuple(needs[1].split(", ")) if needs else (),
                int(status[1]) if status else 0,
            )
        )
    return found


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_blocks_are_files_or_commands(page: Path):
    """Every Python block says which file it is, and is Python; every command is one of ours."""
    for block in blocks(page.read_text(encoding="utf-8")):
        assert block.language in ("python", "bash", "text")
        if block.language == "python":
            assert block.file, block.text
            compile(block.text, block.file, "exec")
        if block.language == "bash":
            for line in block.text.splitlines():
                assert shlex.split(line)[0] in ("giraffe", "python"), line


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_followed_to_the_letter(page: Path, tmp_path: Path):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in {"giraffe": "-m giraffe_jax.cli", "python": ""}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        (commands / name).chmod(0o755)
    folder = tmp_path / "empty"
    folder.mkdir()
    here = os.environ | {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": "",  # one device, as a user has it
    }
    run = 0
    for block in blocks(page.read_text(encoding="utf-8")):
        if any(importlib.util.find_spec(name) is None for name in block.needs):
            continue
        if block.language == "python":
            (folder / block.file).write_text(block.text, encoding="utf-8")
        if block.language == "bash":
            for line in block.text.splitlines():
                done = subprocess.run(line, shell=True, cwd=folder, env=here, capture_output=True, text=True)
                assert done.returncode == block.status, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
                run += 1
    assert run or page.stem == "plan"  # whose commands need libtpu
