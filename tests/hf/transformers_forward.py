"""Run by an interpreter that has transformers, of any version: the logits of each model in a folder, float32.

  python transformers_forward.py FOLDER

Every folder in FOLDER is a Hugging Face directory with tokens.npy in it, [2, 4 L]; logits of its first quarter and of
all of it are written beside, as logits-VERSION.npz.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
for directory in sorted(p for p in Path(sys.argv[1]).iterdir() if (p / "tokens.npy").is_file()):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.tensor(np.load(directory / "tokens.npy"))
    with torch.no_grad():  # short first: `dynamic` keeps what a longer pass left, up to and including its first length
        short, long = (model(tokens[:, :n]).logits.numpy() for n in (tokens.shape[1] // 4, tokens.shape[1]))
    np.savez(directory / f"logits-{transformers.__version__.partition('.')[0]}.npz", short=short, long=long)
print(transformers.__version__)
