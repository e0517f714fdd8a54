"""Where results come from: command, date, the shape of the model, versions of packages and of this code, devices."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def beginning(loaded: Any) -> dict[str, Any]:
    """Returns what a report records about a model and a command: the model's shape and size, the date, the command.

    loaded: an LM.
    """
    import jax

    names = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "d_model", "vocab_size", "theta", "original_len")
    names += ("dtype", "precision")
    shape = {name: getattr(loaded.config, name) for name in names}
    return {
        "model": {"parameters": sum(x.size for x in jax.tree.leaves(loaded.params))} | shape,
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def commit() -> str | None:
    """Returns the git commit of this code, with "+" if tracked files have changed; None if git does not track it."""
    this_file = Path(__file__)
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # set inside hooks

    def git(*words: str) -> str | None:
        try:
            process = subprocess.run(
                ["git", *words], cwd=this_file.parent, env=env, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    if git("ls-files", "--error-unmatch", this_file.name) is None:
        return None
    head, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return head and head + ("+" if changed else "")


def versions() -> dict[str, str]:
    """Returns the versions that results depend on: packages, Python and commit, with machine and devices."""
    import jax

    software = {"python": platform.python_version()}
    for package in ("giraffe-jax", "jax", "jaxlib", "flax", "optax", "numpy"):
        try:
            software[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device, head = jax.devices()[0], commit()
    return (software if head is None else software | {"commit": head}) | {
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "system": f"{sys.platform} {platform.machine()}",
    }
