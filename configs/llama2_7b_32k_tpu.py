"""Llama 2 7B from 4,096 to 32,768 tokens by linear interpolation, on a TPU pod: arXiv:2306.15595's recipe.

    giraffe train --distributed --workdir=/shared/llama2-32k \
        --config=configs/llama2_7b_32k_tpu.py:/shared/Llama-2-7b-hf "--config.data.sources[0].path=/shared/books"

The argument is the folder of the weights (config.json, safetensors, tokenizer). Run it on every host of the slice, with
files on a shared file system; the mesh uses all chips. 1,000 steps of 64 rows of 32,768 tokens: 2.1 billion tokens.
`giraffe plan --config=configs/llama2_7b_32k_tpu.py --model=llama2_7b --topology=v5p:4x4x4` says on any machine whether
it fits. It has been run only with a small model on virtual devices (tests/test_configs.py), so it claims no time and
no score.
"""

from ml_collections import ConfigDict


def get_config(source: str = "/shared/Llama-2-7b-hf") -> ConfigDict:
    c = ConfigDict()
    c.source = source
    c.steps = 1000
    c.save_every = 100
    c.keep = 2

    c.model = ConfigDict()
    c.model.positions = [dict(name="linear", factor=8.0)]
    c.model.remat = "full"
    c.model.dtype = "bfloat16"
    c.model.param_dtype = "float32"

    c.optim = ConfigDict()
    c.optim.lr = 2e-5
    c.optim.schedule = "constant"
    c.optim.warmup_steps = 20

    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1  # parameters and optimizer sharded over every chip
    c.mesh.context = 1
    c.mesh.tensor = 1

    c.data = ConfigDict()
    c.data.seq_len = 32768
    c.data.batch_size = 64
    c.data.sources = [dict(kind="parquet", path="/shared/books", weight=1.0)]
    return c
