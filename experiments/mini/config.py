"""giraffe-mini: a Llama of 1.3 million parameters, trained on 256 tokens, that answers retrieval questions inside them.

    python experiments/mini/prepare.py mini_data
    python experiments/mini/start.py mini_data mini_start
    giraffe train --config=experiments/mini/config.py:mini_data,mini_start --workdir=mini
    giraffe train --config=experiments/mini/config.py:mini_data,mini,passkeys --workdir=mini_passkeys

The argument is the folder that prepare.py wrote and the weights to start from, those that start.py made at first. Text
(Shakespeare, the King James Bible, Python's standard library), line retrieval and passkeys of 28 to 256 tokens are
mixed throughout; the second, short run has more passkeys. See README.md beside this file for the time it took and the
numbers to expect.
"""

from typing import Any

from ml_collections import ConfigDict


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
    return model


def get_config(where: str = "mini_data,mini_start") -> ConfigDict:
    data, source, *more = where.split(",")
    passkeys = more == ["passkeys"]
    c = ConfigDict()
    c.source = source
    c.steps = 500 if passkeys else 2600
    c.save_every = 200
    c.keep = 2
    c.model = dict(attention="blockwise")  # on a CPU its backward pass is the faster one even here

    c.optim = ConfigDict()
    c.optim.lr = 5e-4 if passkeys else 1.5e-3
    c.optim.schedule = "linear"
    c.optim.warmup_steps = 20 if passkeys else 200
    c.optim.final_lr = 2e-5
    c.optim.weight_decay = 0.1

    c.data = ConfigDict()
    c.data.seq_len = 256
    c.data.batch_size = 8
    c.data.seed = int(passkeys)
    c.data.cache_dir = f"{data}/cache"
    kinds = ("lines", "passkey", "passkey") if passkeys else ("lines", "lines", "passkey")
    retrieval: dict[str, Any] = dict(kinds=kinds, min_len=28, answer_weight=8.0 if passkeys else 4.0)
    c.data.sources = [
        dict(kind="synthetic", weight=0.5, synthetic=retrieval),
        dict(kind="text", path=f"{data}/train", weight=0.5),
    ]

    c.eval_data = ConfigDict()
    c.eval_data.seq_len = 256
    c.eval_data.batch_size = 16
    c.eval_data.cache_dir = f"{data}/cache"
    # What counts is whether questions are answered: records and their random numbers have no weight here.
    questions: dict[str, Any] = dict(kinds=("lines", "passkey"), min_len=250, record_weight=0.0)
    c.eval_data.sources = [
        dict(kind="text", path=f"{data}/heldout", weight=0.5),
        dict(kind="synthetic", weight=0.5, synthetic=questions),
    ]
    c.eval_every = 200
    return c
