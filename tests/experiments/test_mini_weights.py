"""The weights that ship: they answer inside their trained length, and not because the prompt is short."""

import numpy as np

from giraffe_jax.data import synthetic
from giraffe_jax.decode import LM, score
from giraffe_jax.train import load


def test_giraffe_mini_looks_lines_up_inside_256_tokens_and_not_beyond():
    """LongEval-like lines of 200 and of 500 tokens; a value is one of 90."""
    loaded = load("giraffe-mini")
    encode = synthetic.piece_encoder(loaded.tokenizer)
    right = {}
    for length in (200, 500):
        rng, rows = np.random.default_rng(length), np.zeros((16, 500), np.int32)
        at = []
        for row in rows:
            document = synthetic.lines_document(rng, length, lambda text: len(encode(text)), queries=1)
            ids = [token for piece in document for token in encode(piece.text)]
            row[: len(ids)] = ids
            at.append(len(ids) - len(encode(document[-1].text)) - 1)  # the prediction of the answer's first token
        correct = score(LM(loaded.model, loaded.params, loaded.tokenizer), rows)[1]
        right[length] = float(np.asarray(correct)[np.arange(16), at].mean())
    assert right[200] > 0.9 and right[500] < 0.2
