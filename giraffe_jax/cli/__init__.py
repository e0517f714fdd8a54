"""The command line: `giraffe <verb>`. Flags are built into a config, and one function of the library is called with it.

Each verb is a module of this folder with `arguments(parser)` and `run(args) -> exit status`. Nothing heavy is imported
before a verb runs, so that help and mistakes are answered at once.
"""

import contextlib
import importlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from giraffe_jax import __version__
from giraffe_jax.tuning import tune

if TYPE_CHECKING:  # an interrupt is answered from the start of main() on: what can wait is imported inside it
    import argparse

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130

VERBS = {
    "methods": "the catalogue of position methods; with a name, one of them drawn and explained",
    "keys": "every key that a config may have: type, range, default, meaning",
    "train": "train a model; the same command again continues where it stopped",
    "plan": "does a training fit TPUs that are not there: memory, FLOPs, collectives, time and cost of its step",
    "evaluate": "measure one model on tasks x lengths",
    "search": "the frequencies that carry a model furthest, by evolution",
    "run": "an experiment: all its variants, then the report",
    "report": "results of experiments -> tables, plots and one HTML page",
    "import": "a Hugging Face directory or a GGUF file -> a checkpoint",
    "export": "any source -> a Hugging Face directory that transformers and vLLM load",
    "generate": "continue a prompt",
    "bench": "time and peak memory on this machine, beside transformers",
    "check": "prove on this machine that runs resume bit for bit, that sharding changes nothing, that methods agree",
}

EPILOG = """exit status: 0 done, 1 the work failed, 2 the request was wrong.
`giraffe VERB --help` says what a verb takes; --debug shows the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of a command: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.

    Without `argv` it is the process's own command, which ends in here where a SIGINT has come: an interpreter that is
    taken down after one, with threads of libraries still at work, crashes.
    """
    try:
        if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as after `&`
            signal.signal(signal.SIGINT, _interrupt)
            sys.unraisablehook = _unraisable
        if argv is None:
            tune()
            if "--debug" not in sys.argv:
                warnings.formatwarning = _in_one_line
        status = _answer(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt as told:
        status = INTERRUPTED
        if not _was_interrupted():
            print(f"giraffe: {told}" if str(told) else SAID_AT_INTERRUPT, file=sys.stderr)
    if _was_interrupted():
        with contextlib.suppress(OSError, ValueError):
            print(end="", flush=True)
        _end_with_a_word()
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, _end)  # what is left is Python's own end, in which there is nobody to catch
    return status


SAID_AT_INTERRUPT = "giraffe: interrupted; the same command continues what can be continued."


def _interrupt(signum: int, frame: Any) -> None:
    """The first SIGINT is a KeyboardInterrupt, so that work cleans up after itself; any later one ends the process.

    While something is imported there is nothing to clean up, and compiled modules make other errors of it.
    """
    signal.signal(signal.SIGINT, _end)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end_with_a_word()
        frame = frame.f_back
    raise KeyboardInterrupt


def _was_interrupted() -> bool:
    return signal.getsignal(signal.SIGINT) is _end


def _unraisable(about: Any) -> None:
    """Answers the interrupt that came in a destructor or a callback, which Python would print and forget."""
    if issubclass(about.exc_type, KeyboardInterrupt):
        _end_with_a_word()
    sys.__unraisablehook__(about)


def _end(*_: Any) -> NoReturn:
    os._exit(INTERRUPTED)


def _end_with_a_word() -> NoReturn:
    os.write(2, f"{SAID_AT_INTERRUPT}\n".encode())
    _end()


def _in_one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """Returns a warning as a user is told it: what it says, without the line of code that says it."""
    return f"giraffe: warning: {message}\n"


def _answer(words: list[str]) -> int:
    from giraffe_jax.config import ConfigError

    debug = "--debug" in words
    try:
        status = _run([word for word in words if word != "--debug"])
        print(end="", flush=True)  # so that what goes wrong with it is answered here too
        return status
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        if _was_interrupted():  # and something else came of it
            return INTERRUPTED
        wrong = isinstance(error, ConfigError | FileNotFoundError)
        print(f"giraffe: {_message(error)}", file=sys.stderr)
        return WRONG_REQUEST if wrong else FAILED


def _run(words: list[str]) -> int:
    from giraffe_jax.config import nearest

    words, overrides = split_overrides(words)
    parser = _parser(words[0] if words else None)
    if not words:
        parser.print_help(sys.stderr)
        return WRONG_REQUEST
    if not words[0].startswith("-") and words[0] not in VERBS:
        parser.error(f"unknown verb {words[0]!r}; there are {', '.join(VERBS)}.{nearest(words[0], list(VERBS))}")
    try:
        args, more = parser.parse_known_args(words)
        if more and words[0] != "methods":
            parser.error(f"unrecognized arguments: {' '.join(more)}")
    except SystemExit as done:  # --help and --version have been answered
        return int(done.code or 0)
    if overrides and not hasattr(args, "config"):
        parser.error(f"{overrides[0]}: `giraffe {words[0]}` reads no config.")
    args.overrides = overrides
    for folder in args.methods:
        if not os.path.isdir(folder):
            parser.error(f"--methods: {folder} is no folder.")
    # Behind what is installed: a file here is found by its name, and hides nothing.
    sys.path += [folder for folder in map(os.path.abspath, (*args.methods, ".")) if folder not in sys.path]
    if words[0] == "methods":  # whose parameters may be written as flags
        args.parameters += [word.removeprefix("--") for word in more]
    return _module(words[0]).run(args) or DONE


def _parser(verb: str | None) -> "argparse.ArgumentParser":
    """Returns the parser of the whole command line, with the arguments of the one verb that is asked for."""
    import argparse

    from giraffe_jax.config import ConfigError

    class Parser(argparse.ArgumentParser):
        """Answers a wrong request in one message that ends in the way to more help."""

        def error(self, message: str) -> NoReturn:
            end = "" if message[-1:] in (".", "?") else "."
            raise ConfigError(f"{message}{end} See `{self.prog} --help`.")

    parser = Parser(prog="giraffe", description="The laboratory for context extension.", epilog=EPILOG,
                    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)  # fmt: skip
    parser.add_argument("--version", action="version", version=f"giraffe-jax {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
    for name, summary in VERBS.items():
        about = _module(name).__doc__ if name == verb else summary
        sub = verbs.add_parser(name, help=summary, description=about, allow_abbrev=False,
                               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        where = "a folder of own position methods; the current one and the config's are looked in too"
        sub.add_argument("--methods", action="append", default=[], metavar="DIR", help=where)
        if name == verb:
            _module(name).arguments(sub)
    return parser


def _module(verb: str):
    return importlib.import_module(f"giraffe_jax.cli.{'import_' if verb == 'import' else verb}")


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns (other words, `--config.key=value` flags); `--config.key value` counts as one flag too."""
    rest, overrides = [], []
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            rest.append(word)
        elif "=" in word or not words or words[0].startswith("--"):
            overrides.append(word)
        else:
            overrides.append(f"{word}={words.pop(0)}")
    return rest, overrides


def _message(error: Exception) -> str:
    """Returns what an error says; its kind too where the text alone would not be understood."""
    from giraffe_jax.config import ConfigError

    text = str(error).strip()
    if isinstance(error, ConfigError) and text:
        return text
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if where := re.search(r'writing: "([^"]+)".*: ([^:"]+) \[os_error_code', text):  # tensorstore's
        return f"{where[1]}: {where[2]}"
    return text if isinstance(error, FileNotFoundError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
