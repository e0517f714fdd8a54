"""Exports read by transformers 4 and 5: the logits are ours, whatever the positions, the shape and the dtype.

transformers 5 is that of this interpreter; transformers 4 is that of the one GIRAFFE_TRANSFORMERS_457 names:

  python3 -m venv t457 && t457/bin/pip install torch==2.13.0 'transformers==4.57.*' safetensors numpy
  GIRAFFE_TRANSFORMERS_457=t457/bin/python pytest -m oracle tests/hf/test_versions.py
"""

import dataclasses
import functools
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giraffe_jax import hf
from giraffe_jax.config import ConfigError
from giraffe_jax.hf.read import nest
from giraffe_jax.model import Llama, ModelConfig, init_params, logits
from giraffe_jax.positions import names
from giraffe_jax.sharding import paths

pytestmark = pytest.mark.oracle
PYTHONS = {"5": sys.executable, "4": os.environ.get("GIRAFFE_TRANSFORMERS_457", "")}
NUM_MODELS = 50
# vocab_size, d_model, d_mlp, num_layers, num_heads, num_kv_heads, head_dim: grouped heads, one key head, head_dim that
# is not d_model / num_heads.
SHAPES = [(96, 32, 48, 3, 4, 2, 8), (50, 24, 40, 2, 3, 1, 16), (64, 32, 64, 2, 4, 4, 8), (80, 48, 32, 2, 2, 1, 32)]


def scaling(rng: np.random.Generator, kind: str, head_dim: int) -> list[dict]:
    """A list of methods with random parameters, by the name of what it is written as."""
    factor, planes = float(rng.choice([1.5, 2.0, 4.0, 6.3])), head_dim // 2
    rising = np.sort(rng.uniform(1, 5, planes)).tolist()
    nearly = rng.uniform(0.9, 1.4, planes).tolist()
    yarn = dict(name="yarn", factor=factor)
    lists = dict(name="longrope", short_factor=nearly, long_factor=rising)
    return {
        "default": [],
        "linear": [dict(name="linear", factor=factor)],
        "dynamic": [dict(name="dynamic", factor=factor)],
        "llama3": [dict(name="llama3", factor=factor)],
        "llama3 bands": [
            dict(name="llama3", factor=factor, low_freq_factor=rng.uniform(0.3, 1.5), high_freq_factor=5.0)
        ],
        "yarn": [yarn],
        "yarn betas": [yarn | dict(beta_fast=rng.uniform(4, 32), beta_slow=rng.uniform(0.2, 2), truncate=False)],
        "yarn mscale": [yarn | dict(mscale=rng.uniform(0.5, 1.5), mscale_all_dim=rng.uniform(0.3, 1))],
        "yarn gain": [yarn | dict(attention_factor=rng.uniform(0.8, 1.4))],
        "longrope": [lists],
        "longrope factor": [lists | dict(factor=factor)],
        "longrope gain": [lists | dict(attention_factor=rng.uniform(0.8, 1.3))],
        "longrope policy": [lists | dict(factor=factor, magnitude_policy="yarn")],
        "ntk": [dict(name="ntk", factor=factor)],
        "abf": [dict(name="abf", theta=rng.uniform(2e4, 5e6))],
        "table": [dict(name="yarn_paper", factor=factor)],
        "table composed": [dict(name="linear", factor=factor), dict(name="power", exponent=rng.uniform(0.1, 0.6))],
        "table of three": [dict(name="ntk", factor=factor), yarn, dict(name="resonance")],
    }[kind]


KINDS = [
    "default", "linear", "dynamic", "llama3", "llama3 bands", "yarn", "yarn betas", "yarn mscale", "yarn gain",
    "longrope", "longrope factor", "longrope gain", "longrope policy", "ntk", "abf", "table", "table composed",
    "table of three",
]  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def forward(config: ModelConfig, params, tokens, encoding):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.float32), tokens.shape)
    hidden, _ = Llama(config).apply({"params": params}, tokens, encoding.at(positions))  # type: ignore[misc]
    return logits(params, hidden)


def export(folder: Path, config: ModelConfig, seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Writes a random model of a config and its tokens; returns its logits of one pass at 1x and at 4x.

    Methods that follow the length are bound to that of the pass, as one full forward pass of transformers has it.
    """
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> jax.Array:
        # Small enough that the last bits of a frequency, which transformers rounds twice, stay below the limit.
        values = 1 + 0.1 * rng.standard_normal(shape) if "norm" in path else 0.2 * rng.standard_normal(shape)
        return jnp.asarray(values, jnp.float32)

    shapes = paths(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    params = nest({path: draw(path, leaf.shape) for path, leaf in shapes.items()})
    hf.save(params, config, None, folder, dtype=dtype)
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), params)
    tokens = rng.integers(0, config.vocab_size, (2, 4 * config.original_len))
    np.save(folder / "tokens.npy", tokens)
    alike = dataclasses.replace(config, positions=())  # one compilation for all that differ in numbers alone
    lengths = dict(short=config.original_len, long=4 * config.original_len)
    return {k: np.asarray(forward(alike, rounded, tokens[:, :n], config.bind(n))) for k, n in lengths.items()}


def compare(folder: Path, ours: dict[str, dict[str, np.ndarray]], version: str) -> dict[str, dict[str, float]]:
    """Returns for each model and length the largest difference from transformers, relative to the largest logit."""
    command = [PYTHONS[version], str(Path(__file__).with_name("transformers_forward.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(version + "."), done.stdout
    worst: dict[str, dict[str, float]] = {}
    for name, want in ours.items():
        theirs = np.load(folder / name / f"logits-{version}.npz")
        worst[name] = {k: float(np.abs(theirs[k] - v).max() / np.abs(v).max()) for k, v in want.items()}
    return worst


@pytest.fixture(scope="module")
def fifty(tmp_path_factory):
    folder, ours = tmp_path_factory.mktemp("fifty"), {}
    for i in range(NUM_MODELS):
        rng, kind = np.random.default_rng(i), KINDS[i % len(KINDS)]
        fields = ("vocab_size", "d_model", "d_mlp", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        shape = dict(zip(fields, SHAPES[int(rng.integers(len(SHAPES)))], strict=True))
        config = ModelConfig(
            **shape,
            theta=float(rng.choice([1e4, 5e5, 3e4])),
            original_len=int(rng.choice([16, 32])),
            norm_eps=float(rng.choice([1e-5, 1e-6])),
            tie_embeddings=bool(rng.integers(2)),
            positions=tuple(scaling(rng, kind, shape["head_dim"])),
        )
        dtype = {7: "bfloat16", 8: "float16"}.get(i % 10, "float32")
        name = f"{i:02d} {kind} {dtype}"
        ours[name] = export(folder / name, config, i, dtype)
    return folder, ours


@pytest.mark.parametrize("version", PYTHONS)
def test_fifty_exports_have_our_logits(fifty, version):
    if not PYTHONS[version]:
        pytest.skip("GIRAFFE_TRANSFORMERS_457 names no interpreter")
    folder, ours = fifty
    worst = compare(folder, ours, version)
    largest = {k: max((row[k], name) for name, row in worst.items()) for k in ("short", "long")}
    print(f"transformers {version}: largest relative difference {largest}")
    assert len(worst) == NUM_MODELS
    assert {name: row for name, row in worst.items() if max(row.values()) > 2e-5} == {}


def test_every_method_is_exported_exactly_or_refused_with_nothing_written(tmp_path):
    ours, refused = {}, {}
    for name in names():
        module = import_module(f"giraffe_jax.positions.methods.{name}")
        config = ModelConfig(*SHAPES[0], original_len=16, positions=(dict(name=name, **module.EXAMPLE),))
        try:
            ours[name] = export(tmp_path / name, config, 0)
        except ConfigError as e:
            refused[name] = str(e)
            assert "cannot be exported: Hugging Face's Llama supports" in str(e) and name in str(e)
            assert not (tmp_path / name).exists()
        classes = {True: ("native", "longrope", "weights only"), False: ("custom",)}
        assert module.ABOUT["export"] in classes[name in ours], (name, module.ABOUT["export"])
    assert not [p.name for p in tmp_path.iterdir() if p.name not in ours]
    worst = compare(tmp_path, ours, "5")
    assert {name: row for name, row in worst.items() if max(row.values()) > 2e-5} == {}
    assert len(ours) + len(refused) == len(names()) and len(ours) > 15 and len(refused) > 15
