"""RULER's tasks on one model, from 4,096 to 131,072 tokens: eleven with a folder of books, thirteen with the questions.

    giraffe evaluate --config=configs/ruler.py:path/to/Llama-3.1-8B,books/ --workdir=runs/ruler
    giraffe evaluate --config=configs/ruler.py:runs/yarn@best,books/,dev-v2.0.json,hotpot_dev_distractor_v1.json ...

The argument is the model, then text files in which needles are hidden, then SQuAD's and HotpotQA's files. Without
books, only the six tasks that need none. 50 questions per cell; the paper has 500 (`--config.tasks[0].n=500`).
"""

from ml_collections import ConfigDict

LENGTHS = [4096, 8192, 16384, 32768, 65536, 131072]
SYNTHETIC = ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe"]
IN_TEXT = ["niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"]


def get_config(options: str = "giraffe-mini") -> ConfigDict:
    source, *files = options.split(",")
    books, squad, hotpot = [*files, "", "", ""][:3]
    kinds = [(kind, []) for kind in SYNTHETIC]
    kinds += [(kind, [books]) for kind in IN_TEXT if books]
    kinds += [(kind, [path]) for kind, path in (("qa_1", squad), ("qa_2", hotpot)) if path]
    c = ConfigDict()
    c.source = source
    c.tasks = [dict(name="ruler", kind=kind, lengths=LENGTHS, n=50, documents=files) for kind, files in kinds]
    return c
