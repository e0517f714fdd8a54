"""Seconds until a run has its data, the first time and again, with one process and with several at once.

    python experiments/performance/start.py

Writes text of made-up words into a temporary folder, and starts processes there that do what `giraffe train` does
before its first batch (`make_pipeline`: hash the files, tokenise them or find their tokens), with a token cache that is
empty the first time. One line of JSON for each start: the seconds of each process, imports not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from giraffe_jax.config import build
from giraffe_jax.data.config import DataConfig
from giraffe_jax.data.pipeline import make_pipeline
from giraffe_jax.hf.load import locate
from giraffe_jax.tokenizer import load_tokenizer


def write(folder: Path, megabytes: float, files: int) -> None:
    """Files of words of two to nine letters, drawn like words of a language: the r-th as often as 1 / r."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(draw.choice(letters, draw.integers(2, 10))) for _ in range(20_000)])
    often = 1 / np.arange(1, len(words) + 1)
    for i in range(files):
        size, text = int(1e6 * megabytes / files), []
        while size > 0:
            line = " ".join(draw.choice(words, 200, p=often / often.sum())) + ".\n"
            text.append(line)
            size -= len(line)
        (folder / f"{i:04}.txt").write_text("".join(text))


def measure(folder: str, cache: str) -> None:
    tokenizer = load_tokenizer(locate("giraffe-mini"))
    source = dict(kind="text", path=folder)
    config = build(DataConfig, dict(sources=[source], seq_len=1024, batch_size=8, cache_dir=cache))
    began = time.perf_counter()
    make_pipeline(config, tokenizer)
    print(time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100, help="of text (100)")
    parser.add_argument("--files", type=int, default=300, help="that hold it (300)")
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2), help="started at once (1 2)")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "CACHE"), help="one start, in this process")
    args = parser.parse_args()
    if args.measure:
        return measure(*args.measure)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "text"
        folder.mkdir()
        write(folder, args.megabytes, args.files)
        time.sleep(3)  # files as young as the clock of a file system is coarse are hashed again
        for count in args.processes:
            command = [sys.executable, __file__, "--measure", str(folder), f"{place}/cache of {count}"]
            for which in ("first", "second"):
                env = os.environ | {"JAX_PLATFORMS": "cpu"}
                started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(count)]
                seconds = [round(float(process.communicate()[0]), 2) for process in started]
                row = dict(megabytes=args.megabytes, files=args.files, processes=count, start=which, seconds=seconds)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
