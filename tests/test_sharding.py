"""One device against eight: the same loss and the same gradient, whatever the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from giraffe_jax.config import ConfigError
from giraffe_jax.model import Llama, ModelConfig, init_params, unembedding
from giraffe_jax.model.config import PARAM_AXES
from giraffe_jax.ops.loss import token_nll
from giraffe_jax.sharding import MeshConfig, batch_sharding, make_mesh, paths, shardings
from tests.close import close

SHAPE = dict(vocab_size=32, d_model=32, d_mlp=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
TOKENS = np.random.default_rng(0).integers(0, 32, (8, 33)).astype(np.int32)
# Two documents to a row, at another place in each row.
SEGMENTS = (np.arange(32)[None] >= np.arange(4, 28, 3)[:, None]).astype(np.int32) + 1
POSITIONS = np.where(SEGMENTS == 1, np.arange(32), np.arange(32) - np.arange(4, 28, 3)[:, None]).astype(np.float32)


def loss_and_gradient(config, mesh):
    def loss(params, tokens, targets, positions, segments, encoding):
        hidden, _ = Llama(config).apply({"params": params}, tokens, encoding.at(positions), segments)
        return token_nll(hidden, unembedding(params), targets, chunk=16)[0].mean()

    params = init_params(config, jax.random.key(0))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, shardings(params, PARAM_AXES, mesh))
        batch = (TOKENS[:, :-1], TOKENS[:, 1:], POSITIONS, SEGMENTS)
        batch = tuple(jax.device_put(x, batch_sharding(mesh)) for x in batch)
        value, gradient = jax.jit(jax.value_and_grad(loss))(params, *batch, config.bind())
        return float(value), jax.tree.map(np.asarray, gradient)


# Rows over data, tokens and features over context, heads over tensor, all at once; meshes of one or two axes are slow.
ALL = MeshConfig(2, 1, 2, 2)
ALONE = [MeshConfig(data=8, fsdp=1), MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2)]


@pytest.mark.parametrize(
    ("attention", "meshes"),
    [("dense", [ALL]), ("blockwise", [ALL]), pytest.param("blockwise", ALONE, marks=pytest.mark.slow)],
    ids=["dense", "blockwise", "blockwise, alone"],
)
def test_meshes_agree_with_one_device(attention, meshes):
    config = ModelConfig(**SHAPE, original_len=16, attention=attention, block_size=8, remat="full",
                         positions=(dict(name="yarn", factor=2.0),))  # fmt: skip
    want, want_gradient = loss_and_gradient(config, make_mesh(MeshConfig(), jax.devices()[:1]))
    for sizes in meshes:
        got, gradient = loss_and_gradient(config, make_mesh(sizes))
        close(got, want, what=sizes)
        for name, leaf in paths(gradient).items():
            close(leaf, paths(want_gradient)[name], ulps=1024, what=f"{sizes} {name}")


def test_parameters_are_really_split():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    shapes = jax.eval_shape(lambda: init_params(ModelConfig(**SHAPE), jax.random.key(0)))
    found = paths(shardings(shapes, PARAM_AXES, mesh))
    assert found["layers/attention/q/kernel"].spec == P(None, ("fsdp", "context"), "tensor", None)
    assert found["layers/mlp/down/kernel"].spec == P(None, "tensor", ("fsdp", "context"))
    assert found["embed/embedding"].spec == P("tensor", ("fsdp", "context"))
    assert found["norm/scale"].spec == P(None)


def test_parameters_are_spread_over_fsdp_and_context_both():
    mesh = make_mesh(MeshConfig(fsdp=2, context=4))
    params = init_params(ModelConfig(**SHAPE), jax.random.key(0))
    for name, leaf in paths(jax.device_put(params, shardings(params, PARAM_AXES, mesh))).items():
        if not name.endswith("scale"):
            assert all(shard.data.size == leaf.size // 8 for shard in leaf.addressable_shards), name
    with pytest.raises(ConfigError, match="fsdp=2 x context=4 does not divide axis 'embed' of embed/embedding, whi"):
        shardings(jax.eval_shape(lambda: init_params(ModelConfig(**SHAPE | dict(d_model=12)), jax.random.key(0))),
                  PARAM_AXES, mesh)  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (MeshConfig(data=3), "data=3 x fsdp=-1 x context=1 x tensor=1 does not divide the 8 devices here"),
        (MeshConfig(data=2, fsdp=2), "takes 4 devices, not the 8 devices here"),
        (MeshConfig(data=0), "sizes are positive"),
        (MeshConfig(data=-1, fsdp=-1), "one of them may be -1"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(sizes)


def test_a_head_count_that_the_mesh_does_not_divide_is_named():
    mesh = make_mesh(MeshConfig(tensor=4, fsdp=2))
    params = init_params(ModelConfig(**SHAPE), jax.random.key(0))
    with pytest.raises(
        ConfigError, match="tensor=4 does not divide axis 'kv_heads' of layers/attention/k/kernel, which has 2"
    ):
        shardings(params, PARAM_AXES, mesh)


def test_a_parameter_that_the_table_does_not_know_is_refused():
    mesh = make_mesh(MeshConfig(fsdp=8))
    tree = {"adapter": {"kernel": jnp.zeros((8, 2))}}
    with pytest.raises(ConfigError, match=r"no logical axes fit adapter/kernel of shape \(8, 2\): it is not in the"):
        shardings(tree, PARAM_AXES, mesh)
    with pytest.raises(ConfigError, match=r"norm/scale of shape \(8, 2\): the table has axes features"):
        shardings({"norm": {"scale": jnp.zeros((8, 2))}}, PARAM_AXES, mesh)


def test_constrain_without_a_mesh_changes_nothing():
    from giraffe_jax.sharding import constrain

    x = jnp.ones((2, 3))
    assert constrain(x, "batch", "tokens") is x


def test_axes_that_are_no_axes_of_the_torus_are_laid_over_parts_of_them(monkeypatch):
    """As on 16 x 16 chips of v6e with context=2, which JAX's own mesh refuses."""

    def refuse(*args, **kwargs):
        raise NotImplementedError("Failed to find assignment for logical_axis_index 2 of size 2")

    want = make_mesh(MeshConfig(fsdp=4, context=2))
    monkeypatch.setattr(jax, "make_mesh", refuse)
    mesh = make_mesh(MeshConfig(fsdp=4, context=2))
    assert dict(mesh.shape) == dict(want.shape) == dict(data=1, fsdp=4, context=2, tensor=1)
    assert mesh.axis_types == want.axis_types
    assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}
