"""giraffe-mini with its query and key features in the other order of pairs, as a Hugging Face directory.

    python experiments/giraffe/other_pairs.py runs/giraffe-pairs

Llama's weights, as Hugging Face stores them, rotate feature i with feature i + d/2. The paper's xPos code rotates 2i
with 2i + 1 on those same weights. Reading features 0, 2, 4, ..., 1, 3, 5, ... of each head's queries and keys by halves
is that: what the written directory gives with any method is what such code gives with the weights as they are.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from giraffe_jax import hf
from giraffe_jax.loading import load


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="a new directory")
    parser.add_argument("--source", default="giraffe-mini", help="whose weights (giraffe-mini)")
    args = parser.parse_args(argv)
    lm = load(args.source)
    hf.save(other_pairs(lm.params, lm.config.head_dim), lm.config, lm.tokenizer, args.out, dtype="float32")


def other_pairs(params: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """Returns the parameters with each head's query and key features in the order 0, 2, 4, ..., 1, 3, 5, ..."""
    order = np.r_[0:head_dim:2, 1:head_dim:2]
    layers = dict(params["layers"])
    layers["attention"] = dict(layers["attention"])
    for name in ("q", "k"):
        layers["attention"][name] = {"kernel": np.asarray(layers["attention"][name]["kernel"])[..., order]}
    return {**params, "layers": layers}


if __name__ == "__main__":
    main()
