"""giraffe-mini: a Llama of 0.6 million parameters, trained on 256 tokens, that answers retrieval questions inside them.

    python experiments/mini/prepare.py mini_data
    giraffe train --config=experiments/mini/config.py:mini_data --workdir=mini

The argument is the folder that prepare.py wrote, and maybe a seed (`config.py:mini_data,1`). 3,900 steps of 4,096
tokens; started again, the command goes on where it was. First documents of 32 tokens alone, then longer ones, until
questions about 256 tokens are answered; then those together with text (Shakespeare, the King James Bible, Python's
standard library), while the learning rate falls. See README.md beside this file for the time it took and the numbers to
expect.
"""

from typing import Any

from ml_collections import ConfigDict

# Copying teaches a model to look back at all. Two ways to write records and questions, so that the words around them
# are not what is learned.
KINDS = ("lines", "lines", "records", "records", "copy", "copy", "copy", "copy", "passkey")
# Beside text: lines 3, copies 0.5, passkeys 0.7 (of 4.2).
LATER = ("lines",) * 15 + ("records",) * 15 + ("copy",) * 5 + ("passkey",) * 7
TEXT_STEPS = 2400


def architecture() -> ConfigDict:
    model = ConfigDict()
    model.vocab_size = 1280
    model.d_model = 128
    model.d_mlp = 384
    model.num_layers = 2
    model.num_heads = 4
    model.num_kv_heads = 4
    model.head_dim = 32
    model.original_len = 256
    model.tie_embeddings = True
    return model


def documents(kinds: tuple[str, ...], *lengths: int) -> dict[str, Any]:
    return dict(kind="synthetic", synthetic=dict(kinds=kinds, lengths=lengths))


def get_config(where: str = "mini_data") -> ConfigDict:
    data, _, seed = where.partition(",")
    c = ConfigDict()
    c.tokenizer = f"{data}/tokenizer.json"
    c.model = architecture()
    c.seed = int(seed or 0)
    c.steps = 1500 + TEXT_STEPS
    c.save_every = 300
    c.keep = 13
    c.optim = dict(lr=3e-3, warmup_steps=50, schedule="linear", decay_steps=TEXT_STEPS, final_lr=1e-4)

    c.data = ConfigDict()
    c.data.seq_len = 256
    c.data.batch_size = 16
    c.data.seed = int(seed or 0)
    c.data.cache_dir = f"{data}/cache"
    c.data.stages = [
        dict(until=600, sources=[documents(KINDS, 32)]),
        dict(until=900, sources=[documents(KINDS, 32, 64)]),
        dict(until=1200, sources=[documents(KINDS, 64, 128)]),
        dict(until=1500, sources=[documents(KINDS, 64, 128, 256)]),
        dict(sources=[documents(LATER, 128, 256, 256, 256), dict(kind="text", path=f"{data}/train")]),
    ]
    return c
