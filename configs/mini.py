"""giraffe-mini, trained on 256 tokens, to 1,024 with yarn: a run of a minute on a laptop, to see how runs go.

    giraffe train --config=configs/mini.py --workdir=runs/mini

Its documents are made, not read: lists of `line WORD NUMBER` that are asked at their end, and passkeys.
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
