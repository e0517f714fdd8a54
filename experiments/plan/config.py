"""A base config: a Llama of configs/models.py trained whole, or by LoRA, at a length on so many chips.

    giraffe plan --config=experiments/plan/config.py:llama2_7b,32768,32 --topology=v5p:2x4x4

The argument is the model, the tokens of a row, the chips and, for LoRA, "lora". A step is 4,194,304 tokens, Llama 2's
own batch (arXiv:2307.09288). Parameters and optimizer lie over all chips; where there are fewer rows than chips,
devices share a row (mesh.context). A device has 32,768 tokens at once, or its part of a row where that is longer; on a
slice of 256 chips, whose memory is small, 8,192.
"""

from ml_collections import ConfigDict

from configs import models

TOKENS = 4_194_304  # of a step


def get_config(options: str = "llama2_7b,32768,32") -> ConfigDict:
    name, tokens, chips, *lora = options.split(",")
    length, devices = int(tokens), int(chips)
    c = ConfigDict()
    c.model = getattr(models, name)()
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    factor = length / c.model.original_len
    if not c.model.get("positions") and factor > 1:
        c.model.positions = [dict(name="linear", factor=factor)]
    c.steps = 1000
    rows = TOKENS // length
    fsdp = min(devices, rows)
    c.data = ConfigDict(dict(seq_len=length, batch_size=rows, sources=[dict(kind="synthetic")]))
    c.mesh = ConfigDict(dict(fsdp=fsdp, context=devices // fsdp))
    at_once = 8_192 if devices == 256 else 32_768
    c.accumulate = max(1, rows // fsdp // max(1, at_once // length))
    c.model.mlp_chunk = 4_096 if at_once == 32_768 else 0
    if lora:
        c.lora = dict(rank=8)
        c.model.param_dtype = "bfloat16"
    return c
