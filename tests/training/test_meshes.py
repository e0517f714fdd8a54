"""A run that goes on with other devices than it began with: the same batches, and the same losses."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from giraffe_jax.training.loop import losses
from tests.training.test_train import MODEL, settings

pytestmark = pytest.mark.slow  # six runs, each a process with devices of its own

CHILD = """
import hashlib, json, sys
import numpy as np
import giraffe_jax.training.loop

config, workdir, found = sys.argv[1:]
to_global, sums = giraffe_jax.training.loop.to_global, []

def hashed(batch, mesh):
    whole, digest = to_global(batch, mesh), hashlib.sha256()
    for name, array in sorted(whole.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.asarray(array).tobytes())
    sums.append(digest.hexdigest())
    return whole

giraffe_jax.training.loop.to_global = hashed
giraffe_jax.training.loop.train(json.loads(config), workdir, quiet=True)
with open(found, "w") as file:
    json.dump(sums, file)
"""


def run(config, workdir, devices, mesh):
    """Returns the hash of each global batch that a process with so many devices trains on."""
    found = workdir.with_name(f"{workdir.name}.json")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-c", CHILD, json.dumps(config | dict(mesh=mesh)), str(workdir), str(found)]
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(found.read_text())


@pytest.fixture(scope="module")
def began(tmp_path_factory, tokenizer):
    """(config, hashes, losses of 40 steps with 8 devices, the workdir of the same run that ended after 20)."""
    folder, eight = tmp_path_factory.mktemp("meshes"), dict(data=8, fsdp=1)
    # A large eps makes Adam's step as smooth in the gradient as the gradient is in the order of its sums.
    optim = dict(lr=1.0, warmup_steps=0, eps=1.0, schedule="constant")
    config = settings(tokenizer, model=MODEL | dict(num_kv_heads=2), optim=optim, steps=40, save_every=20)
    sums = run(config, folder / "whole", 8, eight)
    assert sums[:20] == run(config | dict(steps=20), folder / "half", 8, eight)
    return config, sums, dict(losses(folder / "whole")), folder / "half"


@pytest.mark.parametrize(
    ("devices", "mesh"),
    [(4, dict(fsdp=4)), (4, dict(fsdp=2, tensor=2)), (4, dict(fsdp=2, context=2)), (1, dict(fsdp=1))],
    ids=["fsdp=4", "fsdp=2,tensor=2", "fsdp=2,context=2", "one device"],
)
def test_a_run_goes_on_alike_on_another_mesh(began, devices, mesh, tmp_path):
    config, sums, want, half = began
    shutil.copytree(half, tmp_path / "run")
    assert run(config, tmp_path / "run", devices, mesh) == sums[20:]
    assert len(set(sums)) == 40
    got = dict(losses(tmp_path / "run"))
    assert list(got) == list(want) == list(range(1, 41))
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
    assert np.mean([want[step] for step in range(36, 41)]) < 0.95 * want[1]
