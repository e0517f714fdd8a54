"""Llama 2 7B from 4,096 to 32,768 tokens with LongLoRA: arXiv:2309.12307's recipe, on 8 chips.

    giraffe train --workdir=runs/longlora --config=configs/longlora.py:/data/Llama-2-7b-hf \
        "--config.data.sources[0].path=/data/redpajama"

The argument is the folder of the weights (config.json, safetensors, tokenizer). Adapters of rank 8 and alpha 16 on
q, k, v and o; norms and embeddings are trained too (in the paper, Llama 2 7B at 32,768 on PG19: perplexity 8.12 with
them, 11.44 without, 8.08 with full fine-tuning); linear interpolation; S2 attention in groups of a quarter of the
length; AdamW at 2e-5, betas 0.9 and 0.95, no weight decay, 20 steps of linear warm-up; 1,000 steps of 64
rows: 2.1 billion tokens. The base stays bfloat16 and has no optimizer state. This config has not been run at this size,
so it claims no time and no score.
"""

from ml_collections import ConfigDict


def get_config(source: str = "/data/Llama-2-7b-hf") -> ConfigDict:
    c = ConfigDict()
    c.source = source
    c.steps = 1000
    c.save_every = 100
    c.keep = 1
    c.accumulate = 8  # 8 chips take a row each at a time

    c.model = ConfigDict()
    c.model.positions = [dict(name="linear", factor=8.0), dict(name="s2", group=8192)]
    c.model.attention = "blockwise"
    c.model.remat = "save_attention"
    c.model.dtype = "bfloat16"
    c.model.param_dtype = "bfloat16"  # of the frozen base; trained parameters are float32

    c.lora = ConfigDict()
    c.lora.rank = 8
    c.lora.alpha = 16.0
    c.lora.targets = ("q", "k", "v", "o")
    c.lora.train = ("norm", "embed")

    c.optim = ConfigDict()
    c.optim.lr = 2e-5
    c.optim.schedule = "constant"
    c.optim.warmup_steps = 20

    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.context = 1
    c.mesh.tensor = 1

    c.data = ConfigDict()
    c.data.seq_len = 32768
    c.data.batch_size = 64
    c.data.sources = [dict(kind="parquet", path="/data/redpajama", weight=1.0)]
    return c
