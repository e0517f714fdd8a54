"""Bad input, a table of it: each is refused by name, in bounded time and memory, and leaves nothing behind.

A case is a command in a folder of its own. Its status is 2 (1 where work failed), the first line on standard error says
what was wrong, there is no traceback, and a refused command has made and changed no file. `python -m
tests.cli.test_bad_input` prints the table with seconds and memory; what is asserted depends on no machine's speed.

A case's seconds are those of the refusal: an interpreter that has imported everything is forked for each.
"""

import json
import os
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MINI = ROOT / "giraffe_jax" / "weights" / "giraffe-mini"
DEADLINE = 60.0  # seconds until a case counts as hanging
MEMORY = 500e6  # bytes that a case may need
FULL = 100_000  # bytes of a file in a case whose disk is full

TRAIN = """
def get_config():
    text = dict(kind="text", path="text.txt")
    data = dict(seq_len=64, batch_size=2, sources=[text])
    return dict(source="giraffe-mini", steps=2, data=data)
"""
EVALUATE = """
def get_config():
    return dict(source="giraffe-mini", tasks=[dict(name="passkey", lengths=[128], n=1, style="compact", depths=[0.5])])
"""
RUN = """
def get_config():
    tasks = [dict(name="passkey", lengths=[128], n=1, style="compact", depths=[0.5])]
    variants = [dict(name="plain"), dict(name="linear", positions=[dict(name="linear", factor=4.0)])]
    return dict(name="trial", source="giraffe-mini", variants=variants, tasks=tasks)
"""
SEARCH = """
def get_config():
    data = dict(seq_len=64, batch_size=2, sources=[dict(kind="text", path="text.txt")])
    return dict(source="giraffe-mini", factor=4.0, data=data, population=4, parents=2, mutations=2, crossovers=2,
                generations=1)
"""
CONFIGS = {"train": TRAIN, "evaluate": EVALUATE, "run": RUN, "search": SEARCH}


class Case(NamedTuple):
    """A command that is refused: `said` is in the first line of its standard error."""

    name: str
    words: tuple[str, ...]
    said: str
    make: Callable[[Path], Any] | None = None  # makes its files
    status: int = 2
    full: bool = False  # no file may be longer than FULL
    leaves: bool = False  # work had begun, so that there are files


def text(folder: Path) -> None:
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 40)


def config(verb: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "c.py").write_text(CONFIGS[verb])
        text(folder)

    return make


def file(name: str, content: str | bytes, then: Callable[[Path], Any] | None = None) -> Callable[[Path], None]:
    """A file beside what `then` makes."""

    def make(folder: Path) -> None:
        if then is not None:
            then(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def model(then: Callable[[Path], Any] | None = None, **changes: Any) -> Callable[[Path], None]:
    """A copy of giraffe-mini in `m` with keys of its config.json changed; `then` is called with that folder."""

    def make(folder: Path) -> None:
        shutil.copytree(MINI, folder / "m")
        values = json.loads((folder / "m/config.json").read_text()) | changes
        (folder / "m/config.json").write_text(json.dumps(values))
        if then is not None:
            then(folder / "m")

    return make


def rope(**values: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_theta=10000.0) | values, rope_scaling=None)


def safetensors(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))


def not_finite(content: bytes) -> bytes:
    return content[:-4] + struct.pack("<f", float("nan"))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def gguf(*numbers: int, rest: bytes = b"") -> bytes:
    """The beginning of a GGUF file: version, tensors, keys."""
    return b"GGUF" + struct.pack("<IQQ", *numbers) + rest


def folders(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).mkdir(parents=True)

    return make


def both(*makers: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for maker in makers:
            maker(folder)

    return make


def flags(verb: str, name: str, said: str, *words: str) -> Case:
    """A command with a good config and flags that are not."""
    first = ("run", "c.py") if verb == "run" else (verb, "--config=c.py")
    return Case(f"{verb}: {name}", (*first, *words, "--workdir=w"), said, config(verb))


def key(verb: str, key: str, value: str, said: str = "") -> Case:
    return flags(verb, f"{key}={value[-40:]}", said or key, f"--config.{key}={value}")


def data(name: str, kind: str, path: str, said: str, make: Callable[[Path], Any] | None) -> Case:
    source = f"--config.data.sources=[dict(kind='{kind}', path='{path}')]"
    maker = config("train") if make is None else both(config("train"), make)
    return Case(f"data: {name}", ("train", "--config=c.py", source, "--workdir=w"), said, maker)


def import_(name: str, said: str, make: Callable[[Path], Any], source: str = "m") -> Case:
    return Case(f"import: {name}", ("import", source, "out"), said, make)


def method(name: str, said: str, *words: str) -> Case:
    return Case(f"methods: {name}", ("methods", *words), said)


def generate(name: str, said: str, *words: str, make: Callable[[Path], Any] | None = None) -> Case:
    prompt = () if any(word.startswith("--prompt") for word in words) else ("--prompt=Hello",)
    source = () if any(word.startswith("--source") for word in words) else ("--source=giraffe-mini",)
    return Case(f"generate: {name}", ("generate", *source, *prompt, *words), said, make)


def lists(long: Any, **rest: Any) -> dict[str, Any]:
    return rope(rope_type="longrope", short_factor=[1.0] * 16, long_factor=long, **rest)


def workdir(name: str, content: str | bytes = b"x") -> Callable[[Path], None]:
    return file(f"w/{name}", content, config("train"))


def entry(name: str) -> str:
    return f"--config.model.positions=[{name}]"


DEEP = "[" * 100_000
DIGITS = "9" * 6000
GARBAGE = bytes(range(256)) * 8

ROWS: list[Case] = [
    # The command line itself.
    Case("no verb", (), "usage"),
    Case("unknown verb", ("trian",), "Did you mean 'train'?"),
    Case("unknown flag", ("train", "--confg=c.py"), "--config"),
    Case("a config's key for a verb without one", ("report", "d", "--config.x=1"), "reads no config"),
    Case("--methods of no folder", ("methods", "--methods=no/such"), "no/such"),
    # Config files.
    Case("config: no such file", ("train", "--config=no/such.py", "--workdir=w"), "no/such.py"),
    Case("config: empty flag", ("train", "--config=", "--workdir=w"), "--config"),
    Case("config: a folder without config.py", ("train", "--config=d", "--workdir=w"), "config.py", folders("d")),
    Case("config: raises", ("train", "--config=c.py", "--workdir=w"), "line 2",
         file("c.py", "def get_config():\n    return 1 / 0\n")),
    Case("config: exits", ("train", "--config=c.py", "--workdir=w"), "SystemExit",
         file("c.py", "import sys\nsys.exit(0)\n")),
    Case("config: not Python", ("train", "--config=c.py", "--workdir=w"), "line 1", file("c.py", "def get_config(:\n")),
    Case("config: binary", ("train", "--config=c.py", "--workdir=w"), "c.py", file("c.py", GARBAGE)),
    Case("config: empty", ("train", "--config=c.py", "--workdir=w"), "get_config", file("c.py", "")),
    Case("config: returns no table", ("run", "c.py", "--workdir=w"), "returned 3",
         file("c.py", "def get_config():\n    return 3\n")),
    Case("config: returns nothing", ("search", "--config=c.py", "--workdir=w"), "returned None",
         file("c.py", "def get_config():\n    pass\n")),
    Case("config: an argument that none takes", ("run", "c.py:x", "--workdir=w"), "'x'", config("run")),
    Case("config: takes an argument that is not given", ("run", "c.py", "--workdir=w"), "c.py:ARGUMENT",
         file("c.py", "def get_config(name):\n    return {}\n")),
    Case("config: evaluate of an experiment", ("evaluate", "--config=c.py", "--workdir=w"), "variants", config("run")),
    Case("config: evaluate without a source", ("evaluate", "--config=c.py", "--workdir=w"), "source",
         file("c.py", "def get_config():\n    return dict(tasks=[])\n")),
    # Flags that set keys.
    flags("train", "override without a value", "no value", "--config.steps"),
    flags("train", "override of no key", "not a key", "--config..steps=1"),
    flags("train", "override nested deep", "deep", f"--config.steps={'[' * 1000}"),
    flags("train", "override with 6,000 digits", "64 bits", f"--config.steps={DIGITS}"),
    flags("train", "override of an item that is not there", "[0] to [0]", "--config.data.sources[7].path=x"),
    flags("train", "unknown key", "Did you mean 'lr'?", "--config.optim.lrr=1"),
    flags("train", "keys of a number", "config.steps is 2", "--config.steps.x=1"),
    flags("train", "no workdir's name", "--workdir", "--workdir="),
    # Numbers of train.
    key("train", "steps", "-1"),
    key("train", "steps", "two"),
    key("train", "steps", "1.5"),
    key("train", "steps", "1e999"),
    key("train", "z_loss", "nan"),
    key("train", "loss_chunk", "0"),
    key("train", "accumulate", "0"),
    key("train", "accumulate", "3"),
    key("train", "keep", "0"),
    key("train", "steps", "1000000000000"),
    key("train", "seed", "-1"),
    key("train", "seed", "1000000000000"),
    key("train", "z_loss", "-1.0"),
    key("train", "z_loss", "1e999"),
    key("train", "save_every", "-1"),
    key("train", "eval_batches", "0"),
    key("train", "optim.lr", "-1.0"),
    key("train", "optim.lr", "nan"),
    key("train", "optim.lr", "1e999"),
    key("train", "optim.lr", "fast"),
    key("train", "optim.muon_lr", "-1.0"),
    key("train", "optim.warmup_steps", "-1"),
    key("train", "optim.weight_decay", "-1.0"),
    key("train", "optim.weight_decay", "1e999"),
    key("train", "optim.final_lr", "-1.0"),
    key("train", "optim.b1", "1.5"),
    key("train", "optim.b2", "-0.5"),
    key("train", "optim.eps", "-1.0"),
    key("train", "optim.clip", "0"),
    key("train", "optim.clip", "-1.0"),
    key("train", "optim.schedule", "cosin", "Did you mean 'cosine'?"),
    key("train", "optim.decay_steps", "0"),
    key("evaluate", "source", "''", "source: got ''"),
    key("train", "lora.rank", "0"),
    key("train", "lora.rank", "1000000000"),
    key("train", "lora.rank", "1000", "larger than what they adapt"),
    key("train", "lora.alpha", "-1.0"),
    key("train", "lora.alpha", "1e999"),
    key("train", "lora.targets", "['w']"),
    key("train", "frequencies", "dict(train='alone', regularise=-1.0)", "frequencies.regularise"),
    key("train", "mesh.data", "0", "mesh"),
    key("train", "mesh.data", "-2", "mesh"),
    key("train", "mesh.tensor", "3", "mesh"),
    key("train", "mesh.context", "1.5"),
    key("train", "data.seed", "-1"),
    key("train", "data.seq_len", "0"),
    key("train", "data.seq_len", "1000000000000"),
    key("train", "data.batch_size", "1000000000000"),
    key("train", "data.batch_size", "-2"),
    flags("train", "seq_len x batch_size", "data.batch_size", "--config.data.seq_len=16000000",
          "--config.data.batch_size=1000000"),
    key("train", "data.prefetch", "0"),
    key("train", "data.prefetch", "1000000000000"),
    key("train", "data.packing", "tight"),
    key("train", "data.sources[0].weight", "-1.0"),
    key("train", "data.sources[0].weight", "nan"),
    key("train", "data.sources", "[]"),
    key("train", "data.sources", "text", "data.sources"),
    key("train", "data.sources[0].kind", "txt", "Did you mean 'text'?"),
    flags("train", "synthetic answer_weight nan", "answer_weight",
          "--config.data.sources=[dict(kind='synthetic', synthetic=dict(answer_weight='nan'))]"),
    flags("train", "synthetic min_len 0", "min_len",
          "--config.data.sources=[dict(kind='synthetic', synthetic=dict(min_len=0))]"),
    flags("train", "synthetic of negative lengths", "lengths",
          "--config.data.sources=[dict(kind='synthetic', synthetic=dict(lengths=[-1]))]"),
    flags("train", "skip to nowhere", "target_len", "--config.data.skip=dict(kind='pose', target_len=1)"),
    key("train", "data.skip", "dict(kind='pose', target_len=1000000000000)", "target_len"),
    key("train", "model.block_size", "0"),
    key("train", "model.theta", "-1.0"),
    key("train", "model.original_len", "0"),
    key("train", "model.norm_eps", "1e999"),
    key("train", "model.dtype", "float64"),
    key("train", "model.head_dim", "536870912"),
    key("train", "model.num_layers", "1000000000"),
    key("train", "model.mlp_chunk", "-1"),
    key("train", "model", "[]", "config.model"),
    key("train", "source", "no/such", "no/such"),
    key("train", "source", "", "source"),
    key("train", "tokenizer", "no/such"),
    # Positions.
    flags("train", "positions: unknown", "Did you mean 'yarn'?", entry("dict(name='yran', factor=4.0)")),
    flags("train", "positions: a function that is no method", "os.getcwd is not", entry("dict(name='os.getcwd')")),
    flags("train", "positions: without a name", "'name'", entry("dict(factor=4.0)")),
    flags("train", "positions: a string", "yarn", "--config.model.positions=yarn"),
    flags("train", "positions: nested lists", "positions[0]", entry("[[[]]]")),
    flags("train", "positions: missing parameter", "missing ['factor']", entry("dict(name='yarn')")),
    flags("train", "positions: unknown parameter", "Did you mean 'factor'?", entry("dict(name='linear', facter=4.0)")),
    flags("train", "positions: factor below 1", "factor", entry("dict(name='linear', factor=0.5)")),
    flags("train", "positions: factor as text", "factor", entry("dict(name='linear', factor='four')")),
    flags("train", "positions: infinite factor", "factor", entry("dict(name='linear', factor=1e999)")),
    flags("train", "positions: betas swapped", "beta",
          entry("dict(name='yarn', factor=4.0, beta_fast=1.0, beta_slow=32.0)")),
    flags("train", "positions: alpha above beta", "alpha",
          entry("dict(name='ntk_by_parts', factor=4.0, alpha=32.0, beta=1.0)")),
    flags("train", "positions: longrope lists too short", "longrope",
          entry("dict(name='longrope', short_factor=[1.0], long_factor=[1.0])")),
    flags("train", "positions: longrope lists of a string", "longrope",
          entry("dict(name='longrope', short_factor='ab', long_factor='cd')")),
    flags("train", "positions: one list for two", "missing", entry("dict(name='longrope', short_factor=[1.0])")),
    # Data files.
    data("no such path", "text", "no/such", "no/such", None),
    data("a glob without a match", "text", "*.none", "*.none", None),
    data("a folder without files", "text", "d", "has no .txt", folders("d")),
    data("a folder of others", "jsonl", "d", "a.txt", file("d/a.txt", "x")),
    data("empty text", "text", "a.txt", "a.txt", file("a.txt", "")),
    data("text that is not UTF-8", "text", "a.txt", "a.txt is not UTF-8", file("a.txt", b"abc\xff\xfe")),
    data("empty jsonl", "jsonl", "a.jsonl", "a.jsonl", file("a.jsonl", "")),
    data("jsonl that is not UTF-8", "jsonl", "a.jsonl", "a.jsonl:2",
         file("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')),
    data("jsonl nested deep", "jsonl", "a.jsonl", "a.jsonl:1", file("a.jsonl", '{"text": ' + DEEP + "\n")),
    data("jsonl with 6,000 digits", "jsonl", "a.jsonl", "a.jsonl:1",
         file("a.jsonl", f'{{"text": "a", "n": {DIGITS}}}\n')),
    data("jsonl with a lone surrogate", "jsonl", "a.jsonl", "a.jsonl:1", file("a.jsonl", '{"text": "a\\ud800b"}\n')),
    data("jsonl without text", "jsonl", "a.jsonl", "a.jsonl:1", file("a.jsonl", '{"body": "a"}\n')),
    data("jsonl of lists", "jsonl", "a.jsonl", "a.jsonl:1", file("a.jsonl", "[1]\n")),
    data("jsonl cut short", "jsonl", "a.jsonl", "a.jsonl:1", file("a.jsonl", '{"text": "a')),
    data("jsonl of one huge line", "jsonl", "a.jsonl", "a.jsonl:1", file("a.jsonl", b"\0" * 80_000_000)),
    data("parquet garbage", "parquet", "a.parquet", "a.parquet", file("a.parquet", GARBAGE)),
    data("parquet empty", "parquet", "a.parquet", "a.parquet", file("a.parquet", "")),
    data("TFDS of nothing", "tfds", "d", "d", folders("d")),
    # Workdirs.
    flags("train", "a workdir elsewhere", "gs://", "--workdir=gs://b/w")._replace(
        words=("train", "--config=c.py", "--workdir=gs://b/w")),
    Case("workdir: a file", ("train", "--config=c.py", "--workdir=w"), "w", file("w", "x", config("train"))),
    Case("workdir: under a file", ("train", "--config=c.py", "--workdir=f/w"), "f", file("f", "x", config("train"))),
    Case("workdir: where nothing can be written", ("train", "--config=c.py", "--workdir=/proc/w"), "/proc/w",
         config("train")),
    Case("workdir: config.json is garbage", ("train", "--config=c.py", "--workdir=w"), "w/config.json",
         workdir("config.json", GARBAGE)),
    Case("workdir: config.json nested deep", ("train", "--config=c.py", "--workdir=w"), "w/config.json",
         workdir("config.json", DEEP)),
    Case("workdir: of another run", ("train", "--config=c.py", "--workdir=w"), "holds another run",
         workdir("config.json", '{"steps": 2}')),
    Case("workdir: checkpoints without a config", ("train", "--config=c.py", "--workdir=w"), "config.json",
         workdir("checkpoints/1/x")),
    Case("workdir: results without a manifest", ("run", "c.py", "--workdir=w"), "experiment.json",
         file("w/results.jsonl", "", config("run"))),
    Case("workdir: experiment.json is garbage", ("run", "c.py", "--workdir=w"), "w/experiment.json",
         file("w/experiment.json", GARBAGE, config("run"))),
    Case("workdir: experiment.json of nothing", ("run", "c.py", "--workdir=w"), "w/experiment.json",
         file("w/experiment.json", "{}", config("run"))),
    Case("workdir: experiment.json with lists", ("run", "c.py", "--workdir=w"), "w/experiment.json",
         file("w/experiment.json", '{"identity": {"variants": [1], "tasks": 3}}', config("run"))),
    Case("workdir: of another experiment", ("evaluate", "--config=c.py", "--workdir=w"), "holds another experiment",
         file("w/experiment.json", '{"identity": {"name": "x", "variants": {}, "tasks": {}}}', config("evaluate"))),
    Case("workdir: search of another", ("search", "--config=c.py", "--workdir=w"), "holds another",
         file("w/config.json", '{"factor": 2.0}', config("search"))),
    Case("workdir: evaluate in a file", ("evaluate", "--config=c.py", "--workdir=w"), "w",
         file("w", "x", config("evaluate"))),
    Case("workdir: evaluate under a file", ("evaluate", "--config=c.py", "--workdir=f/w"), "f",
         file("f", "x", config("evaluate"))),
    Case("workdir: search in a file", ("search", "--config=c.py", "--workdir=w"), "w",
         file("w", "x", config("search"))),
    # Sources.
    generate("no such source", "no/such", "--source=no/such"),
    generate("source: empty", "source", "--source="),
    generate("source: a checkpoint that no workdir holds", "m@7", "--source=m@7", make=model()),
    generate("source: a checkpoint of no workdir", "runs/a", "--source=runs/a@7"),
    generate("source: checkpoints empty", "holds no checkpoint", "--source=w", make=folders("w/checkpoints")),
    generate("source: the best of none", "holds no checkpoint", "--source=w@best", make=folders("w/checkpoints")),
    generate("source: a checkpoint that is a file", "holds no checkpoint", "--source=w",
             make=file("w/checkpoints/7", "x")),
    generate("source: a damaged checkpoint", "checkpoint 7", "--source=w", make=file("w/checkpoints/7/x", "x")),
    generate("source: a damaged checkpoint by name", "checkpoint 7", "--source=w@7",
             make=file("w/checkpoints/7/about/metadata", GARBAGE)),
    generate("source: a text file", ".gguf", "--source=text.txt", make=text),
    # Experiments.
    flags("run", "no variants", "config.variants", "--config.variants=[]"),
    flags("run", "two of one name", "linear", "--config.variants[0].name=linear"),
    flags("run", "a variant that is no table", "config.variants[0]", "--config.variants=[3]"),
    flags("run", "seeds below 0", "seeds", "--config.seeds=[-1]"),
    flags("run", "unknown task", "Did you mean 'passkey'?", "--config.tasks[0].name=passkeys"),
    flags("run", "a training variant without data", "data", "--config.variants[0].train=dict(steps=1)"),
    flags("run", "positions of a variant", "config.variants[1].positions",
          "--config.variants[1].positions[0].factor=0"),
    flags("run", "no such source", "no/such", "--config.source=no/such"),
    key("run", "tokens_per_batch", "-1"),
    key("run", "tokens_per_batch", "0"),
    key("run", "original_len", "-1"),
    key("evaluate", "tasks[0].lengths", "[]", "lengths"),
    key("evaluate", "tasks[0].lengths", "[-128]", "lengths"),
    key("evaluate", "tasks[0].lengths", "[1000000000000]", "lengths"),
    key("evaluate", "tasks[0].lengths", "128", "lengths"),
    key("evaluate", "tasks[0].n", "0", "n"),
    key("evaluate", "tasks[0].n", "1000000000000", "n"),
    key("evaluate", "tasks[0].depths", "[2.0]", "depths"),
    key("evaluate", "tasks[0].depths", "['nan']", "depths"),
    key("evaluate", "tasks[0].scoring", "[]", "scoring"),
    key("evaluate", "tasks[0].new_tokens", "1000000000000", "new_tokens"),
    key("evaluate", "tasks[0].seed", "-1", "seed"),
    key("evaluate", "tasks", "[]"),
    key("evaluate", "tasks", "[dict(name='perplexity', lengths=[64], documents=['no/such'])]", "no/such"),
    key("evaluate", "tasks", "[dict(name='perplexity', lengths=[64], documents=['text.txt'], bins=0)]", "bins"),
    key("evaluate", "tasks", "[dict(name='perplexity', lengths=[64], documents=['text.txt'], bins=1000000000000)]",
        "bins"),
    key("evaluate", "tasks", "[dict(name='perplexity', lengths=[64], documents=['text.txt'], n=0)]", "n"),
    key("evaluate", "tasks", "[dict(name='perplexity', lengths=[64], documents=['text.txt'], n=-3)]", "n"),
    key("evaluate", "tasks", "[dict(name='perplexity', lengths=[64], documents=['text.txt'], stride=-3)]", "stride"),
    key("evaluate", "tasks", "[dict(name='perplexity', lengths=[64], documents=[])]", "documents"),
    key("evaluate", "positions", "[dict(name='yran')]", "Did you mean 'yarn'?"),
    # Search.
    key("search", "factor", "0.5"),
    key("search", "factor", "1e999"),
    key("search", "population", "0"),
    key("search", "population", "1000000000000"),
    key("search", "parents", "1"),
    key("search", "mutations", "-1"),
    key("search", "mutations", "1000000000000"),
    key("search", "probability", "2.0"),
    key("search", "step", "0.0"),
    key("search", "step", "1e-300"),
    key("search", "batches", "1000000000000"),
    key("search", "tables_at_once", "0"),
    key("search", "gain", "-1.0"),
    key("search", "gain", "1e999"),
    key("search", "seed", "-1"),
    key("search", "generations", "-1"),
    key("search", "starts", "[[dict(name='yran')]]", "Did you mean 'yarn'?"),
    key("search", "loss_chunk", "0"),
    # Models.
    import_("no such source", "no/such", text, "no/such"),
    import_("an empty folder", "config.json", folders("m")),
    import_("config.json is garbage", "m/config.json", file("m/config.json", GARBAGE)),
    import_("config.json is empty", "m/config.json", file("m/config.json", "")),
    import_("config.json is a list", "m/config.json", file("m/config.json", "[1]")),
    import_("config.json is not UTF-8", "m/config.json", file("m/config.json", b'{"a": "\xff"}')),
    import_("config.json nested deep", "m/config.json", file("m/config.json", DEEP)),
    import_("config.json with 6,000 digits", "m/config.json", file("m/config.json", f'{{"vocab_size": {DIGITS}}}')),
    import_("of another kind", "model_type", model(model_type="gpt2")),
    import_("unknown attribute", "unknown attribute", model(wizardry=True)),
    import_("huge head_dim", "head_dim", model(head_dim=2**29)),
    import_("huge hidden_size", "embed_tokens", model(hidden_size=2**29)),
    import_("huge num_hidden_layers", "layers", model(num_hidden_layers=10**9)),
    import_("negative vocab_size", "vocab_size", model(vocab_size=-1)),
    import_("hidden_size as text", "hidden_size", model(hidden_size="128")),
    import_("rms_norm_eps of NaN", "rms_norm_eps", model(rms_norm_eps=float("nan"))),
    import_("rope_theta infinite", "rope_theta", model(rope_theta=float("inf"))),
    import_("rope_type a list", "rope_type", model(**rope(rope_type=["yarn"]))),
    import_("rope_parameters nested", "rope_parameters", model(**rope(rope_type={"a": {"b": {}}}))),
    import_("longrope lists too short", "long_factor", model(**lists([1.0], original_max_position_embeddings=64))),
    import_("longrope lists of NaN", "long_factor",
            model(**lists([float("nan")] * 16, original_max_position_embeddings=64))),
    import_("longrope original 0", "original_max", model(**lists([1.0] * 16, original_max_position_embeddings=0))),
    import_("longrope original as text", "original_max",
            model(**lists([1.0] * 16, original_max_position_embeddings="64"))),
    import_("llama3 with low above high", "low_freq_factor",
            model(**rope(rope_type="llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0,
                         original_max_position_embeddings=64))),
    import_("yarn with a negative factor", "factor", model(**rope(rope_type="yarn", factor=-4.0))),
    import_("safetensors truncated", "model.safetensors", model(lambda m: safetensors(m, lambda b: b[: len(b) // 2]))),
    import_("safetensors empty", "model.safetensors", model(lambda m: safetensors(m, lambda b: b""))),
    import_("safetensors garbage", "model.safetensors", model(lambda m: safetensors(m, lambda b: GARBAGE))),
    import_("safetensors with a huge header", "model.safetensors",
            model(lambda m: safetensors(m, lambda b: struct.pack("<Q", 2**62) + b[8:]))),
    import_("safetensors with a deep header", "model.safetensors",
            model(lambda m: safetensors(m, lambda b: struct.pack("<Q", 100_000) + DEEP.encode()))),
    import_("weights of NaN", "not finite", model(lambda m: safetensors(m, not_finite))),
    import_("a pickle", "pickle", model(pickled)),
    import_("a pickle by its name", "pickle", file("m.bin", GARBAGE), "m.bin"),
    import_("an index that is garbage", "index.json",
            model(lambda m: (pickled(m), (m / "model.safetensors.index.json").write_text("{")))),
    import_("an index of absent shards", "a.safetensors",
            model(lambda m: (pickled(m), (m / "model.safetensors.index.json").write_text(
                '{"weight_map": {"x": "a.safetensors"}}')))),
    import_("an index that leads elsewhere", "../a.safetensors",
            model(lambda m: (pickled(m), (m / "model.safetensors.index.json").write_text(
                '{"weight_map": {"x": "../a.safetensors"}}')))),
    import_("no weights", "model.safetensors", model(lambda m: (m / "model.safetensors").unlink())),
    import_("no tokenizer", "tokenizer", model(lambda m: (m / "tokenizer.json").unlink())),
    import_("tokenizer garbage", "tokenizer.json", model(lambda m: (m / "tokenizer.json").write_bytes(GARBAGE))),
    import_("tokenizer empty", "tokenizer.json", model(lambda m: (m / "tokenizer.json").write_text(""))),
    import_("tokenizer of nothing", "tokenizer.json", model(lambda m: (m / "tokenizer.json").write_text("{}"))),
    import_("tokenizer_config.json a list", "tokenizer_config.json",
            model(lambda m: (m / "tokenizer_config.json").write_text("[]"))),
    import_("bos_token that it lacks", "bos_token",
            model(lambda m: (m / "tokenizer_config.json").write_text('{"bos_token": "<none>"}'))),
    import_("bos_token a number", "bos_token",
            model(lambda m: (m / "tokenizer_config.json").write_text('{"bos_token": [3]}'))),
    import_("more tokens than embeddings", "embeds", model(vocab_size=1000)),
    import_("GGUF garbage", "m.gguf", file("m.gguf", GARBAGE), "m.gguf"),
    import_("GGUF empty", "m.gguf", file("m.gguf", ""), "m.gguf"),
    import_("GGUF truncated", "m.gguf", file("m.gguf", gguf(3, 1, 1)), "m.gguf"),
    import_("GGUF with huge counts", "m.gguf", file("m.gguf", gguf(3, 2**60, 2**60)), "m.gguf"),
    import_("GGUF of another version", "version", file("m.gguf", gguf(99, 0, 0)), "m.gguf"),
    import_("GGUF with a huge array", "m.gguf",
            file("m.gguf", gguf(3, 0, 1, rest=struct.pack("<Q1sIIQ", 1, b"a", 9, 4, 2**60))), "m.gguf"),
    import_("GGUF without a model", "m.gguf", file("m.gguf", gguf(3, 0, 0, rest=bytes(64))), "m.gguf"),
    Case("import: onto a folder", ("import", "m", "out"), "out", both(model(), file("out/x", "x"))),
    Case("import: onto a file", ("import", "m", "out"), "out", both(model(), file("out", "x"))),
    Case("import: under a file", ("import", "m", "f/out"), "f", both(model(), file("f", "x"))),
    Case("import: where nothing can be written", ("import", "m", "/proc/out"), "/proc/out", model()),
    Case("import: to nowhere", ("import", "m", ""), "DESTINATION", model()),
    Case("import: unknown dtype", ("import", "m", "out", "--dtype=int8"), "int8", model()),
    Case("export: onto a folder", ("export", "m", "out"), "out", both(model(), file("out/x", "x"))),
    Case("export: under a file", ("export", "m", "f/out"), "f", both(model(), file("f", "x"))),
    Case("export: no such source", ("export", "no/such", "out"), "no/such"),
    Case("export: --max-len=0", ("export", "m", "out", "--max-len=0"), "max-len", model()),
    Case("export: --max-len=-1", ("export", "m", "out", "--max-len=-1"), "max-len", model()),
    Case("export: --max-len of text", ("export", "m", "out", "--max-len=long"), "max-len", model()),
    # Generation.
    generate("empty prompt", "prompt", "--prompt="),
    generate("-n 0", "-n", "-n", "0"),
    generate("-n -1", "-n", "-n", "-1"),
    generate("-n 10**12", "-n", "-n", "1000000000000"),
    generate("-n as text", "-n", "-n", "many"),
    generate("--temperature=-1", "temperature", "--temperature=-1"),
    generate("--temperature=nan", "temperature", "--temperature=nan"),
    generate("--temperature=inf", "temperature", "--temperature=inf"),
    generate("--seed=-1", "seed", "--seed=-1"),
    generate("--seed=10**30", "seed", "--seed=1" + "0" * 30),
    generate("a prompt's file that is missing", "no/such", "--prompt-file=no/such"),
    generate("a prompt's file that is binary", "a.bin", "--prompt-file=a.bin", make=file("a.bin", b"\xff\xfe\0")),
    generate("a prompt's file that is empty", "prompt", "--prompt-file=a.txt", make=file("a.txt", "")),
    generate("a prompt's file that is a folder", "d", "--prompt-file=d", make=folders("d")),
    generate("--positions of garbage", "--positions", "--positions=[dict("),
    generate("--positions of a call", "--positions", "--positions=[__import__('os').getcwd()]"),
    generate("--positions nested deep", "--positions", "--positions=" + "[" * 10_000),
    generate("--positions of no list", "--positions", "--positions=3"),
    generate("--positions unknown", "Did you mean 'yarn'?", "--positions=[dict(name='yran', factor=4.0)]"),
    generate("--positions of a module's function", "os.getcwd is not a method", "--positions=[dict(name='os.getcwd')]"),
    generate("--positions of 6,000 digits", "--positions", f"--positions=[dict(name='linear', factor={DIGITS})]"),
    # The catalogue.
    method("unknown", "Did you mean 'yarn'?", "yran"),
    method("a path of no function", "no.such", "no.such"),
    method("a function that is no method", "os.getcwd is not a method", "os.getcwd"),
    method("--theta=0", "theta", "yarn", "--theta=0"),
    method("--theta=nan", "theta", "yarn", "--theta=nan"),
    method("--theta=inf", "theta", "yarn", "--theta=inf"),
    method("--theta=-1", "theta", "yarn", "--theta=-1"),
    method("--head-dim=0", "head-dim", "yarn", "--head-dim=0"),
    method("--head-dim=7", "head_dim", "yarn", "--head-dim=7"),
    method("--head-dim=10**9", "head-dim", "yarn", "--head-dim=1000000000"),
    method("--original-len=-1", "original-len", "yarn", "--original-len=-1"),
    method("--original-len=0", "original-len", "yarn", "--original-len=0"),
    method("--length=-1", "length", "dynamic", "--length=-1"),
    method("--length=0", "length", "dynamic", "--length=0"),
    method("--factor=inf", "factor", "yarn", "--factor=inf"),
    method("--factor=nan", "factor", "yarn", "--factor=nan"),
    method("--factor=abc", "factor", "yarn", "--factor=abc"),
    method("--factor=1e999", "factor", "yarn", "--factor=1e999"),
    method("a factor nested deep", "factor", "yarn", "--factor=" + "[" * 10_000),
    method("a factor of 6,000 digits", "factor", "yarn", f"--factor={DIGITS}"),
    method("no key", "KEY=VALUE", "yarn", "factor"),
    method("--out of no picture", "out", "yarn", "--out=a.exe"),
    Case("methods: --out under a file", ("methods", "yarn", "--out=f/a.svg"), "f", file("f", "x")),
    # Reports.
    Case("report: no such folder", ("report", "no/such"), "no/such"),
    Case("report: a folder with nothing", ("report", "d"), "results.jsonl", folders("d")),
    Case("report: a file", ("report", "text.txt"), "text.txt", text),
    Case("report: no folder", ("report",), "DIR"),
    Case("report: results that are a folder", ("report", "d"), "results.jsonl", folders("d/results.jsonl")),
    Case("report: experiment.json is garbage", ("report", "d"), "experiment.json",
         both(file("d/results.jsonl", ""), file("d/experiment.json", GARBAGE))),
    Case("report: experiment.json is a list", ("report", "d"), "experiment.json",
         both(file("d/results.jsonl", ""), file("d/experiment.json", "[]"))),
    Case("report: experiment.json of other types", ("report", "d"), "experiment.json",
         both(file("d/results.jsonl", ""), file("d/experiment.json", '{"config": {"variants": [3]}}'))),
    Case("report: rows of other types", ("report", "d"), "is no row",
         file("d/results.jsonl", '{"variant": 3, "task": [], "length": "long", "key": {}}\n')),
    # Benchmarks and proofs.
    Case("bench: unknown job", ("bench", "--jobs", "forwrd:64"), "Did you mean 'forward'?"),
    Case("bench: a job without a length", ("bench", "--jobs", "forward"), "length"),
    Case("bench: a job of a negative length", ("bench", "--jobs", "forward:-5"), "length"),
    Case("bench: a job of a huge length", ("bench", "--jobs", "forward:1000000000000"), "length"),
    Case("bench: --runs=0", ("bench", "--runs=0"), "--runs"),
    Case("bench: --threads=-1", ("bench", "--threads=-1"), "--threads"),
    Case("bench: no such source", ("bench", "--source=no/such"), "no/such"),
    Case("bench: --out under a file", ("bench", "--out=f/x"), "f", file("f", "x")),
    Case("check: nothing", ("check",), "WHAT"),
    Case("check: unknown", ("check", "everything"), "everything"),
    Case("check: unknown method", ("check", "methods", "yran"), "Did you mean 'yarn'?"),
    Case("check: --kills=-1", ("check", "resume", "--kills=-1"), "--kills"),
    Case("check: --steps=0", ("check", "resume", "--steps=0"), "--steps"),
    Case("check: --tokens=0", ("check", "sharding", "--tokens=0"), "--tokens"),
    Case("check: no such config", ("check", "resume", "--config=no/such.py"), "no/such.py"),
    Case("check: no such source", ("check", "sharding", "--source=no/such"), "no/such"),
    # A full disk: work fails, in one line that names the file.
    Case("full disk: train", ("train", "--config=c.py", "--workdir=w", "--quiet"), "w/checkpoints/2",
         config("train"), 1, True, True),
    Case("full disk: import", ("import", "m", "out"), "/checkpoints/0", model(), 1, True),
    Case("full disk: export", ("export", "m", "out"), "model.safetensors", model(), 1, True),
]  # fmt: skip


# One process for many cases


def serve(names: set[str], folder: Path) -> list[dict[str, Any]]:
    """Returns what became of the cases of these names, each in a fork of this process, which has imported all."""
    sys.dont_write_bytecode = True
    _import_all()
    return [_one(case, folder / str(i)) for i, case in enumerate(ROWS) if case.name in names]


def _import_all() -> None:
    from giraffe_jax.cli import VERBS, _module

    for verb in VERBS:
        _module(verb)
    import gguf  # noqa: F401
    import grain  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import safetensors.numpy  # noqa: F401
    import tensorboardX  # noqa: F401
    import tokenizers  # noqa: F401


def _one(case: Case, folder: Path) -> dict[str, Any]:
    (folder / "in").mkdir(parents=True)
    if case.make is not None:
        case.make(folder / "in")
    before = _tree(folder / "in")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(case, folder, write)
    os.close(write)
    ready, _, _ = select.select([read], [], [], DEADLINE)
    answer = json.loads(os.read(read, 4096) or b"{}") if ready else {}
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.close(read)
    os.waitpid(child, 0)
    said = (folder / "err").read_text(errors="replace")
    changed = sorted(str(p) for p in _tree(folder / "in").items() ^ before.items())
    lines = [line for line in said.splitlines() if "Warning: os.fork()" not in line]
    return dict(
        name=case.name,
        status=answer.get("status"),
        seconds=answer.get("seconds", DEADLINE),
        bytes=answer.get("bytes", 0),
        said=lines[0] if lines else "",
        traceback="Traceback" in said + (folder / "out").read_text(errors="replace"),
        changed=changed,
    )


def _tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file() or p.is_dir()}


def _answer(case: Case, folder: Path, write: int) -> None:
    """Runs the command, in a child of its own, and never returns."""
    answer: dict[str, Any] = {}
    try:
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        os.chdir(folder / "in")
        if case.full:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            import jax

            jax.config.update("jax_enable_compilation_cache", False)  # nor is a cut program left to others
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))
        from giraffe_jax.cli import main

        held, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        answer["status"] = main(list(case.words))
        answer["seconds"] = time.perf_counter() - began
        answer["bytes"] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(write, json.dumps(answer).encode())
    os._exit(0)


def run_cases(names: list[str], folder: Path) -> list[dict[str, Any]]:
    """Returns what became of the cases, measured in an interpreter of their own."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "GIRAFFE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    env |= {"MPLBACKEND": "Agg", "TOKENIZERS_PARALLELISM": "false", "XLA_FLAGS": ""}
    (folder / "names.json").write_text(json.dumps(names))
    command = [sys.executable, "-m", "tests.cli.test_bad_input", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answers.json").read_text())


def wrong(case: Case, answer: dict[str, Any]) -> list[str]:
    """Returns what is not as it should be."""
    found = []
    if answer["status"] != case.status:
        found.append(f"status {answer['status']}, not {case.status}")
    if case.said not in answer["said"]:
        found.append(f"first line lacks {case.said!r}")
    if answer["traceback"]:
        found.append("a traceback")
    if answer["changed"] and not case.leaves:
        found.append(f"files changed: {answer['changed'][:4]}")
    if answer["bytes"] > MEMORY:
        found.append(f"{answer['bytes'] / 1e6:.0f} MB")
    return found


PARTS = 6  # interpreters, so that workers share the cases


@pytest.mark.parametrize("part", range(PARTS))
def test_bad_input_is_refused_by_name(tmp_path, part):
    cases = {case.name: case for case in ROWS[part::PARTS]}
    answers = run_cases(list(cases), tmp_path)
    found = {answer["name"]: (wrong(cases[answer["name"]], answer), answer["said"]) for answer in answers}
    assert len(found) == len(cases)
    assert not {name: about for name, about in found.items() if about[0]}


def test_there_are_enough_cases_and_their_names_differ():
    assert len(ROWS) >= 120
    assert len({case.name for case in ROWS}) == len(ROWS)


def table(answers: list[dict[str, Any]]) -> str:
    cases = {case.name: case for case in ROWS}
    lines = ["| | command | status | seconds | MB | first line |", "|---|---|---:|---:|---:|---|"]
    for answer in answers:
        words = " ".join(word if len(word) <= 60 else f"{word[:57]}..." for word in cases[answer["name"]].words)
        cells = [answer["name"], f"`giraffe {words}`", str(answer["status"]), f"{answer['seconds']:.2f}"]
        cells += [f"{answer['bytes'] / 1e6:.0f}", answer["said"].removeprefix("giraffe: ")[:160]]
        notes = wrong(cases[answer["name"]], answer)
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |" + f" **{notes}**" * bool(notes))
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        here = Path(sys.argv[1])
        found = serve(set(json.loads((here / "names.json").read_text())), here)
        (here / "answers.json").write_text(json.dumps(found))
        os._exit(0)
    with tempfile.TemporaryDirectory() as place:
        print(table(run_cases([case.name for case in ROWS], Path(place))))
