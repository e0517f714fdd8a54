"""List every key that a config may have: type and range, default, meaning. With a NAME, only keys that begin with it.

  giraffe keys
  giraffe keys optim
  giraffe keys model.remat
  giraffe keys tasks.ruler
  giraffe keys --page=docs/config.md

A config file sets keys (`c.optim.lr = 1e-4`), and so do flags of any verb that reads one (`--config.optim.lr=1e-4`).
"""

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from giraffe_jax.cli import configs

if TYPE_CHECKING:
    from giraffe_jax.config.keys import Key

# Meanings of keys that several tasks share, where the task's own file gives none.
OF_TASKS = {
    "lengths": "Lengths to measure at, in tokens of the model's own tokenizer, answer included.",
    "n": "Examples of each length, or of each length and depth where there are depths.",
    "depths": "Positions of the answer in the prompt, from 0 (the start) to 1 (the end).",
    "scoring": 'How answers are scored: "teacher" by one forward pass over prompt and answer, right when every token '
    'of the answer is the most likely one; "generate" by greedy decoding.',
    "cue": "The prompt ends with the start of the answer.",
    "new_tokens": "Maximum number of tokens to generate.",
    "seed": "Seed of the random examples.",
    "name": "Which task.",
    "label": "The task's name in tables, needed if two tasks have the same name. None: the name.",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe keys`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a key, or the beginning of one: model")
    page = "write all keys as a Markdown page"
    parser.add_argument("--page", type=configs.new_file(), metavar="FILE", help=page)


def run(args: argparse.Namespace) -> int:
    """Prints the keys, or writes their page; returns 0.

    Raises:
      ConfigError: no key begins with NAME.
    """
    from giraffe_jax.config import ConfigError, nearest

    listed = list(sections())
    if args.page:
        from giraffe_jax.records import write_atomically

        write_atomically(Path(args.page), page(listed))
        print(f"{args.page}: {sum(len(keys) for _, _, keys in listed)} keys")
        return 0
    if args.name:
        wanted = args.name.replace("[i]", "")
        chosen = [
            (head, description, [k for k in keys if _begins(k.name, wanted)]) for head, description, keys in listed
        ]
        listed = [section for section in chosen if section[2]]
        if not listed:
            names = [key.name.replace("[i]", "") for _, _, keys in sections() for key in keys]
            raise ConfigError(f"NAME: no key is called {args.name!r}.{nearest(wanted, names)}")
    print("\n\n".join(_listing(head, keys) for head, _, keys in listed))
    return 0


def sections() -> Iterator[tuple[str, str, list["Key"]]]:
    """Yields (heading, description, keys) for each kind of config and each task."""
    from dataclasses import replace

    from giraffe_jax import evals
    from giraffe_jax.config.keys import keys
    from giraffe_jax.lab.spec import ExperimentConfig
    from giraffe_jax.lab.tables import SearchConfig
    from giraffe_jax.model import ModelConfig
    from giraffe_jax.training.config import TrainConfig

    listed: dict[type, str] = {}
    yield "giraffe train, giraffe plan", "A training.", list(keys(TrainConfig, "", listed))
    description = "The model. With a source, only what differs from the source's config."
    yield "model", description, list(keys(ModelConfig, "model.", listed))
    description = (
        "An experiment. `giraffe evaluate` reads the same keys, with `positions` (by default those the source was "
        "trained with) in place of `variants`."
    )
    yield "giraffe run, giraffe evaluate", description, list(keys(ExperimentConfig, "", listed))
    yield "giraffe search", "A search for frequencies.", list(keys(SearchConfig, "", listed))
    for name in evals.names():
        module = evals.module(name)
        task = [
            replace(key, meaning=key.meaning or OF_TASKS.get(key.name.rpartition(".")[2], ""))
            for key in keys(module.Task, f"tasks.{name}.")
        ]
        yield f"tasks: {name}", _summary(module.__doc__ or ""), task


def page(key_sections: list[tuple[str, str, list["Key"]]]) -> str:
    """Returns the Markdown page of all keys, from what `sections` yields."""
    from giraffe_jax.config.keys import ITS_KEYS

    lines = [
        "# Config reference\n",
        "Every key that a config may have. A config file returns them as an `ml_collections.ConfigDict` or a dict; "
        "any of them can be set on the command line too, `--config.optim.lr=1e-5`, whether the file sets it or not. "
        "A key that is not here is refused, with the nearest right name. `giraffe keys NAME` prints them in a "
        "terminal. This page is written by `giraffe keys --page=docs/config.md` from the dataclasses.\n",
        "`[i]` is an element of a list. *required* has no default.\n",
    ]
    for head, description, keys in key_sections:
        lines += [f"## {head}\n", f"{description}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        for key in keys:
            default = "*required*" if key.default is None else f"`{_cell(key.default)}`"
            default = key.default if key.default == ITS_KEYS else default
            name = key.name.removeprefix(f"tasks.{head.removeprefix('tasks: ')}.")
            lines.append(f"| `{name}` | {_cell(key.type)} | {default} | {_cell(key.meaning)} |")
        lines.append("")
    return "\n".join(lines)


def _summary(docstring: str) -> str:
    """Returns the first sentence of a docstring, on one line."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return f"{paragraph.split('. ')[0].rstrip('.')}."


def _begins(name: str, wanted: str) -> bool:
    plain = name.replace("[i]", "")
    return plain == wanted or plain.startswith(f"{wanted}.")


def _listing(head: str, keys: list["Key"]) -> str:
    lines = [head]
    for key in keys:
        default = "required" if key.default is None else f"default {key.default}"
        lines.append(f"  {key.name}: {key.type}; {default}")
        lines += textwrap.wrap(key.meaning, 110, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
