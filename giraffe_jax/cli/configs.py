"""Flags shared by the verbs that read a config, and how those flags become a config."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from giraffe_jax.cli import distributed


def config_arguments(parser: argparse.ArgumentParser, several: bool = True) -> None:
    """Adds --config, --config.key=value and, if `several` processes may run the verb, --distributed."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="a Python file with get_config(), the folder of a config.py, or the name of one that "
        "ships (quickstart); ARG is passed to get_config",
    )
    distributed_argument(parser, several)


def shape_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --model, for a verb that needs no weights."""
    text = "a model shape of configs/models.py (llama2_7b, ...), for a source whose config.json is not on this machine"
    parser.add_argument("--model", metavar="NAME", help=text)


def shape(args: argparse.Namespace) -> Any:
    """Returns the ModelConfig keys of the shape that --model names, or None without --model.

    Raises:
      ConfigError: there is no such shape.
    """
    from giraffe_jax.config import ConfigError, nearest

    if args.model is None:
        return None
    models = importlib.import_module("configs.models")
    of_module = {name: value for name, value in vars(models).items() if not name.startswith("_") and name != "llama"}
    known = [name for name, value in of_module.items() if getattr(value, "__module__", "") == models.__name__]
    if args.model not in known:
        raise ConfigError(f"--model: got {args.model!r}; shapes are {', '.join(known)}.{nearest(args.model, known)}")
    return of_module[args.model]().to_dict()


def distributed_argument(parser: argparse.ArgumentParser, several: bool = True) -> None:
    """Adds --config.KEY (for --help; overrides are split off earlier) and, if `several`, --distributed."""
    parser.add_argument(
        "--config.KEY",
        dest="ignored",
        metavar="VALUE",
        help="set any key, as in --config.optim.lr=1e-4 or --config.tasks[0].lengths=[256,512]",
    )
    if several:
        distributed.arguments(parser)


def workdir_argument(parser: argparse.ArgumentParser, help: str, required: bool = True) -> None:
    """Adds --workdir. An empty value is rejected: Path("") would silently be the current folder."""
    parser.add_argument("--workdir", required=required, metavar="DIR", type=_workdir, help=help)


def keep_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --keep."""
    keep = "keep (and mark) results whose methods, documents... have changed since; by default they are measured again"
    parser.add_argument("--keep", action="store_true", help=keep)


def folder(text: str) -> str:
    """Returns a flag's folder name unchanged; argparse type that rejects an empty one."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a folder; write . for the current folder.")
    return text


def source(text: str) -> str:
    """Returns a flag's source unchanged; argparse type that rejects an empty one."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a directory, a .gguf file or a packaged model's name."
        )
    return text


def base_argument(parser: argparse.ArgumentParser, suffix: str = "") -> None:
    """Adds --base; `suffix` is appended to its help."""
    text = "directory of an adapter's base model, if it is not beside the adapter; or of a LoRA run's source that has "
    text += f"moved{suffix}"
    parser.add_argument("--base", type=source, metavar="DIR", help=text)


def new_file(*suffixes: str) -> Callable[[str], str]:
    """Returns an argparse type for the name of a file to write, ending in one of `suffixes` if any are given."""

    def read(text: str) -> str:
        path = Path(folder(text))
        if suffixes and path.suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"got {text}, expected a name that ends in {' or '.join(suffixes)}.")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"got {text}, which is a folder.")
        _check_place(path.absolute().parent, text)
        return text

    return read


def number(kind: type, low: int | float, **bound: Any) -> Callable[[str], Any]:
    """Returns an argparse type for an int or float within config.Bound(low, **bound)."""
    from giraffe_jax.config import Bound, ConfigError, coerce

    def read(text: str) -> Any:
        try:
            return coerce(Annotated[kind, Bound(low, **bound)], kind(text), "")
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from error
        except ValueError as error:  # not a number, or one with thousands of digits
            expected = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text[:40]!r}.") from error

    return read


def _workdir(text: str) -> str:
    """Returns a workdir's name; rejects, before anything is read, a path where no folder exists or can be created."""
    if "://" not in folder(text):  # remote paths are checked by the checkpoint library
        _check_place(Path(text).absolute(), text)
    return text


def _check_place(path: Path, text: str) -> None:
    existing = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"got {text}, but {existing} is not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"got {text}, but {existing} cannot be written in.")


def load(args: argparse.Namespace) -> Any:
    """Returns the config that a command's flags describe, after joining the job's other processes, if any.

    Raises:
      ConfigError: the config belongs to another verb; or any error of `read`.
    """
    values = read(args)
    verbs = {"run": "variants", "evaluate": "tasks", "train": "steps"}
    own = verbs.get(getattr(args, "verb", ""), "")
    if own and own not in values:
        _check_spelling(own, list(values))
    for verb, key in verbs.items():
        if key in values:
            _check_verb(args, verb, key)
            break
    distributed.join(args)
    return values


def _check_spelling(key: str, given: list[str]) -> None:
    from giraffe_jax.config import ConfigError, nearest

    for name in given:  # else a misspelled `variants` reads as the config of another verb
        if name not in ("variants", "tasks", "steps") and (hint := nearest(name, [key])):
            raise ConfigError(f"config.{name}: unknown key.{hint}")


def _check_verb(args: argparse.Namespace, verb: str, key: str) -> None:
    from giraffe_jax.config import ConfigError

    if getattr(args, "verb", verb) != verb:
        flag = "" if verb == "run" else "--config="
        raise ConfigError(f"config.{key}: `giraffe {args.verb}` takes no such config; `giraffe {verb} {flag}...` does.")


def read(args: argparse.Namespace) -> Any:
    """Returns the config that a command's flags describe: the file with its overrides applied."""
    from giraffe_jax import config

    path = found(args.config)
    for root in reversed(import_roots(path)):
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
    return config.load(path, args.overrides)


def shipped() -> Path:
    """Returns the folder that holds the shipped configs/ and experiments/: in the package if it was installed from a
    wheel, else the root of the clone."""
    package = Path(__file__).parents[1]
    return package / "shipped" if (package / "shipped").is_dir() else package.parent


def found(path: str) -> str:
    """Returns FILE[:ARG] unchanged if the file exists, else the path of the shipped config of that name, if any.

    `quickstart` is experiments/quickstart, and `longlora` is configs/longlora.py.
    """
    name, colon, argument = path.partition(":")
    if not name.strip() or os.path.lexists(name):
        return path
    for place in (shipped(), shipped() / "experiments", shipped() / "configs"):
        for file in (place / name, place / f"{name}.py"):
            if file.is_file() or (file / "config.py").is_file():
                return f"{file}{colon}{argument}"
    return path


def quiet(args: argparse.Namespace) -> None:
    """Silences the checkpoint-writing threads, whose errors are raised and printed once anyway; not with --debug.

    Orbax logs each error with a traceback in every thread, and tensorstore reports it to event loops that are closed.
    """
    if args.debug:
        return
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook


def import_roots(path: str) -> list[Path]:
    """Returns the folders that a config file may import from: the current one, its own, its project's, the shipped one.

    With them, `from configs import models` and methods given by a dotted path or in a file beside the config work
    wherever the command is run.
    """
    file = Path(path.partition(":")[0]).absolute()
    parent = file if file.is_dir() else file.parent
    project = [folder for folder in (parent, *parent.parents) if (folder / "pyproject.toml").is_file()][:1]
    return list(dict.fromkeys([Path.cwd(), parent, *project, shipped()]))
