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
        help="set one key of the config; items of lists too: --config.model.positions[0].factor=8",
    )
    distributed.arguments(parser)


def load(args: argparse.Namespace) -> Any:
    """Returns the ConfigDict that a command's flags stand for, after joining the job's other processes, if any."""
    from giraffe_jax import config

    for folder in reversed(import_roots(args.config)):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    values = config.load(args.config, args.overrides)
    distributed.join(args)
    return values


def import_roots(path: str) -> list[Path]:
    """Returns the folders that a config file may import from: here, and the project the file is in.

    So `from configs import models` and methods named by a dotted path work from wherever the command is typed.
    """
    file = Path(path.partition(":")[0]).absolute()
    return [Path.cwd(), *[folder for folder in file.parents if (folder / "pyproject.toml").is_file()][:1]]
