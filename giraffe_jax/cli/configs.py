"""What the verbs that read a config share: their flags, and the config those flags stand for."""

import argparse
import sys
from pathlib import Path
from typing import Any

from giraffe_jax.cli import distributed


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --config, --config.key=value and --distributed to a verb's parser."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="a Python file with get_config(), or the folder of a config.py; ARG is passed to get_config",
    )
    distributed_argument(parser)


def distributed_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config.KEY",
        dest="ignored",
        metavar="VALUE",
        help="set any key, as in --config.optim.lr=1e-4 or --config.tasks[0].lengths=[256,512]",
    )
    distributed.arguments(parser)


def workdir_argument(parser: argparse.ArgumentParser, help: str, required: bool = True) -> None:
    """Adds --workdir to a verb's parser; an empty one is refused, since a Path makes the current folder of it."""
    parser.add_argument("--workdir", required=required, metavar="DIR", type=_folder, help=help)


def _folder(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a folder; the current one is written as a dot.")
    return text


def load(args: argparse.Namespace) -> Any:
    """Returns the config that a command's flags stand for, after joining the job's other processes, if any."""
    from giraffe_jax import config

    for folder in reversed(import_roots(args.config)):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    values = config.load(args.config, args.overrides)
    distributed.join(args)
    return values


def import_roots(path: str) -> list[Path]:
    """Returns the folders that a config file may import from: here, its own, and the project it is in.

    So `from configs import models`, and methods named by a dotted path or in a file beside the config, work from
    wherever the command is typed.
    """
    file = Path(path.partition(":")[0]).absolute()
    own = file if file.is_dir() else file.parent
    project = [folder for folder in (own, *own.parents) if (folder / "pyproject.toml").is_file()][:1]
    return list(dict.fromkeys([Path.cwd(), own, *project]))
