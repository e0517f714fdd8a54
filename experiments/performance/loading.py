"""Memory of loading a model onto a mesh: the most that the host held, against what the loaded arrays take.

    python experiments/performance/loading.py --devices 8

Writes a Hugging Face directory of random weights in the shape of Llama-3.2-1B (bfloat16, 2.5 GB) into a temporary
folder, loads it in float32 onto that many virtual CPU devices in a process of its own, and prints one line of JSON:
GB of the result, of the largest parameter (all layers of it), and of anonymous memory at its peak beyond what the
process held before (`peak`; pages of the file are the kernel's to drop, and not counted).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax

from giraffe_jax import hf
from giraffe_jax.loading import load
from giraffe_jax.model import ModelConfig, init_params
from giraffe_jax.sharding import MeshConfig, make_mesh
from giraffe_jax.tokenizer import ByteTokenizer

SHAPE = ModelConfig(vocab_size=128_256, d_model=2048, d_mlp=8192, num_layers=16, num_heads=32, num_kv_heads=8,
                    head_dim=64, theta=500_000.0, tie_embeddings=True)  # fmt: skip


def anonymous() -> int:
    """Bytes of anonymous memory that this process holds now."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def measure(source: str, devices: int) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = make_mesh(MeshConfig(fsdp=devices))
    before, most, over = anonymous(), 0, threading.Event()

    def watch():
        nonlocal most
        while not over.wait(0.005):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    params = jax.block_until_ready(load(source, mesh=mesh).params)
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    sizes = [x.nbytes for x in jax.tree.leaves(params)]
    row = dict(devices=devices, seconds=round(seconds, 1), result=sum(sizes), largest=max(sizes), peak=most - before)
    print(json.dumps({k: round(v / 1e9, 3) if k in ("result", "largest", "peak") else v for k, v in row.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8, help="virtual devices that share the model (8)")
    parser.add_argument("--source", help="measure the loading of this one, in this process")
    args = parser.parse_args()
    if args.source:
        return measure(args.source, args.devices)
    with tempfile.TemporaryDirectory() as folder:
        hf.save(init_params(SHAPE, jax.random.key(0)), SHAPE, ByteTokenizer(), f"{folder}/model", dtype="bfloat16")
        command = [sys.executable, __file__, "--devices", str(args.devices), "--source", f"{folder}/model"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
