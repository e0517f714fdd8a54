"""The bench counts what the papers count, and measures a model that ships with the package."""

import json

import pytest

from giraffe_jax import bench
from giraffe_jax.cli import main
from giraffe_jax.config import ConfigError
from giraffe_jax.model import ModelConfig

LLAMA2_7B = ModelConfig(
    vocab_size=32000, d_model=4096, d_mlp=11008, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128
)
# What every token multiplies with in Llama 2 7B (arXiv:2307.09288): 6,738,415,616 parameters without the embedding
# table and the 65 norms of 4,096.
MATRICES = 6_738_415_616 - 32000 * 4096 - 65 * 4096


def test_model_flops_are_the_closed_form():
    train, causal = bench.flops(LLAMA2_7B, bench.Job("train", 4096)), 4096 * 4097 / 2
    attention = 32 * 4 * 32 * 128 * causal
    assert train == pytest.approx(3 * (2 * MATRICES * 4096 + attention), rel=1e-3)
    assert bench.flops(LLAMA2_7B, bench.Job("attention_grad", 4096)) == pytest.approx(3 * attention / 32, rel=1e-3)
    # Eight documents of 500 tokens and one of 96 attend within themselves; the matrices are the same.
    packed = bench.flops(LLAMA2_7B, bench.Job("packed", 4096))
    within = 32 * 4 * 32 * 128 * (8 * 500**2 + 96**2) / 2
    assert packed == pytest.approx(3 * (2 * MATRICES * 4096 + within), rel=1e-4)
    # Every row counts; of a prompt the unembedding sees the last token alone.
    rows = bench.flops(LLAMA2_7B, bench.job("prefill:1024x8"))
    assert rows == pytest.approx(8 * bench.flops(LLAMA2_7B, bench.job("prefill:1024")))
    assert bench.flops(LLAMA2_7B, bench.job("nll:1024x8")) - rows == pytest.approx(8 * 1023 * 2 * 32000 * 4096)
    # A token decoded after 4,096 reads 2 * 32 * 4096 * 4 bytes of cache for each of them: 2 GiB in bfloat16.
    cache = bench.moved(LLAMA2_7B, bench.Job("decode", 4096), 2) / bench.DECODED - 2 * MATRICES
    assert cache == pytest.approx(2**31, rel=0.01)


@pytest.mark.parametrize(
    "text, says",
    [("forwards:8", "forward"), ("train:", "train:2048"), ("train:8x", "train:256x8"), ("nll:9999999x9999", "at most")],
)
def test_jobs_are_refused_by_name(text, says):
    with pytest.raises(ConfigError, match=says):
        bench.job(text)


@pytest.mark.slow
def test_the_command_measures_a_packaged_model(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    words = ["bench", "--source=giraffe-mini", "--alone", "--jobs", "forward:128", "--runs=1", f"--out={out}"]
    assert main(words) == 0
    machine, row = (json.loads(line) for line in out.read_text().splitlines())
    assert 0 < row["fraction"] < 1 and 50e6 < row["peak_bytes"] < 4e9
    # 1.3 million parameters, two operations each, on 128 tokens.
    assert row["seconds"] > 2 * 1e6 * 128 / machine["matmul_flops"]
    assert "| forward:128 |" in capsys.readouterr().out
