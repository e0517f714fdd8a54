"""giraffe-mini: a Llama of 1.3 million parameters, trained on 256 tokens, that answers retrieval questions inside them.

    python experiments/mini/prepare.py mini_data
    giraffe train --config=experiments/mini/config.py:mini_data --workdir=mini_1
    giraffe train --config=experiments/mini/config.py:mini_data,mini_1 --workdir=mini_2

The argument is the folder that prepare.py wrote and, for the second stage, the workdir of the first. A quarter of the
rows is text (Shakespeare, the King James Bible, Python's standard library), the rest synthetic. The first stage learns
to copy; the second starts again from two records to a document and learns to look them up, longer and longer. See
README.md beside this file for the time it took and the numbers to expect.
"""

from ml_collections import ConfigDict

from giraffe_jax.data.synthetic import KINDS


def architecture() -> ConfigDict:
    model = ConfigDict()
    model.vocab_size = 2304
    model.d_model = 128
    model.d_mlp = 512
    model.num_layers = 4
    model.num_heads = 4
    model.num_kv_heads = 2
    model.head_dim = 32
    model.original_len = 256
    model.tie_embeddings = True
    model.attention = "blockwise"  # on a CPU its backward pass is the faster one even at 256 tokens
    model.block_size = 128
    return model


def get_config(where: str = "mini_data") -> ConfigDict:
    data, _, first = where.partition(",")
    c = ConfigDict()
    c.tokenizer = f"{data}/tokenizer.json"
    c.source = first
    c.seed = 1 if first else 0
    c.steps = 1800 if first else 1000
    c.save_every = 200
    c.keep = 2

    if not first:
        c.model = architecture()

    c.optim = ConfigDict()
    c.optim.lr = 2.5e-3 if first else 3e-3
    c.optim.schedule = "linear"
    c.optim.warmup_steps = 50 if first else 100
    c.optim.final_lr = 2e-5 if first else 2.19e-3
    c.optim.weight_decay = 0.1

    c.data = ConfigDict()
    c.data.seq_len = 256
    c.data.batch_size = 8
    c.data.cache_dir = f"{data}/cache"
    c.data.seed = c.seed
    kinds = ["lines", "records", "lines", "records", "passkey", "copy"] if first else list(KINDS)
    ramp_steps = 900 if first else 1400
    synthetic = dict(kinds=kinds, min_len=28, ramp_steps=ramp_steps, answer_weight=3.0)
    c.data.sources = [
        dict(kind="text", path=f"{data}/train", weight=0.25),
        dict(kind="synthetic", weight=0.75, synthetic=synthetic),
    ]

    c.eval_data = ConfigDict()
    c.eval_data.seq_len = 256
    c.eval_data.batch_size = 16
    c.eval_data.cache_dir = f"{data}/cache"
    # What counts is whether questions are answered: records and their random numbers have no weight here.
    questions = dict(kinds=["lines", "passkey"], min_len=250, record_weight=0.0)
    c.eval_data.sources = [
        dict(kind="text", path=f"{data}/heldout", weight=0.5),
        dict(kind="synthetic", weight=0.5, synthetic=questions),
    ]
    c.eval_every = 200
    return c
