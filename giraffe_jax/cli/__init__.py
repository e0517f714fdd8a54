"""The command line: `giraffe <verb>`. Flags become a config, and one function of the library is called with it.

Each verb is a module of this folder with `arguments(parser)` and `run(args) -> exit status`. Nothing heavy is imported
before a verb runs, so that `--help` and mistakes in flags are answered at once.
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

if TYPE_CHECKING:  # Ctrl-C is handled only once main() runs, so main() imports what it can itself
    import argparse

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130

VERBS = {
    "methods": "the catalogue of position methods; with a name, one of them drawn and explained",
    "keys": "every key that a config may have: type, range, default, meaning",
    "train": "train a model; running the same command again resumes the run",
    "plan": "does training fit on TPUs or GPUs you don't have: memory, FLOPs, collectives, time and cost of a step",
    "evaluate": "evaluate one model on tasks x lengths",
    "search": "evolutionary search for the frequencies that extend a model furthest",
    "run": "run an experiment: all its variants, then the report",
    "report": "results of experiments -> tables, plots and one HTML page",
    "import": "a Hugging Face directory or a GGUF file -> a checkpoint",
    "export": "any source -> a Hugging Face directory that transformers and vLLM load",
    "generate": "continue a prompt",
    "bench": "time and peak memory on this machine, compared with transformers",
    "check": "check on this machine that resuming, sharding, kernels and position methods are numerically right",
}

EPILOG = """exit status: 0 done, 1 the work failed, 2 the request was wrong.
`giraffe VERB --help` says what a verb takes; --debug shows the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of a command: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.

    Without `argv` it runs the process's own command line, and after a SIGINT it ends the process itself: letting the
    interpreter shut down normally would crash, since threads of libraries are still running.
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
        signal.signal(signal.SIGINT, _end)  # during interpreter shutdown nobody could catch the exception
    return status


SAID_AT_INTERRUPT = "giraffe: interrupted; the same command continues what can be continued."


def _interrupt(signum: int, frame: Any) -> None:
    """Raises KeyboardInterrupt at the first SIGINT, so that work can clean up; any later one ends the process.

    During an import the process ends at once: nothing needs cleaning up, and compiled modules would turn the
    KeyboardInterrupt into other errors.
    """
    signal.signal(signal.SIGINT, _end)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end_with_a_word()
        frame = frame.f_back
    raise KeyboardInterrupt


def _was_interrupted() -> bool:
    return signal.getsignal(signal.SIGINT) is _end


def _unraisable(unraisable: Any) -> None:
    """Ends the process on a KeyboardInterrupt in a destructor or callback, where Python would only print it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _end_with_a_word()
    sys.__unraisablehook__(unraisable)


def _end(*_: Any) -> NoReturn:
    os._exit(INTERRUPTED)


def _end_with_a_word() -> NoReturn:
    os.write(2, f"{SAID_AT_INTERRUPT}\n".encode())
    _end()


def _in_one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """Returns a warning's message for the user, without the line of code that raised it."""
    return f"giraffe: warning: {message}\n"


def _answer(words: list[str]) -> int:
    from giraffe_jax.config import ConfigError

    debug = "--debug" in words
    try:
        status = _run([word for word in words if word != "--debug"])
        print(end="", flush=True)  # so that write errors are handled here too
        return status
    except BrokenPipeError:  # the reader of our output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        if _was_interrupted():  # the interrupt surfaced as another error
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
        args, unparsed = parser.parse_known_args(words)
        if unparsed and words[0] != "methods":
            parser.error(f"unrecognized arguments: {' '.join(unparsed)}")
    except SystemExit as done:  # --help and --version have been answered
        return int(done.code or 0)
    if overrides and not hasattr(args, "config"):
        parser.error(f"{overrides[0]}: `giraffe {words[0]}` reads no config.")
    args.overrides = overrides
    for folder in args.methods:
        if not os.path.isdir(folder):
            parser.error(f"--methods: {folder} is not a folder.")
    # At the end of the path: modules here can be imported, but shadow nothing that is installed.
    sys.path += [folder for folder in map(os.path.abspath, (*args.methods, ".")) if folder not in sys.path]
    if words[0] == "methods":  # a method's parameters may be written as flags
        args.parameters += [word.removeprefix("--") for word in unparsed]
    return _module(words[0]).run(args) or DONE


def _parser(verb: str | None) -> "argparse.ArgumentParser":
    """Returns the parser of the whole command line; only `verb`'s module is imported and adds its flags."""
    import argparse

    from giraffe_jax.config import ConfigError

    class Parser(argparse.ArgumentParser):
        """Reports a wrong request as one ConfigError that ends with a pointer to --help."""

        def error(self, message: str) -> NoReturn:
            end = "" if message[-1:] in (".", "?") else "."
            raise ConfigError(f"{message}{end} See `{self.prog} --help`.")

    parser = Parser(prog="giraffe", description="Extend the context of Llama models.", epilog=EPILOG,
                    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)  # fmt: skip
    parser.add_argument("--version", action="version", version=f"giraffe-jax {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
    for name, summary in VERBS.items():
        description = _module(name).__doc__ if name == verb else summary
        sub = verbs.add_parser(name, help=summary, description=description, allow_abbrev=False,
                               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        methods_help = "a folder with your own position methods; the current folder and the config's are searched too"
        sub.add_argument("--methods", action="append", default=[], metavar="DIR", help=methods_help)
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
    """Returns an error's message, with its type where the message alone would not be understood."""
    from giraffe_jax.config import ConfigError

    text = str(error).strip()
    if isinstance(error, ConfigError) and text:
        return text
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if where := re.search(r'writing: "([^"]+)".*: ([^:"]+) \[os_error_code', text):  # tensorstore's
        return f"{where[1]}: {where[2]}"
    return text if isinstance(error, FileNotFoundError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
