"""Loading onto a mesh: the numbers of one device, and no device ever holding more than its part of them."""

import dataclasses
import gc
import math

import jax
import numpy as np
import pytest

import giraffe_jax.training.program as training
from giraffe_jax import hf
from giraffe_jax.config import ConfigError, build
from giraffe_jax.hf import names
from giraffe_jax.loading import load, put
from giraffe_jax.model import ModelConfig, init_params
from giraffe_jax.records import read_rows
from giraffe_jax.sharding import MeshConfig, make_mesh, paths
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.loop import place, train
from tests.close import close
from tests.training.test_train import settings

# Large enough that a norm, which every device holds whole, is little beside an eighth.
MODEL = ModelConfig(vocab_size=264, d_model=64, d_mlp=128, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=8)
MESH = MeshConfig(fsdp=4, tensor=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    hf.save(init_params(MODEL, jax.random.key(0)), MODEL, ByteTokenizer(), folder, dtype="float32")
    return str(folder)


def part(tree):
    """Bytes of arrays on the first device, of which no view is made: a view would be one more array."""
    first = jax.devices()[0]
    here = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and first in x.sharding.device_set]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in here)


def held():
    """Bytes that the first device holds of all arrays alive."""
    gc.collect()
    return part(jax.live_arrays())


def nbytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.slow
def test_weights_come_in_parts(source, monkeypatch):
    """The first device is looked at whenever a tensor is read, and at the end."""
    whole = jax.tree.map(np.array, load(source).params)
    before = held()
    most, reads, reshaped = [0], [], names.from_file

    def watched(tensor, *args):
        reads.append(args)
        most[0] = max(most[0], held() - before)
        return reshaped(tensor, *args)

    monkeypatch.setattr(names, "from_file", watched)
    loaded = load(source, mesh=make_mesh(MESH))
    assert len(reads) == 3 + 9 * MODEL.num_layers  # each tensor once, however many devices share it
    assert part(loaded.params) < nbytes(whole) / 7
    assert max(most[0], held() - before) <= part(loaded.params)
    jax.tree.map(np.testing.assert_array_equal, whole, loaded.params)
    half = load(source, dict(param_dtype="bfloat16"), mesh=make_mesh(MESH))
    assert part(half.params) == part(loaded.params) / 2


def test_nothing_is_read_for_a_model_that_cannot_be(source, monkeypatch):
    monkeypatch.setattr(names, "from_file", lambda *_: pytest.fail("a tensor was read"))
    for overrides, message in ((dict(param_dtype="float31"), "float31"), (dict(dmodel=3), "unknown ['dmodel']")):
        with pytest.raises(ConfigError) as error:
            load(source, overrides, mesh=make_mesh(MESH))
        assert message in str(error.value)


METHODS = {name: dict(name=name) for name in ("t5", "fire", "kerple", "ssmax", "alibi")}


QUICK = (("fire", None), ("ssmax", 1e-2), ("alibi", 1e-2))


@pytest.mark.parametrize(
    ("name", "muon_lr"),
    [
        pytest.param(name, rate, id=f"{name}-{'muon' if rate else 'adamw'}", marks=marks)
        for name in METHODS
        for rate in (None, 1e-2)
        for marks in [() if (name, rate) in QUICK else (pytest.mark.slow,)]
    ],
)
def test_what_a_method_learns_has_its_place_on_a_mesh(source, name, muon_lr):
    """Whole on each device, in the weights and in the optimizer's state; the kernels beside it stay spread."""
    mesh = make_mesh(MESH)
    loaded = load(source, dict(positions=[METHODS[name]]), mesh=mesh)
    optim = dict(muon_lr=muon_lr)
    config = build(TrainConfig, dict(data=dict(sources=[], seq_len=8, batch_size=8), steps=1, optim=optim))
    for state in (place(config, loaded, mesh), place(config, dataclasses.replace(loaded, params=None), mesh)):
        more = [x for path, x in paths(state).items() if f"attention/{name}/" in path]
        assert (len(more) >= 3) == (name != "alibi")
        assert all(x.sharding.is_fully_replicated and len(x.sharding.device_set) == 8 for x in more)
        spread = [x for path, x in paths(state).items() if path.endswith("q/kernel")]
        assert len(spread) >= 2 and not any(x.sharding.is_fully_replicated for x in spread)


def test_a_source_names_a_checkpoint(tmp_path, tokenizer):
    data = settings(tokenizer)["data"]
    config = settings(tokenizer, steps=3, save_every=1, keep=9, eval_every=1, eval_batches=1, eval_data=data)
    where = str(tmp_path / "run")
    train(config, where, quiet=True)
    each = {step: load(f"{where}@{step}").params["norm"]["scale"] for step in (1, 2, 3)}
    assert not np.array_equal(each[1], each[2]) and not np.array_equal(each[2], each[3])
    np.testing.assert_array_equal(load(where).params["norm"]["scale"], each[3])
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in row]
    best = min(rows, key=lambda row: row["eval_loss"])["step"]
    np.testing.assert_array_equal(load(f"{where}@best").params["norm"]["scale"], each[best])
    with pytest.raises(ConfigError, match="holds no checkpoint 7; there are 1, 2, 3"):
        load(f"{where}@7")
    with pytest.raises(ConfigError, match="giraffe-mini is not the workdir of a training run"):
        load("giraffe-mini@7")


def test_placed_weights_stay_where_they_are(source):
    mesh = make_mesh(MESH)
    loaded = load(source, mesh=mesh)
    x = loaded.params["layers"]["mlp"]["up"]["kernel"]
    assert put(x, x.sharding) is x
    state = place(build(TrainConfig, dict(data=dict(sources=[], seq_len=8, batch_size=8), steps=1)), loaded, mesh)
    for name, leaf in paths(state.params).items():
        assert leaf.sharding.is_equivalent_to(paths(loaded.params)[name].sharding, leaf.ndim)


def test_a_run_holds_its_state_and_no_second_copy_of_its_source(source, tmp_path, tokenizer, monkeypatch):
    config = settings(tokenizer, source=source, model={}, tokenizer="", steps=2, mesh=dataclasses.asdict(MESH))
    before, found, step = held(), [], training.train_step

    def watched(state, batch, encoding, update, **kwargs):
        found.append((held() - before, part(state) + part(batch)))
        return step(state, batch, encoding, update, **kwargs)

    monkeypatch.setattr(training, "train_step", watched)
    first = train(config, tmp_path / "one", quiet=True)
    assert len(found) == 2 and all(has <= its + 4096 for has, its in found)
    # And a workdir is restored in parts, adapters merged.
    again = load(str(tmp_path / "one"), mesh=make_mesh(MESH))
    alone = load(str(tmp_path / "one"))
    assert part(again.params) < nbytes(alone.params) / 7
    for name, leaf in paths(again.params).items():
        close(leaf, paths(alone.params)[name], ulps=1024)
        close(leaf, paths(first.params)[name], ulps=1024)
