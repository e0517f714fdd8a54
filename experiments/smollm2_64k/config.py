"""SmolLM2-135M from 8,192 to 65,536 tokens: without training, then trained at 32,768 and 65,536.

    python experiments/smollm2_64k/prepare.py DATA
    giraffe run experiments/smollm2_64k/config.py:DATA,zero --workdir=runs/smollm2_zero
    giraffe run experiments/smollm2_64k/config.py:DATA,train,32768 --workdir=runs/smollm2_32k
    giraffe run experiments/smollm2_64k/config.py:DATA,train,65536 --workdir=runs/smollm2_64k  # the two of BEST
    giraffe run experiments/smollm2_64k/config.py:DATA,try --workdir=runs/smollm2_try  # the pipeline, on a CPU

Every command resumes, so a device that is there for minutes serves too: `timeout -s INT 600 giraffe run ...` ends a
training's step, saves it, and the same command continues. README.md says what is asked.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from giraffe_jax.config import ConfigError

TRAINED_LEN = 8192
LENGTHS = (8192, 16384, 32768, 65536)
STEP_TOKENS = 131072  # of each optimizer step, at any length of rows
STEPS = 200
BEST = ("yarn", "linear")  # trained at 65,536 too; to be set by the rows at 32,768
RULER = ("niah_single_1", "niah_multikey_2", "vt", "cwe", "fwe")
IN_TEXT = ("niah_single_2", "niah_multikey_1")


def method(name: str, **numbers: Any) -> list[dict[str, Any]]:
    return [dict(name=name, **numbers)]


def zero_shot(factor: float) -> dict[str, list[dict[str, Any]]]:
    """Returns the positions of every method that needs no training, at the factor that the longest length asks for."""
    f, window = f"{factor:g}", TRAINED_LEN // 2
    found = {
        f"{name} {f}": method(name, factor=factor)
        for name in ("linear", "ntk", "ntk_by_parts", "part_ntk", "yarn", "yarn_paper", "yarn_wavelength", "llama3")
    }
    found |= {
        "plain": [],
        f"mrrope {f}": method("mrrope", factor=factor),
        f"mrrope uniform {f}": method("mrrope", factor=factor, kind="uniform"),
        f"ntk {2 * factor:g}": method("ntk", factor=2 * factor),
        f"ntk {2 * factor:g}, logn": [*method("ntk", factor=2 * factor), *method("logn")],
        f"ntk {2 * factor:g}, infoscale": [*method("ntk", factor=2 * factor), *method("infoscale")],
        "dynamic": method("dynamic", factor=1.0),
        "dynamic_linear": method("dynamic_linear"),
        "dynamic_yarn": method("dynamic_yarn"),
        "dca": method("dca"),
        "jet_long": method("jet_long"),
        "jet_long_freq": method("jet_long_freq"),
        "lampe": method("lampe", a=0.0, b=0.0),
        "self_extend": method("self_extend", window=window, group=int(2 * factor)),
        "rerope": method("rerope", window=window),
        "leaky_rerope": method("leaky_rerope", window=window, factor=2 * factor),
        "string": method("string", window=TRAINED_LEN // 16),
        "streaming": method("streaming"),
        "lm_infinite": method("lm_infinite"),
        "sliding_window": method("sliding_window", window=float(TRAINED_LEN)),
        "chunked": method("chunked", chunk_size=float(TRAINED_LEN)),
    }
    return found


def to_train(factor: float) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Returns (positions, further keys of the training) of what is trained."""
    return {
        "abf": (method("abf", theta=1e5 * factor**2), {}),  # SmolLM2's theta is 1e5
        "linear": (method("linear", factor=factor), {}),
        "ntk": (method("ntk", factor=2 * factor), {}),
        "yarn": (method("yarn", factor=factor), {}),
        "yarn, LoRA": (method("yarn", factor=factor), dict(lora=dict(rank=16, alpha=32.0))),
        "mrrope": (method("mrrope", factor=factor), {}),
        "power": (method("power", exponent=0.5), {}),
        "truncate": (method("truncate", cutoff_len=float(TRAINED_LEN)), {}),
        "dca": (method("dca"), {}),
        "yarn, read further": (method("yarn", factor=factor), dict(eval_positions=method("yarn", factor=2 * factor))),
        "linear, read further": (
            method("linear", factor=factor),
            dict(eval_positions=method("linear", factor=2 * factor)),
        ),
    }


def training(data: str, length: int, retrieval: bool, steps: int = STEPS, rows: int = 0) -> dict[str, Any]:
    """Returns the budget, the same for all: prose, code and, with `retrieval`, questions about long records."""
    sources: list[dict[str, Any]] = [
        dict(kind="jsonl", path=f"{data}/train/prose.jsonl", weight=0.4),
        # Long documents come four times as often, as ProLong has it (arXiv:2410.02660).
        dict(kind="jsonl", path=f"{data}/train/code.jsonl", weight=0.4, long_tokens=length, long_times=4),
    ]
    if retrieval:
        questions = dict(kinds=("lines", "records", "passkey"), lengths=(length // 4, length))
        sources.append(dict(kind="synthetic", weight=0.2, synthetic=questions))
    batch = rows or max(1, STEP_TOKENS // length)
    return dict(
        steps=steps,
        save_every=25,
        keep=1,
        data=dict(seq_len=length, batch_size=batch, sources=sources),
        optim=dict(lr=1e-4, schedule="cosine", warmup_steps=max(1, steps // 20), final_lr=1e-5),
    )


def tasks(data: str, lengths: tuple[int, ...], n: int) -> list[dict[str, Any]]:
    heldout = [f"{data}/heldout"]
    made: list[dict[str, Any]] = [
        dict(name="perplexity", lengths=lengths, documents=heldout, protocol="aligned", stride=1024, n=2 * n // 5),
        dict(name="lines", lengths=lengths, n=n),
    ]
    made += [dict(name="ruler", kind=kind, lengths=lengths, n=n) for kind in RULER]
    return made + [dict(name="ruler", kind=kind, lengths=lengths, n=n, documents=heldout) for kind in IN_TEXT]


def variants(data: str, length: int, names: tuple[str, ...] | None, retrieval: bool, **budget: Any) -> list[dict]:
    out = []
    for name, (positions, more) in to_train(length / TRAINED_LEN).items():
        if names is None or name in names:
            read = {key: value for key, value in more.items() if key == "eval_positions"}
            train = training(data, length, retrieval, **budget) | {k: v for k, v in more.items() if k not in read}
            out.append(dict(name=name, positions=positions, train=train, **read))
    return out


def get_config(options: str = "smollm2_data,zero") -> ConfigDict:
    data, part, length, text = [*options.split(","), "", "", ""][:4]
    c = ConfigDict(dict(name="smollm2_64k", source="smollm2", original_len=TRAINED_LEN))
    c.model = dict(attention="auto", remat="save_attention", dtype="bfloat16")
    c.question = "Which change of positions carries a real model furthest past its 8,192 tokens, and what does it cost?"
    if part == "zero" and not length:
        c.title = "SmolLM2-135M at 65,536 tokens, without training"
        factor = LENGTHS[-1] / TRAINED_LEN
        c.variants = [dict(name=name, positions=positions) for name, positions in zero_shot(factor).items()]
        c.tasks = tasks(data, LENGTHS, 100)
    elif part == "train" and length in ("32768", "65536") and text in ("", "text"):
        c.title = f"SmolLM2-135M trained at {int(length):,} tokens" + ", on text alone" * bool(text)
        names = None if length == "32768" else BEST
        c.variants = [dict(name="plain", positions=[]), *variants(data, int(length), names, retrieval=not text)]
        c.seeds = (0, 1, 2)
        c.tasks = tasks(data, LENGTHS, 100)
    elif part == "try" and not length:
        c.title = "SmolLM2-135M: the pipeline"
        c.model = dict(attention="auto", remat="save_attention")
        few = variants(data, 16384, ("yarn",), retrieval=True, steps=2, rows=1)
        c.variants = [dict(name="plain"), dict(name="yarn as it is", positions=method("yarn", factor=2.0)), *few]
        c.tasks = [dict(task, n=1) for task in tasks(data, (16384,), 5)[:3]]
    else:
        raise ConfigError(
            f"config.py:{options}: after the colon stands the folder that prepare.py made, then zero, `train,32768`, "
            "`train,65536`, these with `,text` for no retrieval documents, or try."
        )
    c.tokens_per_batch = max(length for task in c.tasks for length in task["lengths"])
    if not Path(data).is_dir():
        raise ConfigError(f"config.py:{options}: no folder {data}; `python experiments/smollm2_64k/prepare.py {data}`.")
    return c
