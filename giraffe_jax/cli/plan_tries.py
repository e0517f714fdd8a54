"""Plans variations of the config given to `giraffe plan`, each by the same command with flags appended.

Each plan is a process of its own, so that the compiler's memory is released and this process survives its aborts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `--help` is answered without JAX
    from giraffe_jax.plan.tries import Changes, Tried

_KNOWN = ("fits", "peak_bytes", "needed_bytes", "host_bytes", "model_flops", "executed_flops", "step_seconds_bound")


def flags(changes: Changes, variant: int | None = None) -> list[str]:
    """Returns changes to a training config as command-line flags.

    Args:
      changes: config key -> value.
      variant: where the config is an experiment's, the index of the variant that is trained.
    """
    arguments = []
    for key, value in changes.items():
        if variant is not None:  # an experiment's variants share its model
            key = f"overrides.{key[6:]}" if key.startswith("model.") else f"variants[{variant}].train.{key}"
        arguments.append(f"--config.{key}={value}")
    return arguments


class Others:
    """Plans variations of one config.

    Args:
      args: the flags of `giraffe plan`.
      variant: as in `flags`.
      first: the Plan of the unchanged config.
      say: called with a line of text after each try.
    """

    def __init__(self, args: argparse.Namespace, variant: int | None, first: Any, say: Callable[[str], Any]):
        from giraffe_jax.plan import tries

        self.args, self.variant, self.plan, self.say, self.tries = args, variant, first, say, tries
        self.first = self._tried({}, dataclasses.asdict(first))

    def proposals(self, config: Any, model: Any) -> dict[str, Any]:
        """Returns {"proposals": changes with which the training fits, best first; "tried": every try}."""
        options = self.tries.candidates(config, model, self.plan.mesh)
        if self.plan.argument_bytes > self.plan.hbm_bytes:  # saving activations cannot help
            options.sort(key=lambda changes: not any(key.startswith(("mesh.", "optim.")) for key in changes))
        self.say(f"tried, of {len(options)} single changes and their combinations:")
        attempts = self.tries.propose(self.first, options, self.attempt, self.args.tries)
        best = self.tries.best_first(attempts)
        self.say("it fits with, best first:" if best else "none of these fits; use more chips or fewer tokens.")
        for proposal in best:
            self.say("  " + " ".join(self.flags(proposal.changes)))
        return dict(proposals=[self.row(t) for t in best], tried=[self.row(t) for t in attempts])

    def longest(self, config: Any) -> dict[str, Any]:
        """Returns the longest rows found to fit, the shortest found not to fit, and every try, as JSON values."""
        self.say("longest rows that fit; tried:")
        memory = dict(arguments=self.plan.argument_bytes, hbm=self.plan.hbm_bytes)
        outcome = self.tries.longest(self.first, config, self.plan.mesh, self.attempt, self.args.tries, **memory)
        fits, fails, tried = outcome
        rows = None if fits is None else self.tries.rows_of(config, self.plan.mesh, fits)
        if fits is None:
            self.say(f"no rows were found to fit; {fails:,} tokens do not.")
        else:
            short = "" if fails is None else f"; {fails:,} do not fit"
            self.say(f"the longest rows found to fit: {fits:,} tokens, {rows:,} rows per step{short}.")
        return dict(seq_len=fits, batch_size=rows, too_long=fails, tried=[self.row(t) for t in tried])

    def flags(self, changes: Changes) -> list[str]:
        """Returns `flags` for this command's variant."""
        return flags(changes, self.variant)

    def row(self, tried: Tried) -> dict[str, Any]:
        """Returns a try as a JSON object, with its changes as flags."""
        return {"flags": self.flags(tried.changes)} | {
            key: value for key, value in dataclasses.asdict(tried).items() if key != "changes"
        }

    def attempt(self, changes: Changes) -> Tried:
        """Returns the result of `giraffe plan` for the config with these changes."""
        from giraffe_jax.plan.text import of_try

        tried = self._attempt(changes)
        self.say("  " + of_try(tried, self.flags(changes), self.plan.hbm_bytes))
        return tried

    def _attempt(self, changes: Changes) -> Tried:
        args = self.args
        words = [f"--config={args.config}", *args.overrides, *self.flags(changes), f"--topology={args.topology}"]
        words += [f"--slices={args.slices}", "--json", "--tries=0"]
        for name in ("variant", "model", "document"):
            if getattr(args, name) is not None:
                words.append(f"--{name}={getattr(args, name)}")
        words += [f"--methods={folder}" for folder in args.methods]
        process = subprocess.run(
            [sys.executable, "-m", "giraffe_jax.cli", "plan", *words], capture_output=True, text=True
        )
        last = process.stdout.strip().splitlines()[-1:] or [""]
        if process.returncode in (0, 1) and last[0].startswith("{"):
            return self._tried(changes, json.loads(last[0]))
        return self.tries.Tried(changes, fits=False, refused=why(process.returncode, process.stderr))

    def _tried(self, changes: Changes, row: Mapping[str, Any]) -> Tried:
        return self.tries.Tried(changes, **{name: row[name] for name in _KNOWN})


def why(code: int, stderr: str) -> str:
    """Returns why a plan failed, from its exit status and its standard error."""
    if code < 0:  # by a signal
        check = re.search(r"Check failed: .*", stderr)
        return "the compiler aborted" + ("" if check is None else f" ({check[0].strip()})")
    lines = [line for line in stderr.splitlines() if line.startswith("giraffe: ")]
    return lines[-1].removeprefix("giraffe: ") if lines else f"exit status {code}"
