"""giraffe-mini's start: the circuit put in by hand looks things up before any training, because of its parts alone."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from giraffe_jax.config import build
from giraffe_jax.decode import LM, score
from giraffe_jax.model import ModelConfig

SCRIPT = Path(__file__).parents[2] / "experiments/mini/start.py"


@pytest.fixture(scope="module")
def start():
    spec = importlib.util.spec_from_file_location("mini_start", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answered(config, params, records, n=64):
    """How many of n questions about one of `records` key-value pairs are answered, the value one of 90 tokens."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(n):
        keys, values = 10 + rng.permutation(200)[:records], 300 + rng.integers(0, 90, records)
        asked = rng.integers(records)
        record = [token for key, value in zip(keys, values, strict=True) for token in (5, key, value, 6)]
        rows.append([*record, 7, keys[asked], values[asked]])
    return float(np.asarray(score(LM(config, params, None), np.array(rows))[1])[:, -1].mean())


def test_untrained_it_looks_things_up(start):
    config = build(ModelConfig, start.architecture())
    params = start.start(config)
    assert answered(config, params, 12) > 0.9
    # Without what the first layer tells each token of the one before, nothing can be found.
    params["layers"]["attention"]["o"]["kernel"] = params["layers"]["attention"]["o"]["kernel"].at[0].set(0)
    assert answered(config, params, 12) < 0.2
