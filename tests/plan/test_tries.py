"""What would make a training fit, and the longest rows: the searches, on memory by a formula in place of a compiler."""

import dataclasses
import importlib.util
import json
import sys
import types

import jax
import pytest

from giraffe_jax.cli import main, plan_tries
from giraffe_jax.cli.plan import ENVIRONMENT
from giraffe_jax.config import build
from giraffe_jax.model import ModelConfig
from giraffe_jax.plan import Plan, tries
from giraffe_jax.plan.tries import Tried
from giraffe_jax.sharding import AXES, MeshConfig
from giraffe_jax.training.config import TrainConfig

GIB = 2**30
SHAPE = dict(vocab_size=64, d_model=32, d_mlp=48, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=8)


def config(rows=16, tokens=32768, **keys):
    data = dict(sources=[dict(kind="synthetic")], seq_len=tokens, batch_size=rows)
    return build(TrainConfig, dict(data=data, steps=100) | keys)


def mesh(**sizes):
    return dict.fromkeys(AXES, 1) | sizes


def changed(run, model, changes):
    """Returns the configs with changes, which refuse what they would refuse of a user."""
    values: dict = dict(
        data=dict(sources=[dict(kind="synthetic")], seq_len=run.data.seq_len, batch_size=run.data.batch_size), steps=1,
        accumulate=run.accumulate,
    )  # fmt: skip
    parts: dict = {}
    for key, value in changes.items():
        table, _, name = key.rpartition(".")
        at = parts if table == "model" else values.setdefault(table, {}) if table else values
        at[name] = value
    return build(TrainConfig, values), build(ModelConfig, SHAPE | parts)


@pytest.mark.parametrize(
    ("sizes", "keys"),
    [
        (dict(fsdp=8), {}),
        (dict(data=2, fsdp=4), {}),
        (dict(fsdp=16), {}),  # a row a device
        (dict(fsdp=2, tensor=4), dict(accumulate=2)),
        (dict(fsdp=6), dict(rows=18)),
    ],
)
def test_changes_keep_tokens_and_chips_and_are_configs(sizes, keys):
    run, model = config(**keys), ModelConfig(**SHAPE)
    found = tries.candidates(run, model, mesh(**sizes))
    assert len({str(c) for c in found}) == len(found) > 4
    for changes in found:
        other, _ = changed(run, model, changes)
        now = mesh(**sizes) | {k[5:]: v for k, v in changes.items() if k.startswith("mesh.")}
        chips = 1
        for size in now.values():
            chips *= size
        assert chips == jax.tree.reduce(lambda a, b: a * b, list(sizes.values()))
        assert (other.data.batch_size, other.data.seq_len) == (run.data.batch_size, run.data.seq_len)
        assert other.data.batch_size // other.accumulate % (now["data"] * now["fsdp"]) == 0
        assert SHAPE["num_kv_heads"] % now["tensor"] == 0
        assert MeshConfig(**now)


def test_what_is_in_use_is_not_proposed_again():
    run = config(rows=8, optim=dict(mu_dtype="bfloat16"), loss_chunk=256)
    model = ModelConfig(**SHAPE, remat="offload", mlp_chunk=512)
    assert all(set(c) & {"mesh.context", "mesh.tensor"} for c in tries.candidates(run, model, mesh(fsdp=8)))


class Fake:
    """Memory in GiB by the changes: 40 less what each saves; 16 fit. Counts what is asked of it."""

    def __init__(self, **saves):
        self.saves, self.asked = saves, []

    def __call__(self, changes):
        self.asked.append(dict(changes))
        size = 40 - sum(self.saves.get(key, 0) for key in changes)
        return Tried(
            changes, fits=size <= 16, peak_bytes=size * GIB, executed_flops=1.0, step_seconds_bound=len(changes)
        )


FIRST = Tried({}, False, needed_bytes=40 * GIB)
OPTIONS = [{name: 1} for name in "abcdef"]


def test_a_single_change_that_fits_is_found_and_three_are_enough():
    fake = Fake(a=1, b=30, c=25, d=28, e=30)
    found = tries.propose(FIRST, OPTIONS, fake, 8)
    assert fake.asked == OPTIONS[:4] == [t.changes for t in found]
    # Bounds and FLOPs are the same here: memory decides.
    assert [t.changes for t in tries.best_first(found)] == [{"b": 1}, {"d": 1}, {"c": 1}]


def test_where_none_is_enough_they_are_taken_together_those_first_that_save_most():
    fake = Fake(a=4, b=0, c=10, d=12)
    found = tries.propose(FIRST, OPTIONS, fake, 8)
    assert fake.asked == [*OPTIONS[:4], {"d": 1, "c": 1}, {"d": 1, "c": 1, "a": 1}]
    assert [t.fits for t in found] == [False] * 5 + [True]


def test_tries_are_bounded():
    for count in (1, 2, 3, 5):
        fake = Fake(a=1, b=2, c=3)
        assert len(tries.propose(FIRST, OPTIONS, fake, count)) == count == len(fake.asked)
    refused = tries.propose(FIRST, OPTIONS, lambda changes: Tried(changes, False, refused="no"), 6)
    assert len(refused) == 6 and tries.best_first(refused) == []


@pytest.mark.parametrize("rows", [8, 64])
@pytest.mark.parametrize("power", [1.0, 1.2, 0.8])
@pytest.mark.parametrize("hbm", [2, 16, 95])
def test_the_longest_rows_by_a_formula(rows, power, hbm):
    """A device holds 1 GiB and 1 GiB for each 32,768 tokens, or nearly so, or more: the longest rows are those before
    the first that are over its memory."""
    run, sizes = config(rows=rows), mesh(fsdp=8)
    asked = []

    def size(tokens, rows):
        return int((1 + (tokens * rows / 8 / 32768) ** power) * GIB)

    def attempt(changes):
        tokens, rows = changes["data.seq_len"], changes["data.batch_size"]
        assert tokens % 1024 == 0 and rows % 8 == 0 and rows == max(8, run.data.batch_size * 32768 // tokens // 8 * 8)
        asked.append(tokens)
        peak = size(tokens, rows)
        return Tried(changes, peak <= hbm * GIB, peak_bytes=peak)

    first = Tried({}, size(32768, rows) <= hbm * GIB, peak_bytes=size(32768, rows))
    fits, fails, tried = tries.longest(first, run, sizes, attempt, 40, arguments=GIB, hbm=hbm * GIB)
    assert len(asked) == len(set(asked)) == len(tried)
    if rows == 64 and hbm == 2:  # a step of so many tokens does not fit, in short rows or long ones
        assert fits is None
        return
    assert fits is not None and fails is not None and fails == fits + 1024
    assert size(fits, tries.rows_of(run, sizes, fits)) <= hbm * GIB < size(fails, tries.rows_of(run, sizes, fails))
    if power == 1.0 and rows == 8:
        assert fits == (hbm - 1) * 32768 and len(tried) <= 4  # a line needs no bisection


def test_few_tries_leave_an_interval():
    first = Tried({}, True, peak_bytes=2 * GIB)

    def attempt(changes):
        return Tried(changes, changes["data.seq_len"] <= 50_000, peak_bytes=3 * GIB)

    about = dict(arguments=GIB, hbm=16 * GIB)
    fits, fails, tried = tries.longest(first, config(rows=8), mesh(fsdp=8), attempt, 2, **about)
    assert fits is not None and fails is not None and len(tried) == 2 and fits <= 50_000 < fails


def test_flags_of_a_variant_are_the_experiments():
    changes = {"model.remat": "full", "mesh.fsdp": 4}
    assert plan_tries.flags(changes) == ["--config.model.remat=full", "--config.mesh.fsdp=4"]
    assert plan_tries.flags(changes, 2) == ["--config.overrides.remat=full", "--config.variants[2].train.mesh.fsdp=4"]


def test_what_stopped_a_try_is_named():
    assert plan_tries.why(-6, "x\nF1 a.cc:1] Check failed: a == b (2 vs. 3) \n") == (
        "the compiler aborted (Check failed: a == b (2 vs. 3))"
    )
    assert plan_tries.why(2, "noise\ngiraffe: mesh: 3 does not divide.\n") == "mesh: 3 does not divide."
    assert plan_tries.why(1, "") == "exit status 1"


BIG = dict(vocab_size=128, d_model=512, d_mlp=512, num_layers=64, num_heads=4, num_kv_heads=4, head_dim=128)


def write(folder):
    model = BIG | dict(attention="dense", dtype="bfloat16")
    values = dict(steps=10, model=model, mesh=dict(fsdp=4))
    values["data"] = dict(sources=[dict(kind="text", path="/not/here")], seq_len=128, batch_size=2048)
    (folder / "config.py").write_text(f"def get_config():\n    return {values!r}\n")
    return f"--config={folder / 'config.py'}"


def test_a_try_is_the_command_with_its_flags(tmp_path, monkeypatch, capsys):
    """The plan and its tries by a compiler that lets nothing pass without remat: the flags that are printed are those
    that were run."""
    asked = []

    def run(words, **_):
        asked.append(words)
        fits = "--config.model.remat=full" in words
        found = dict.fromkeys(plan_tries._KNOWN, None) | dict(fits=fits, needed_bytes=20 * GIB)
        if fits:
            found |= dict(peak_bytes=6 * GIB, executed_flops=2.0, model_flops=1.0, step_seconds_bound=0.5)
        return types.SimpleNamespace(returncode=0 if fits else 1, stdout=json.dumps(found) + "\n", stderr="")

    known: dict = dict(topology="v5e:2x2", mesh=mesh(fsdp=4), fits=False, needed_bytes=20 * GIB, hbm_bytes=16 * GIB)
    known |= dict(slices=1, chips=4, seq_len=128, batch_size=2048, accumulate=1, attention="dense", remat="none")
    known |= dict(argument_bytes=1, parameter_bytes=1, optimizer_bytes=1, model_flops=1.0, compile_seconds=1.0)
    first = Plan(**dict.fromkeys(field.name for field in dataclasses.fields(Plan)) | known)
    monkeypatch.setattr("giraffe_jax.plan.plan", lambda *args, **keys: first)
    monkeypatch.setattr(plan_tries.subprocess, "run", run)
    assert main(["plan", write(tmp_path), "--topology=v5e:2x2", "--tries=3", "--config.seed=3"]) == 1
    said = capsys.readouterr().out
    assert said.endswith("it fits with, best first:\n  --config.model.remat=full\n")
    assert all("--config.seed=3" in words and "--topology=v5e:2x2" in words and "--tries=0" in words for words in asked)
    assert len(asked) == 3  # save_matmuls alone, then save_attention, then full


@pytest.fixture
def libtpu(monkeypatch):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
def test_a_program_too_big_and_the_first_proposal_fits(tmp_path, capsys):
    path = write(tmp_path)
    assert main(["plan", path, "--topology=v5e:2x2", "--json", "--tries=2"]) == 1
    said = json.loads(capsys.readouterr().out)
    first = said["proposals"][0]
    assert not said["fits"] and first["fits"] and said["needed_bytes"] > said["hbm_bytes"] >= first["peak_bytes"]
    assert main(["plan", path, *first["flags"], "--topology=v5e:2x2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peak_bytes"] == first["peak_bytes"]


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
def test_what_is_offloaded_is_counted_in_the_hosts_memory(tmp_path, capsys):
    path = write(tmp_path)
    words = ["--config.model.remat=offload", "--config.data.batch_size=64", "--config.model.num_layers=4"]
    assert main(["plan", path, *words, "--topology=v5e:2x2", "--json"]) == 0
    # The layers' inputs in bfloat16: 4 layers of 16 rows on a device.
    assert json.loads(capsys.readouterr().out)["host_bytes"] == 4 * 16 * 128 * 512 * 2
