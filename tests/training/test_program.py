"""The program of a training: what it holds on each device, by hand, and that `train` runs what `plan` compiles."""

import jax
import numpy as np
import pytest

from giraffe_jax.config import build
from giraffe_jax.data import make_pipeline
from giraffe_jax.inference import LM
from giraffe_jax.model import ModelConfig
from giraffe_jax.sharding import MeshConfig, make_mesh
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.loop import place, to_global
from giraffe_jax.training.program import batch_shapes, bytes_per_device, program, state_shapes
from tests.training.test_train import MODEL, settings


def test_bytes_of_a_device_by_hand():
    V, D, F, L, N, K, H = 64, 32, 48, 2, 4, 2, 8
    model = ModelConfig(V, D, F, L, N, K, H)
    data = dict(sources=[], seq_len=8, batch_size=4)
    config = build(TrainConfig, dict(data=data, steps=1))
    state = state_shapes(config, model, make_mesh(MeshConfig(fsdp=4), jax.devices()[:4]))
    matrices = 2 * V * D + L * (2 * D * N * H + 2 * D * K * H + 3 * D * F)
    held = 4 * (matrices // 4 + (2 * L + 1) * D)  # norms are whole on each
    assert bytes_per_device(state.params) == held
    assert 0 < bytes_per_device(state.opt_state) - 2 * held <= 16  # and counters of steps
    shared = state_shapes(config, model, make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4]))
    assert bytes_per_device(shared.params) == held


@pytest.mark.parametrize(
    "changes",
    [{}, dict(lora=dict(rank=2)), dict(frequencies=dict(train="with_weights"), model=dict(positions=[])),
     dict(accumulate=2, optim=dict(lr=1e-3, muon_lr=1e-2))],
    ids=["all weights", "LoRA", "frequencies", "Muon"],
)  # fmt: skip
def test_what_is_compiled_ahead_runs_on_what_train_gives_the_step(tokenizer, changes):
    """A compiled program refuses arguments of other shapes, dtypes or shardings than it was lowered for."""
    values = settings(tokenizer, **changes)
    values["model"] = MODEL | values["model"] | dict(num_kv_heads=2)
    values["mesh"] = dict(data=2, fsdp=2, tensor=2)
    config = build(TrainConfig, values)
    model = build(ModelConfig, config.model)
    mesh = make_mesh(config.mesh)
    made = program(config, model, mesh)
    shapes = state_shapes(config, model, mesh)
    compiled = made.lower(shapes).compile()
    with jax.set_mesh(mesh):
        batch = to_global(make_pipeline(config.data, ByteTokenizer()).batch(0), mesh)
        want = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch_shapes(config, mesh))
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch) == want
        lm = LM(model, None, ByteTokenizer())
        _, ahead = compiled(place(config, lm, mesh), batch, made.encoding, made.update, z_loss=made.z_loss)
        _, now = made.step(place(config, lm, mesh), batch)
    for name, value in now.items():
        np.testing.assert_array_equal(value, ahead[name], err_msg=name)
