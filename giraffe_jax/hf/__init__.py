"""Import from Hugging Face directories and GGUF files, and export to them.

Example:
    lm = hf.load("path/to/Llama-3.2-1B")  # or a .gguf file, "giraffe-mini", "smollm2"
    hf.save(lm.params, lm.config, lm.tokenizer, "out/")
"""

from giraffe_jax.hf.config import config_from_json
from giraffe_jax.hf.export import config_to_json, save
from giraffe_jax.hf.export_gguf import save_gguf
from giraffe_jax.hf.export_peft import save_adapter
from giraffe_jax.hf.load import find_base, find_gguf, load, locate, read_config

__all__ = ["config_from_json", "config_to_json", "find_base", "find_gguf", "load", "locate",
           "read_config", "save", "save_adapter", "save_gguf"]  # fmt: skip
