"""Check on this machine that the numbers can be trusted.

  giraffe check resume       kill -9 a run at random moments, also while it saves: every loss is identical, bit for bit
  giraffe check sharding     loss and gradients on one device and on meshes of eight devices are equal
  giraffe check methods      every position method: decoding equals prefill, blockwise attention equals dense
  giraffe check kernels      which attention kernel each method gets on this machine, and that it equals dense attention
  giraffe check hf DIR       a Hugging Face directory gives the same logits here and in transformers
  giraffe check gguf FILE    a GGUF file gives the same token ids and perplexity here and in llama.cpp
  giraffe check frequencies  our frequencies equal transformers', over a grid of models, lengths and factors

The first two use a small Llama with random weights unless you name another: --config for resume, --source for sharding.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from giraffe_jax.cli import check_frequencies, check_gguf, check_hf, check_kernels, check_methods, configs

# A run of a few seconds whose saves take a good part of the time, so that kills hit them too.
RESUME_CONFIG = """
from ml_collections import ConfigDict

def get_config():
    shape = dict(vocab_size=258, d_model=64, d_mlp=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)
    positions = [dict(name="linear", factor=2.0), dict(name="randomize", kind="steps")]
    sources = [dict(kind="text", path={text!r})]
    return ConfigDict(dict(
        steps={steps}, save_every=5, keep=2, tokenizer={tokenizer!r}, model=shape | dict(positions=positions),
        optim=dict(lr=1e-3, warmup_steps=10), data=dict(sources=sources, seq_len=256, batch_size=4)))
"""

MESHES: tuple[dict[str, int], ...] = (
    dict(data=1, fsdp=1),
    dict(data=8, fsdp=1),
    dict(data=1, fsdp=8),
    dict(data=1, fsdp=4, tensor=2),
)
TOLERANCE = 1e-5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands of `giraffe check` and their flags."""
    checks = parser.add_subparsers(title="what to prove", metavar="WHAT", dest="what", required=True)
    resume_parser = checks.add_parser("resume", help="resuming after kill -9", description=resume.__doc__)
    resume_parser.add_argument("--config", metavar="FILE[:ARG]", help="config of a short run (default: a tiny one)")
    resume_parser.add_argument("--kills", type=configs.number(int, 0), default=20, help="number of kills (20)")
    resume_parser.add_argument("--steps", type=configs.number(int, 1), default=200, help="steps of the tiny run (200)")
    resume_parser.add_argument("--seed", type=configs.number(int, 0), default=0, help="seed of the random kill times")
    sharding_parser = checks.add_parser("sharding", help="meshes of eight devices", description=sharding.__doc__)
    sharding_parser.add_argument(
        "--source", type=configs.source, help="weights to use (default: a small Llama with random weights)"
    )
    sharding_parser.add_argument(
        "--tokens", type=configs.number(int, 1, high=2**24), default=128, help="tokens per row; eight rows (128)"
    )
    methods = checks.add_parser("methods", help="decoding and blockwise attention", description=check_methods.__doc__)
    methods.add_argument("names", nargs="*", metavar="NAME", help="methods of the catalogue (default: all)")
    kernels = checks.add_parser("kernels", help="attention kernels", description=check_kernels.__doc__)
    kernels.add_argument("names", nargs="*", metavar="NAME", help="methods of the catalogue (default: all)")
    kernels.add_argument("--dtype", choices=tuple(check_kernels.ALLOWED), default="bfloat16")
    kernels.add_argument("--tokens", type=configs.number(int, 2, high=2**13), default=700, help="tokens per row (700)")
    check_hf.arguments(checks.add_parser("hf", help="logits against transformers", description=check_hf.__doc__))
    check_gguf.arguments(checks.add_parser("gguf", help="perplexity against llama.cpp", description=check_gguf.__doc__))
    checks.add_parser("frequencies", help="frequencies against transformers", description=check_frequencies.__doc__)


def run(args: argparse.Namespace) -> int:
    """Runs the chosen check and returns its exit status: 0 if it passed, else 1."""
    proofs = dict(resume=resume, sharding=sharding, methods=check_methods.run, hf=check_hf.run)
    proofs |= dict(gguf=check_gguf.run, frequencies=check_frequencies.run, kernels=check_kernels.run)
    return proofs[args.what](args)


def resume(args: argparse.Namespace) -> int:
    """Train once undisturbed and once with kills at random moments, each followed by a resume; compare all losses."""
    if args.config is not None:
        configs.read(args)  # reports mistakes in the config before anything is started
    with tempfile.TemporaryDirectory(prefix="giraffe-resume-") as folder:
        config = args.config or _tiny_run(Path(folder), args.steps)
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        _train(config, whole, args.overrides).wait()
        expected = _losses(whole)
        if not expected:
            raise RuntimeError(f"the undisturbed run of {config} recorded no loss; run it with `giraffe train`.")
        print(f"undisturbed: {len(expected)} steps, last loss {list(expected.values())[-1]!r}", flush=True)
        seconds = (len(expected) - 1) * _seconds_per_step(whole)
        rng, kills, starts = random.Random(args.seed), 0, 0
        while True:
            process, starts = _train(config, killed, args.overrides), starts + 1
            if kills < args.kills and _kill_at_random(process, killed, rng, seconds / args.kills):
                kills += 1
                print(f"killed {kills} of {args.kills}, after step {max(_losses(killed), default=0)}", flush=True)
            elif process.wait() != 0:
                raise RuntimeError(
                    f"start {starts} ended with status {process.returncode}, having been killed {kills} times"
                )
            else:
                break
        losses = _losses(killed)
    wrong = [step for step in expected if losses.get(step) != expected[step]]
    print(f"{kills} kills, {starts} starts, {len(expected)} steps: {len(wrong)} losses differ")
    for step in wrong[:1]:
        print(f"the first is that of step {step}: {expected[step]!r} undisturbed, {losses.get(step)!r} killed")
    if kills < args.kills:
        print(f"the run finished after {kills} of {args.kills} kills; raise --steps to fit more", file=sys.stderr)
    return 1 if wrong or kills < args.kills else 0


def _tiny_run(folder: Path, steps: int) -> str:
    from giraffe_jax.tokenizer import ByteTokenizer

    for name, content in ByteTokenizer().files().items():
        (folder / name).write_bytes(content)
    words, rng = ["tall", "spotted", "calm", "giraffe", "leaf", "acacia", "walks", "eats", "sees"], random.Random(0)
    (folder / "text.txt").write_text(" ".join(rng.choice(words) for _ in range(20_000)))
    files = dict(tokenizer=str(folder / "tokenizer.json"), text=str(folder / "text.txt"))
    (folder / "run.py").write_text(RESUME_CONFIG.format(steps=steps, **files))
    return str(folder / "run.py")


def _train(config: str, workdir: Path, overrides: list[str]) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "giraffe_jax.cli",
        "train",
        f"--config={config}",
        f"--workdir={workdir}",
        "--quiet",
    ]
    return subprocess.Popen([*command, *overrides])


def _kill_at_random(process: subprocess.Popen, workdir: Path, rng: random.Random, stretch: float) -> bool:
    """Kills a run at a random moment; returns False if the run finished first.

    One kill in five comes during start-up. The others come within 2 * `stretch` seconds of the first new step, so that
    on average each start advances by `stretch` seconds of training.
    """
    before = _size(workdir)
    began, limit = time.monotonic(), rng.uniform(0, 10) if rng.random() < 0.2 else float("inf")
    while _size(workdir) <= before and process.poll() is None and time.monotonic() - began < limit:
        time.sleep(0.005)
    if limit == float("inf"):
        time.sleep(rng.uniform(0, 2 * stretch))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def _size(workdir: Path) -> int:
    file = workdir / "metrics.jsonl"
    return file.stat().st_size if file.is_file() else 0


def _rows(workdir: Path) -> list[dict[str, Any]]:
    from giraffe_jax.records import read_rows

    file = workdir / "metrics.jsonl"
    return [row for row in read_rows(file, warnings.warn) if "loss" in row] if file.is_file() else []


def _losses(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in _rows(workdir)}


def _seconds_per_step(workdir: Path) -> float:
    rows = _rows(workdir)[1:]  # the first step compiles
    return sum(row["tokens"] / row["tokens_per_second"] for row in rows) / max(len(rows), 1)


def sharding(args: argparse.Namespace) -> int:
    """Compute loss and gradients of one batch on one device and on meshes of eight devices, and compare them."""
    import jax

    if os.environ.get("JAX_PLATFORMS", "") == "cpu" or not _has_accelerator():
        try:
            jax.config.update("jax_num_cpu_devices", 8)
        except RuntimeError:  # JAX has been initialised already
            pass
    devices = jax.devices()
    if len(devices) < 8:
        from giraffe_jax.config import ConfigError

        raise ConfigError(f"check sharding needs 8 devices, this machine has {len(devices)} ({devices[0].platform}).")
    results = [(name, *_loss_and_gradient(args, mesh)) for name, mesh in _meshes(devices)]
    _, loss, gradient = results[0]
    scale = max(abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    worst = 0.0
    for name, other_loss, other in results:
        difference = (
            max(abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (gradient, other)), strict=True)) / scale
        )
        worst = max(worst, difference, abs(other_loss - loss) / abs(loss))
        print(f"{name:<22} loss {other_loss:.7f}   gradient differs by at most {difference:.1e} of its largest value")
    print(f"largest relative difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    return 0 if worst <= TOLERANCE else 1


def _has_accelerator() -> bool:
    """Returns whether JAX would find an accelerator, without initialising JAX: that would fix the number of devices."""
    import importlib.util

    return any(importlib.util.find_spec(name) for name in ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin"))


def _meshes(devices: Any):
    from giraffe_jax.sharding import MeshConfig, make_mesh

    for sizes in MESHES:
        used = devices[:1] if set(sizes.values()) == {1} else devices[:8]
        name = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"
        yield name, make_mesh(MeshConfig(**sizes), used)


def _loss_and_gradient(args: argparse.Namespace, mesh: Any) -> tuple[float, Any]:
    """Returns the mean loss (nats per token) of a fixed batch and its gradient as numpy arrays, computed on `mesh`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from giraffe_jax.loading import load
    from giraffe_jax.model import Llama, ModelConfig, init_params, unembedding
    from giraffe_jax.model.config import PARAM_AXES
    from giraffe_jax.ops.loss import token_nll
    from giraffe_jax.sharding import batch_sharding, shardings

    if args.source:
        loaded = load(args.source)
        model, params = loaded.config, loaded.params
    else:
        model = ModelConfig(
            vocab_size=512, d_model=64, d_mlp=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16
        )
        params = init_params(model, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (8, args.tokens + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(args.tokens, dtype=np.float32), (8, args.tokens))

    def mean_loss(params, inputs, targets, encoding):
        hidden, _ = Llama(model).apply({"params": params}, inputs, encoding, jnp.ones_like(inputs))
        return token_nll(hidden, unembedding(params), targets)[0].mean()

    with jax.set_mesh(mesh), model.at_precision():
        params = jax.device_put(params, shardings(params, PARAM_AXES, mesh))
        inputs, targets, where = (
            jax.device_put(x, batch_sharding(mesh)) for x in (tokens[:, :-1], tokens[:, 1:], positions)
        )
        loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(params, inputs, targets, model.bind().at(where))
        return float(loss), jax.tree.map(np.asarray, gradient)
