"""Config files are run, and --config.KEY=VALUE set in what they return: values by syntax, errors by message."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from giraffe_jax.cli import configs, main
from giraffe_jax.config import ConfigError, build, literal, load, to_dict
from tests import processes

FILE = """
from ml_collections import ConfigDict

LENGTHS = (256, 512)


def get_config(size="1"):
    c = ConfigDict(dict(steps=int(size), lr=1.0, name="n", off=None, flag=True, empty=[], optim=dict(lr=1.0)))
    c.tasks = [dict(name="p", lengths=LENGTHS), dict(name="q", lengths=LENGTHS)]
    c.twice = 2 * c.get_ref("steps")
    c.listed = [c.get_ref("steps")]
    return c
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes, name: str = "config.py") -> Path:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("flags", "where", "value"),
    [
        ([], "steps", 1),
        ([], "twice", 2),
        ([], "listed", [1]),
        (["steps=3"], "steps", 3),
        (["steps=2.5"], "steps", 2.5),  # the type in the file binds nobody: build() knows what a key takes
        (["steps=none"], "steps", None),
        (["lr=1e-5"], "lr", 1e-5),
        (["lr=-1"], "lr", -1),
        (["off=+2"], "off", 2),
        (["flag=false"], "flag", False),
        (["flag=False"], "flag", False),
        (["off=true"], "off", True),
        (["off=None"], "off", None),
        (["new=1_000"], "new", 1000),
        (["new=two words"], "new", "two words"),
        (["new='two words'"], "new", "two words"),
        (["new=runs/a@best"], "new", "runs/a@best"),
        (["new=007"], "new", "007"),
        (["new=a=b"], "new", "a=b"),
        (["new="], "new", ""),
        (["new=open('x')"], "new", "open('x')"),
        (["new=dict(1)"], "new", "dict(1)"),
        (["new={1: 2}"], "new", "{1: 2}"),
        (["new={**{}}"], "new", "{**{}}"),
        (["new=\ud800"], "new", "\ud800"),  # how Python has a byte that is no UTF-8
        (["new=0x" + "f" * 16], "new", 2**64 - 1),
        (["name=123"], "name", "123"),
        (["name=None"], "name", "None"),
        (["name=[1]"], "name", "[1]"),
        (["name='123'"], "name", "123"),
        (['name="a b"'], "name", "a b"),
        (["name='a', 'b'"], "name", "'a', 'b'"),
        (["name='" + "[" * 10000], "name", "'" + "[" * 10000),
        (["name=" + "[" * 10000], "name", "[" * 10000),
        (["name="], "name", ""),
        (["new.a.b=1"], "new", {"a": {"b": 1}}),
        (["off.a=1"], "off", {"a": 1}),  # a table that the file leaves out
        (["optim.b1=0.9"], "optim", {"lr": 1.0, "b1": 0.9}),
        (["optim={'b1': 0.9}"], "optim", {"b1": 0.9}),
        (["optim.items=1"], "optim", {"lr": 1.0, "items": 1}),
        (["tasks[0].lengths=(256,512)"], "tasks[0].lengths", [256, 512]),
        (["tasks[0].lengths[-1]=1024"], "tasks[0].lengths", [256, 1024]),
        (["tasks[0].lengths[-1]=1024"], "tasks[1].lengths", [256, 512]),  # which the file made one object
        (["tasks[-1].n=[1, (2, none)]"], "tasks[1].n", [1, [2, None]]),
        (["tasks[1]=dict(name='z', more=dict(x=-1.5))"], "tasks[1]", {"name": "z", "more": {"x": -1.5}}),
        (["tasks=[{'name': 'z'}]", "tasks[0].name=y"], "tasks", [{"name": "y"}]),
        (["empty=[1]"], "empty", [1]),
        (["steps=2", "steps=3"], "steps", 3),
        (["new=abc", "new=5"], "new", 5),
        (["new=" + "[" * 32 + "1" + "]" * 32], "new" + "[0]" * 32, 1),
    ],
)
def test_values(write, flags, where, value):
    values = load(write(FILE), [f"--config.{flag}" for flag in flags])
    found = eval(f"c.{where}", {"c": values})  # attributes reach into lists too
    assert found == value and isinstance(found, type(value))
    assert isinstance(found, bool) == isinstance(value, bool)


def test_the_argument_and_a_folder(write):
    file = write(FILE)
    assert load(f"{file}:7", ["--config.lr=2"]).twice == 14
    assert load(file.parent).steps == 1
    assert load(write("def get_config():\n    return dict(optim=dict(lr=1))", "plain.py")).optim.lr == 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--lr=1", "--lr=1: not a flag of this command"),
        ("--config.", "--config.: not a key; keys are like optim.lr, tasks[0].lengths or tasks[-1].n."),
        ("--config.=1", "--config.: not a key"),
        ("--config.a..b=1", "--config.a..b: not a key"),
        ("--config.a.=1", "--config.a.: not a key"),
        ("--config.tasks[x]=1", "--config.tasks[x]: not a key"),
        ("--config.tasks[]=1", "--config.tasks[]: not a key"),
        ("--config.tasks[0=1", "--config.tasks[0: not a key"),
        ("--config.tasks[0]name=1", "--config.tasks[0]name: not a key"),
        ("--config.tasks[" + "9" * 6000 + "]=1", "999...: not a key"),
        ("--config.lr", "--config.lr: no value; write --config.lr=VALUE."),
        ("--config" + ".a" * 50_000 + "=1", "...: nested more than 32 deep."),
        ("--config.lr=" + "[" * 10_000, "--config.lr: nested more than 32 deep."),
        ("--config.lr=" + "[" * 33 + "1" + "]" * 33, "--config.lr: nested more than 32 deep."),
        ("--config.lr=" + "dict(a=" * 33 + "1" + ")" * 33, "--config.lr: nested more than 32 deep."),
        ("--config.lr=" + "-" * 100_000 + "1", "--config.lr: nested more than 32 deep."),
        ("--config.lr=" + "a" + ".a" * 50_000, "--config.lr: nested more than 32 deep."),
        ("--config.lr=" + "9" * 6000, "--config.lr: a number of more than 64 bits."),
        ("--config.lr=0x" + "f" * 6000, "--config.lr: a number of more than 64 bits."),
        ("--config.lr=[-" + "9" * 21 + "]", "--config.lr: a number of more than 64 bits."),
        ("--config.tasks[2].n=1", "--config.tasks[2].n: there is no [2]: config.tasks has [0] to [1]."),
        ("--config.tasks[-3]=1", "--config.tasks[-3]: there is no [-3]: config.tasks has [0] to [1]."),
        ("--config.empty[0]=1", "there is no [0]: config.empty is an empty list; set it whole, --config.empty=[...]."),
        ("--config.steps[0]=1", "--config.steps[0]: there is no [0]: config.steps is no list, it is 1."),
        ("--config.optim[0].lr=1", "there is no [0]: config.optim is no list, it is {'lr': 1.0}."),
        ("--config.tsks[0].n=1", "config.tsks is not set, so it has no [0]; set it whole, --config.tsks=[...]."),
        ("--config.tsks[0].n=1", "Did you mean 'tasks'?"),
        ("--config.steps.x=1", "--config.steps.x: config.steps is 1, no table: it has no keys."),
        ("--config.name.x=1", "--config.name.x: config.name is 'n', no table: it has no keys."),
        ("--config.tasks.n=1", "config.tasks is a list of 2; one item's is set with --config.tasks[0].n."),
    ],
)
def test_flags_that_lead_nowhere(write, flag, message):
    with pytest.raises(ConfigError) as error:
        load(write(FILE), [flag])
    assert message in str(error.value)
    assert len(str(error.value)) < 250 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os\n\ndef get_config():\n    return helper()\n\ndef helper():\n    return 1 / 0\n",
         ", line 7: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return __import__('json').loads('[')\n", ", line 2: JSONDecodeError: Expecting value"),
        ("def get_config():\n    raise ValueError('two\\nlines')\n", ", line 2: ValueError: two lines"),
        ("\ndef get_config(:\n    pass\n", ", line 2: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)\n", ", line 2: SystemExit: 3"),
        ("import sys\n\ndef get_config():\n    sys.exit()\n", ", line 4: SystemExit"),
        ("import nowhere_at_all\n", ", line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def get_config():\n    return get_config()\n", ", line 2: RecursionError"),
        ("x = 1\n", ": has no function get_config()."),
        ("def getconfig():\n    return {}\n", ": has no function get_config(). Did you mean 'getconfig'?"),
        ("get_config = 3\n", ": has no function get_config()."),
        ("x = 1\ndef get_config(a, b):\n    return {}\n", ", line 2: get_config(a, b): missing a required arg"),
        ("def get_config():\n    {}\n", ", line 1: get_config() returned None; expected a ConfigDict or a dict."),
        ("def get_config():\n    return [1]\n", ", line 1: get_config() returned [1]; expected a ConfigDict"),
        ("def get_config():\n    c = {}\n    c['c'] = c\n    return c\n", ": RecursionError"),
        (b"\x00\x01\xff\xfe", ": SyntaxError: source code string cannot contain null bytes"),
        (b"\xff\xfe\x01", ", line 1: SyntaxError: (unicode error)"),
        ("", ": has no function get_config()."),
    ],
)  # fmt: skip
def test_files_that_are_broken(write, capfd, text, message):
    file = write(text, "broken_config.py")
    with pytest.raises(ConfigError) as error:
        load(file)
    said = str(error.value)
    if isinstance(text, bytes):
        said = said.replace("ValueError", "SyntaxError")  # as Python 3.11.0 called it
    assert said.startswith(f"--config={str(file)[:74]}") and message in said and "\n" not in said
    assert main(["train", f"--config={file}", "--workdir=w"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_the_argument_must_be_one_that_get_config_takes(write):
    with pytest.raises(ConfigError, match=r"line 1: get_config\(\): too many positional arguments; got 'x'\."):
        load(f"{write('def get_config(): return {}')}:x")
    with pytest.raises(ConfigError, match=r"missing a required argument: 'a'; none was given, as in .*config.py:ARG"):
        load(write("def get_config(a): return {}"))


def test_paths_that_are_no_config(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for path, message in {
        "": "--config: empty; expected FILE.py",
        ":x": "--config: empty; expected FILE.py",
        ".": "--config=.: this folder has no config.py.",
        "folder": "--config=folder: this folder has no config.py.",
        "x" * 5000: "xxx....",
        "a\0b": "no such file",
    }.items():
        with pytest.raises(ConfigError) as error:
            load(path)
        assert message in str(error.value)
    write(FILE)
    assert load(".").steps == 1
    with pytest.raises(ConfigError, match=r"no such file: confg.py\. Did you mean 'config.py'\?"):
        load("confg.py")


def test_interrupts_and_a_full_memory_pass_through(write):
    for error in (KeyboardInterrupt, MemoryError):
        with pytest.raises(error):
            load(write(f"def get_config():\n    raise {error.__name__}"))


def test_a_file_edited_within_a_second_is_read_again(write):
    for value in (1, 2):
        assert load(write(f"def get_config():\n    return dict(x={value})")).x == value
    assert not (write("").parent / "__pycache__").exists()


def test_functions_of_a_config_can_be_imported_by_its_name(write, monkeypatch):
    text = "def method(e):\n    return e\n\ndef get_config():\n    return dict(f=method, name=__name__)\n"
    file = write(text, "my_giraffe_config.py")
    try:
        for _ in range(2):  # the second time the name is its own
            values = load(file)
            assert values.name == "my_giraffe_config"
            assert sys.modules[values.f.__module__].method is values.f
        (file.parent / "other").mkdir()
        assert load(write(text, "other/my_giraffe_config.py")).name == "my_giraffe_config_"
        # An installed module keeps its name, imported yet or not.
        monkeypatch.delitem(sys.modules, "this", raising=False)
        for name in ("json", "this", "math"):
            assert load(write(text, f"{name}.py")).name == f"{name}_"
            assert name == "this" or sys.modules[name] is not sys.modules[f"{name}_"]
        with pytest.raises(ConfigError):
            load(write("1 / 0", "my_broken_giraffe.py"))
        assert "my_broken_giraffe" not in sys.modules
    finally:
        for name in ("my_giraffe_config", "my_giraffe_config_", "json_", "this_", "math_"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("text", ["yarn", "open('x')", "[", "dict('a')", "[open('x')]", "1 + 1", "b'x'", "...", ""])
def test_what_is_no_literal(text):
    with pytest.raises(ValueError) as error:
        literal(text)
    assert not isinstance(error.value, ConfigError)


def test_a_literal_keeps_its_tuples():
    assert literal(" [dict(name='yarn', at=(1, 2)), {'b': -1e-5}] ") == [dict(name="yarn", at=(1, 2)), {"b": -1e-5}]


# Leaves of TrainConfig, with flags that must come first: required neighbours, and what one key asks of another.
ASKS = {"optim.decay_steps": ["optim.schedule=linear"]}
SHAPE = dict(vocab_size=8, d_model=8, d_mlp=8, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=4)


def sample(hint: Any) -> Any:
    """A value that a field of this type takes, and that is no field's default."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return sample(next(arg for arg in args if arg is not type(None)))
    if origin is Annotated:
        return sample(args[0])
    if origin is Literal:
        return args[-1]
    if origin is tuple:
        return [sample(args[0])]
    if dataclasses.is_dataclass(hint):
        return {f.name: sample(hints(hint)[f.name]) for f in dataclasses.fields(hint) if required(f)}
    return {int: 2, float: 0.5, str: "1e3", bool: True}.get(hint, {"name": "linear", "factor": 2.0})


def hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def required(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def leaves(cls: Any, prefix: str, before: list[str]):
    """(key, value, flags that come before it) of every leaf of a dataclass, those inside lists too."""
    for name, hint in hints(cls).items():
        key, inner, lists = f"{prefix}{name}", hint, False
        if typing.get_origin(inner) in (typing.Union, types.UnionType):
            inner = next(arg for arg in typing.get_args(inner) if arg is not type(None))
        if typing.get_origin(inner) is tuple and dataclasses.is_dataclass(typing.get_args(inner)[0]):
            inner, lists = typing.get_args(inner)[0], True
        if dataclasses.is_dataclass(inner):
            whole = sample(inner)
            if lists:
                yield from leaves(inner, f"{key}[0].", [*before, f"{key}={[whole]}"])
            else:
                yield from leaves(inner, f"{key}.", [*before, *[f"{key}.{k}={v!r}" for k, v in whole.items()]])
        else:
            yield key, sample(hint), before + ASKS.get(key, [])


def all_leaves():
    from giraffe_jax.model import ModelConfig
    from giraffe_jax.training.config import TrainConfig

    found = [leaf for leaf in leaves(TrainConfig, "", []) if leaf[0] != "model"]
    return found + list(leaves(ModelConfig, "model.", []))


def test_the_leaves_are_those_of_every_part():
    keys = [key for key, _, _ in all_leaves()]
    assert len(keys) == len(set(keys)) > 80
    some = "save_every mesh.fsdp lora.rank frequencies.lr eval_data.skip.sigma model.positions model.dtype "
    some += "data.sources[0].weight data.stages[0].sources[0].synthetic.kinds"
    assert set(some.split()) < set(keys)


def test_every_key_can_be_set_where_the_file_leaves_it_out(write):
    from giraffe_jax.model import ModelConfig
    from giraffe_jax.training.config import TrainConfig

    file = write("def get_config():\n    return dict(steps=1, data=dict(seq_len=8, batch_size=2))")
    for key, value, before in all_leaves():
        flags = [f"--config.{flag}" for flag in [*before, f"{key}={value!r}"]]
        built = build(TrainConfig, load(file, flags))
        model = build(ModelConfig, SHAPE | dict(built.model), "model")
        found = eval(key if key.startswith("model.") else f"c.{key}", {"c": built, "model": model})
        assert to_dict(found) == value, (flags, found)


def test_a_misspelt_key_is_refused_where_it_is_built(write):
    from giraffe_jax.training.config import TrainConfig

    file = write("def get_config():\n    return dict(steps=1, data=dict(seq_len=8, batch_size=2))")
    for flag, message in {
        "optim.lrr=1": "config.optim: unknown ['lrr']; OptimConfig takes lr, .*Did you mean 'lr'?",
        "optm.lr=1": "config: unknown ['optm']; TrainConfig takes data, .*Did you mean 'optim'?",
        "save_every=often": "config.save_every: expected int, got 'often'.",
        "optim.clip=[1]": "config.optim.clip: expected float, got [1].",
    }.items():
        with pytest.raises(ConfigError) as error:
            build(TrainConfig, load(file, [f"--config.{flag}"]))
        assert all(part in str(error.value) for part in message.split(".*"))


def test_import_roots_are_here_the_config_s_folder_and_its_project(tmp_path, monkeypatch):
    project, folder = tmp_path / "project", tmp_path / "project" / "a" / "b"
    folder.mkdir(parents=True)
    (project / "pyproject.toml").touch()
    (folder / "config.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    here = [tmp_path, folder, project, configs.shipped()]
    assert configs.import_roots("project/a/b/config.py:x") == here
    assert configs.import_roots("project/a/b") == here
    monkeypatch.chdir(folder)
    assert configs.import_roots("config.py") == [folder, project, configs.shipped()]
    monkeypatch.chdir(project)
    assert configs.import_roots(str(folder)) == [project, folder, configs.shipped()]


def test_what_ships_is_found_by_its_name_where_nothing_here_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = configs.shipped()
    assert configs.found("quickstart") == str(place / "experiments" / "quickstart")
    assert configs.found("experiments/quickstart:x:y") == f"{place / 'experiments' / 'quickstart'}:x:y"
    assert configs.found("longlora") == str(place / "configs" / "longlora.py")
    assert configs.found("nothing:x") == "nothing:x" and configs.found("") == ""
    (tmp_path / "quickstart").mkdir()
    assert configs.found("quickstart") == "quickstart"


def test_a_method_beside_the_config_is_found(write, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    write("def double(e):\n    return e\n", "own_giraffe_methods.py")
    file = write("from own_giraffe_methods import double\n\ndef get_config():\n    return dict(f=double)")
    assert main(["train", f"--config={file}", "--workdir=w"]) == 2
    assert "unknown ['f']" in capsys.readouterr().err
    sys.modules.pop("own_giraffe_methods")


@pytest.mark.parametrize("verb", ["train", "search", "evaluate", "run"])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_workdir_is_refused(write, tmp_path, monkeypatch, capsys, verb, empty):
    monkeypatch.chdir(tmp_path)
    file = str(write(FILE))
    config = [file] if verb == "run" else [f"--config={file}"]
    assert main([verb, *config, f"--workdir={empty}"]) == 2
    assert f"argument --workdir: got {empty!r}, expected a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MemoryError(), 1, "giraffe: MemoryError\n"),
        (MemoryError("9 GiB for an array"), 1, "giraffe: MemoryError: 9 GiB for an array\n"),
        (OSError(28, "No space left on device", "a.jsonl"), 1, "giraffe: a.jsonl: No space left on device\n"),
        (KeyboardInterrupt(), 130, "giraffe: interrupted; the same command continues what can be continued.\n"),
    ],
)
def test_what_ends_a_command_is_one_line(monkeypatch, capsys, error, status, said):
    from giraffe_jax.cli import report

    def fail(args):
        raise error

    monkeypatch.setattr(report, "run", fail)
    before = signal.getsignal(signal.SIGINT)
    assert main(["report", "d"]) == status
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.SIGINT) is before


WAIT = "import pathlib, time\n\ndef wait(name):\n    pathlib.Path(name).touch()\n    time.sleep(60)\n\n"


@pytest.mark.parametrize(
    ("text", "interrupts"),
    [
        (WAIT + "def get_config():\n    wait('1')", 1),
        (WAIT + "wait('1')", 1),
        (WAIT + "def get_config():\n    try:\n        wait('1')\n    finally:\n        wait('2')", 2),
        # What imports, destructors and careless handlers make of an interrupt.
        (f"import slow_giraffe\n{WAIT}", 1),
        (WAIT + "class A:\n    def __del__(self):\n        wait('1')\n\ndef get_config():\n    A()\n    wait('2')", 1),
        (WAIT + "def get_config():\n    try:\n        wait('1')\n    except BaseException:\n        raise OSError", 1),
        (WAIT + "import atexit\natexit.register(wait, '1')\ndef get_config():\n    return {}", 1),
    ],
)
def test_an_interrupt_is_one_line_and_status_130(write, tmp_path, text, interrupts):
    careless = (
        "try:\n    wait('1')\nexcept BaseException:\n    traceback.print_exc()\n    raise ImportError"  # as numpy is
    )
    write(f"import traceback\n{WAIT}{careless}", "slow_giraffe.py")
    command = [sys.executable, "-m", "giraffe_jax.cli", "train", f"--config={write(text)}", "--workdir=w"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = processes.start(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    for number in range(1, interrupts + 1):
        while not (tmp_path / str(number)).exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    said = "giraffe: interrupted; the same command continues what can be continued.\n"
    at_the_end = "atexit" in text  # the command has been answered before
    assert err == "" if interrupts == 2 else at_the_end or err == said
    assert "Traceback" not in err
