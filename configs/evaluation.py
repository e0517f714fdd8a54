"""Evaluate one model: passkey and line retrieval in this project's short style; perplexity if documents are given.

    giraffe evaluate --config=configs/evaluation.py:giraffe-mini --workdir=runs/measured
    giraffe evaluate --config=configs/evaluation.py:runs/llama2,books/ --workdir=runs/llama2-measured

The argument is the model (a workdir of `giraffe train`, a Hugging Face directory, a .gguf file, a packaged name), then,
after a comma, a text file or a folder of them. Lengths are powers of two from 256 to 2,048 tokens. For a model of
billions of parameters leave out `style`: the prompts are then those of the papers.
"""

from ml_collections import ConfigDict

LENGTHS = [256, 512, 1024, 2048]


def get_config(options: str = "giraffe-mini") -> ConfigDict:
    source, _, documents = options.partition(",")
    c = ConfigDict()
    c.source = source
    c.tasks = [
        dict(name="passkey", lengths=LENGTHS, n=8, style="compact"),
        dict(name="lines", lengths=LENGTHS, n=40, style="compact"),
    ]
    if documents:
        c.tasks += [dict(name="perplexity", lengths=LENGTHS, documents=[documents])]
    return c
