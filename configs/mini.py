"""Extend giraffe-mini from 256 to 1,024 tokens with yarn: a training run of a minute on a laptop, to try things out.

    giraffe train --config=configs/mini.py --workdir=runs/mini

Its documents are synthetic: lists of `line WORD NUMBER` with questions at their end, and passkeys.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.source = "giraffe-mini"
    c.steps = 60
    c.model = dict(positions=[dict(name="yarn", factor=4.0)])
    documents = dict(kind="synthetic", synthetic=dict(kinds=("lines", "lines", "passkey"), lengths=(256, 512, 1024)))
    c.data = dict(seq_len=1024, batch_size=4, sources=[documents])
    c.eval_data = dict(seq_len=1024, batch_size=4, sources=[documents], seed=1)
    c.eval_every = 20
    c.optim = dict(lr=3e-4, warmup_steps=5)
    return c
