"""An experiment whose every input is a small file, as a researcher has it; loading, training and measuring are fakes.

`lay` writes the files, `config` names them, `fakes` returns what stands for the model. Nothing here imports what is
tested but positions and the model's config, so that versions of any age can be asked the same.
"""

import sys
import types
from pathlib import Path

MODULES = ("walk_ramp", "walk_slopes", "walk_other")
FILES = {
    "walk_ramp.py": """
from giraffe_jax.positions import Encoding
from walk_slopes import slope


def ramp(e: Encoding, *, factor: float = 4.0) -> Encoding:
    \"\"\"Planes slower by a power of the factor.\"\"\"
    return e.replace(inv_freq=e.inv_freq / factor ** slope(e))
""",
    "walk_slopes.py": """
def slope(e):
    return e.planes / e.planes[-1]
""",
    "walk_other.py": """
from giraffe_jax.positions import Encoding


def other(e: Encoding) -> Encoding:
    return e.replace(inv_freq=e.inv_freq / 3)
""",
    "books/a.txt": "One book.\n",
    "books/b.txt": "Another book.\n",
    "cases.jsonl": '{"prompt": "x", "expected_number": 1}\n',
    "corpus/train.txt": "Text that is trained on.\n",
    "weights/config.json": "{}",
    "weights/tokenizer.json": "{}",
    "weights/model.safetensors": "w" * 64,
}
RAMP, OTHER = [{"name": "walk_ramp.ramp", "factor": 4.0}], [{"name": "walk_other.other"}]
TRAIN = {"steps": 3, "data": {"sources": [{"kind": "text", "path": "corpus"}], "seq_len": 128, "batch_size": 1}}
VARIANTS = [
    {"name": "plain"},
    {"name": "ramp", "positions": RAMP},
    {"name": "other", "positions": OTHER},
    {"name": "trained", "positions": RAMP, "train": TRAIN},
    {"name": "trained plain", "train": TRAIN, "eval_positions": OTHER},
]
TASKS = [
    {"name": "perplexity", "lengths": [64, 128], "documents": ["books"], "n": 2},
    {"name": "lines", "lengths": [128], "files": ["cases.jsonl"], "n": 2},
    {"name": "passkey", "lengths": [128], "n": 2, "depths": [0.5], "style": "compact"},
]


def lay(folder: Path) -> None:
    """Writes the files; to be read from that folder as the current one."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def config(**changes):
    """Returns the experiment's config."""
    values = {"name": "walk", "source": "weights", "original_len": 128, "variants": VARIANTS, "tasks": TASKS}
    return values | changes


def forget() -> None:
    """Own methods are imported anew, as by a new process."""
    for name in MODULES:
        sys.modules.pop(name, None)


def fakes(lm):
    """Returns what loads, trains and measures: `measured` and `trained` say what was done.

    What is measured of a cell are the frequencies that it is read with.
    """
    from giraffe_jax import evals

    measured: list[tuple[str, str, int]] = []
    trained: list[str] = []

    def train(settings, workdir):
        trained.append(Path(workdir).name)
        return lm

    def evaluate(lm, tasks, encoding_for, *, tokens_per_batch, variant, skip):
        for task in tasks:
            for length in (n for n in task.lengths if not skip(evals.label(task), n)):
                head = {"variant": variant, "task": evals.label(task), "length": length}
                measured.append((variant, evals.label(task), length))
                slow = float(encoding_for(length).inv_freq[-1])
                for i in range(task.n):
                    metrics = {"nll": slow, "tokens": 4} if task.name == "perplexity" else {"teacher": 1}
                    yield head | {"example": i, "metrics": metrics, "slowest": slow, "document": str(i), "bins": []}

    return types.SimpleNamespace(
        load=lambda *_, **__: lm, train=train, evaluate=evaluate, measured=measured, trained=trained
    )
