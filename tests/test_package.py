"""What is installed from a wheel: all of the package, with its configs and experiments, in a folder without a clone.

pytest -n0 -m slow tests/test_package.py
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import giraffe_jax

ROOT = Path(__file__).parent.parent


def test_versions_agree():
    """pyproject.toml, the package and CITATION.cff."""
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert version == cited == giraffe_jax.__version__ == importlib.metadata.version("giraffe-jax")


def test_it_says_that_it_is_typed():
    assert (ROOT / "giraffe_jax" / "py.typed").is_file()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", str(ROOT), "-w", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (file,) = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_has_what_the_clone_has(wheel):
    command = ["git", "ls-files", "giraffe_jax", "configs", "experiments"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    want = {name if name.startswith("giraffe_jax/") else f"giraffe_jax/shipped/{name}" for name in tracked}
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert want == {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_its_experiments_run_in_an_empty_folder(wheel, tmp_path):
    """Dependencies are those of this environment; the package is the wheel's."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    env = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}

    def giraffe(*words):
        command = [sys.executable, "-m", "giraffe_jax.cli", *words]
        return subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, timeout=600)

    where = subprocess.run(
        [sys.executable, "-c", "import giraffe_jax; print(giraffe_jax.__file__)"],
        cwd=empty, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site))
    run = giraffe("run", "quickstart", "--dry-run")
    assert run.returncode == 0 and "cells are left to measure" in run.stdout, run.stderr
    dry = giraffe("train", "--config=longlora", "--dry-run", "--model=llama2_7b", "--config.model.original_len=4096")
    assert "no configs" not in dry.stderr and "no such file" not in dry.stderr
