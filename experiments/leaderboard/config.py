"""The leaderboard: every method of the catalogue on the same weights, texts and questions.

    giraffe run experiments/leaderboard                                                    # on giraffe-mini
    giraffe run experiments/leaderboard/config.py:mini,runs/bases/base-4,leading --workdir=runs/leaderboard_4
    giraffe run experiments/leaderboard/config.py:smollm2,mini_data/heldout --workdir=runs/leaderboard_smollm2

giraffe-mini, trained on 256 tokens, is read at up to 2,048: as it is, and after 100 steps with the method, each of
four rows of 1,024 tokens, half of them retrieval documents or all of them text; the longest length is beyond these
too. `mini,BASE` is the same on another base (experiments/mini/bases.py). `mini,BASE,untrained` measures every method
without training, and `mini,BASE,leading` only the methods that led on the first base, plain RoPE and the Giraffe
paper's; both may be run in one workdir.

SmolLM2-135M (8,192 tokens) repeats a passage of 512 tokens after 8,192 and 12,288 tokens with every method that needs
no training (its loss by position is experiments/smollm2_16k's); the second part of the argument are long texts. Each
method is taken at the factor that the longest length asks for, and once where it is known to need twice that (ntk).
Start the same command in two terminals to share the work; --dry-run says how long it will take.
"""

import importlib
import sysconfig
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from giraffe_jax.config import ConfigError

STDLIB = Path(sysconfig.get_path("stdlib"))
HELDOUT = ("argparse.py", "heapq.py", "json/decoder.py", "subprocess.py", "unittest/case.py", "html/parser.py")
MINI = "giraffe-mini"
# What leads on giraffe-mini, of seed 1, in turn as it is and after training: further bases need not measure all.
# `table.py runs/saved --leading=20`, runs/saved being results.jsonl.xz as README.md unpacks it.
LEADING = (
    "dynamic_yarn", "rerope", "yarn 8, llama4_temperature", "dca", "yarn 8, ministral_temperature", "lampe",
    "yarn 8, scale", "yarn 8", "mixed, yarn 8", "yarn 8, ssmax", "yarn 8, nope_layers", "mrrope 8", "leaky_rerope",
    "self_extend", "yarn 8, resonance", "ntk 16, logn", "mrrope uniform 8", "part_ntk 8", "llama3 8", "ntk 16",
)  # fmt: skip
SAME_IN_PAPER = ("plain", "power", "truncate", "xpos")  # trained_with of experiments/giraffe has these too
SUBSETS = ALL, LED, UNTRAINED = ("all", "leading", "untrained")


def method(name: str, **numbers: Any) -> dict[str, Any]:
    return dict(name=name, **numbers)


def methods(trained_len: int, factor: float, planes: int, layers: int) -> dict[str, list[dict[str, Any]]]:
    """Returns the positions of every variant by its name, each method of the catalogue in one of them at least."""
    yarn, far_ntk = method("yarn", factor=factor), method("ntk", factor=2 * factor)
    window, f = trained_len // 2, f"{factor:g}"
    plain_divisors = [1.0] * planes
    return {
        "plain": [],
        f"linear {f}": [method("linear", factor=factor)],
        f"ntk {f}": [method("ntk", factor=factor)],
        f"ntk {2 * factor:g}": [far_ntk],
        f"ntk_by_parts {f}": [method("ntk_by_parts", factor=factor)],
        f"part_ntk {f}": [method("part_ntk", factor=factor)],
        f"yarn {f}": [yarn],
        f"yarn_paper {f}": [method("yarn_paper", factor=factor)],
        f"yarn_wavelength {f}": [method("yarn_wavelength", factor=factor)],
        f"llama3 {f}": [method("llama3", factor=factor)],
        f"mrrope {f}": [method("mrrope", factor=factor)],
        f"mrrope uniform {f}": [method("mrrope", factor=factor, kind="uniform")],
        f"yarn {f}, resonance": [yarn, method("resonance")],
        f"ntk {2 * factor:g}, clip": [far_ntk, method("clip", planes=planes * 5 // 16)],
        "abf": [method("abf", theta=1e6)],
        "nope": [method("nope")],
        "p_rope": [method("p_rope", p=0.75)],
        "partial": [method("partial", fraction=0.5)],
        f"proportional {f}": [method("proportional", fraction=0.5, factor=factor)],
        "power": [method("power", exponent=0.5)],
        "truncate": [method("truncate", cutoff_len=float(trained_len))],
        "dynamic": [method("dynamic", factor=1.0)],
        "dynamic_linear": [method("dynamic_linear")],
        "dynamic_yarn": [method("dynamic_yarn")],
        f"longrope {f}": [
            # Unsearched: the paper's lists are each model's own. `giraffe search` makes one.
            method("longrope", short_factor=plain_divisors, long_factor=[float(factor)] * planes, factor=factor)
        ],
        f"mixed, yarn {f}": [method("mixed", choices=[[], [yarn]])],
        "dca": [method("dca")],
        # Unmeasured: the paper's factors are each model's own.
        "dpe": [method("dpe", factors=[1.0, *[2.0 * factor] * 3], window=window)],
        "jet_long": [method("jet_long")],
        "jet_long_freq": [method("jet_long_freq")],
        "lampe": [method("lampe", a=0.0, b=0.0)],
        "leaky_rerope": [method("leaky_rerope", window=window, factor=2 * factor)],
        "lm_infinite": [method("lm_infinite")],
        "rerope": [method("rerope", window=window)],
        "self_extend": [method("self_extend", window=window, group=int(2 * factor))],
        "streaming": [method("streaming")],
        "string": [method("string", window=trained_len // 16)],
        f"ntk {2 * factor:g}, logn": [far_ntk, method("logn")],
        f"ntk {2 * factor:g}, infoscale": [far_ntk, method("infoscale")],
        f"yarn {f}, scale": [yarn, method("scale", value=1.1)],
        f"yarn {f}, llama4_temperature": [yarn, method("llama4_temperature", floor_scale=float(trained_len))],
        f"yarn {f}, ministral_temperature": [yarn, method("ministral_temperature")],
        f"yarn {f}, ssmax": [yarn, method("ssmax")],
        "xpos": [method("xpos", scale_base=4.0 * trained_len)],
        "chunked": [method("chunked", chunk_size=float(trained_len))],
        "sliding_window": [method("sliding_window", window=float(trained_len))],
        f"yarn {f}, nope_layers": [yarn, method("nope_layers", every=min(layers, 4))],
        "alibi": [method("nope"), method("alibi")],
        "fire": [method("nope"), method("fire", threshold=float(trained_len))],
        "kerple": [method("nope"), method("kerple")],
        "t5": [method("nope"), method("t5")],
        # Only training differs: other positions, or other keys, in shorter or cheaper rows.
        f"yarn_wavelength {f}, pose": [
            method("yarn_wavelength", factor=factor),
            method("pose", target_len=int(factor * trained_len)),
        ],
        f"linear {f}, cream": [method("linear", factor=factor), method("cream", factor=int(factor))],
        f"yarn {f}, randomize": [yarn, method("randomize")],
        f"yarn {f}, s2": [yarn, method("s2", group=trained_len)],
    }


ONLY_IN_TRAINING = {"pose", "cream", "randomize", "s2"}
LEARNED = {"ssmax", "fire", "kerple", "t5"}  # parameters of their own, which untrained weights lack


def papers(trained_len: int) -> dict[str, list[dict[str, Any]]]:
    """Returns what experiments/giraffe trains with, the paper's methods and combinations, that `methods` has not."""
    four, randomize = method("linear", factor=4.0), method("randomize")
    return {
        "linear 4": [four],
        "linear 16": [method("linear", factor=16.0)],
        "linear 4, randomize": [four, randomize],
        "linear 4, truncate": [four, method("truncate", cutoff_len=float(trained_len))],
        "power, randomize": [method("power", exponent=0.5), randomize],
    }


def needs_no_training(name: str) -> bool:
    return importlib.import_module(f"giraffe_jax.positions.methods.{name}").ABOUT["training_free"]


def training(length: int, questions: bool = True) -> ConfigDict:
    """Returns the same small budget for every method: half of the rows ask questions, half are text; or all text."""
    c = ConfigDict()
    c.steps = c.save_every = 100
    c.keep = 1
    kinds = ("lines", "lines", "records", "copy", "passkey")
    text = dict(kind="text", path=str(STDLIB / "email" / "*.py"))
    asking = dict(kind="synthetic", synthetic=dict(kinds=kinds, lengths=(length // 2, length)))
    c.data = dict(seq_len=length, batch_size=4096 // length, sources=[asking, text] if questions else [text])
    c.optim = dict(lr=1e-3, schedule="linear", warmup_steps=10, final_lr=1e-5)
    return c


def mini(source: str = MINI, subset: str = ALL) -> ConfigDict:
    trained_len, factor = 256, 8
    lengths = [trained_len, 2 * trained_len, 4 * trained_len, 8 * trained_len]
    c = ConfigDict(dict(source=source, original_len=trained_len, tokens_per_batch=8192))
    c.title = "The leaderboard, on giraffe-mini" + f", base {Path(source).name}" * (source != MINI)
    c.variants = []
    of_paper = papers(trained_len)
    for name, positions in (methods(trained_len, float(factor), planes=16, layers=2) | of_paper).items():
        if subset == LED and name not in (*LEADING, *SAME_IN_PAPER, *of_paper):
            continue
        used = {p["name"] for p in positions}
        if not used & (ONLY_IN_TRAINING | LEARNED):
            c.variants.append(dict(name=name, positions=positions))
        if subset == UNTRAINED:
            continue
        length = trained_len * (2 if used & {"pose", "cream"} else factor // 2)
        for kind, questions in (("training", True), ("training on text", False)):
            train = training(length, questions)
            c.variants.append(dict(name=f"{name} + {kind}", positions=positions, train=train))
    documents = [str(STDLIB / name) for name in HELDOUT]
    c.tasks = [
        dict(name="lines", lengths=lengths, n=100, style="compact"),
        dict(name="perplexity", lengths=lengths, documents=documents, protocol="aligned", stride=32, n=48),
    ]
    return c


def smollm2(documents: str) -> ConfigDict:
    trained_len, lengths = 8192, [8192, 12288]
    c = ConfigDict(dict(source="smollm2", original_len=trained_len, tokens_per_batch=max(lengths)))
    c.title = "The leaderboard, on SmolLM2-135M"
    c.model = dict(attention="blockwise")
    c.variants = [
        dict(name=name, positions=positions)
        for name, positions in methods(trained_len, 2.0, planes=32, layers=30).items()
        if all(needs_no_training(p["name"]) for p in positions)
    ]
    c.tasks = [dict(name="copying", kind="text", passage=512, documents=[documents], lengths=lengths, n=1)]
    return c


def get_config(options: str = "mini") -> ConfigDict:
    model, *rest = options.split(",")
    first, subset = [*rest, "", ""][:2]
    if model == "smollm2" and len(rest) < 2:
        c = smollm2(first or "mini_data/heldout")
    elif model == "mini" and len(rest) < 3 and subset in ("", *SUBSETS):
        c = mini(first or MINI, subset or ALL)
    else:
        raise ConfigError(
            f"config.py:{options}: after the colon stands mini, `mini,BASE` with a base's workdir, `mini,BASE,{LED}` "
            f"for the methods that led, `mini,BASE,{UNTRAINED}` for all methods without training (or {ALL}), or "
            "`smollm2,TEXTS`."
        )
    c.name = "leaderboard"
    c.question = "Which of all the methods carries a model furthest, as it is and after the same small training?"
    return c
