"""FreeFormQA and AlteredNumericQA from any questions, in the published files' format: a JSON line for every case.

    python experiments/evaluation/build_qa.py questions.jsonl --tokenizer=path/to/Llama-2-7b-hf --lengths 2048 4096

`questions.jsonl` has an object a line, {"document": ..., "question": ..., "answer": ...}, the answer a span of the
document. A file for each task and length, six cases of every question whose document fills the longest; what
`dict(name="giraffe_qa", kind=..., files=[...])` asks as they are, and other harnesses read too.
"""

import argparse
import json
from pathlib import Path

from giraffe_jax import evals, records
from giraffe_jax.config import ConfigError
from giraffe_jax.evals.tasks import giraffe_qa
from giraffe_jax.tokenizer import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", help="JSON lines of document, question and answer")
    parser.add_argument("--tokenizer", required=True, help="directory with tokenizer.json or tokenizer.model")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--n", type=int, default=600, help="cases of a length at most, as published")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="giraffe_qa", help="directory for the files")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer)
    for kind in ("free_form", "altered_numeric"):
        keys = dict(name="giraffe_qa", kind=kind, questions=[args.questions], n=args.n, seed=args.seed, cue=False)
        task = evals.build(keys | dict(lengths=args.lengths))
        for length in args.lengths:
            try:
                examples = giraffe_qa.examples(task, tokenizer, length)
            except ConfigError as error:
                parser.exit(2, f"{error}\n")
            path = Path(args.out) / f"{kind}_{length}.jsonl"
            lines = [json.dumps(giraffe_qa.published(e, tokenizer), ensure_ascii=False) + "\n" for e in examples]
            records.write_atomically(path, "".join(lines))
            print(f"{path}: {len(lines)} cases of {len(lines) // 6} questions")


if __name__ == "__main__":
    main()
