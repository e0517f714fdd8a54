"""An export has what its source said of ending, sampling and chatting, and no number that its dtype cannot hold."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hf_models import CONFIG, random_tensors, write

from giraffe_jax import hf
from giraffe_jax.config import ConfigError
from giraffe_jax.inference import generate
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.tokenizer.gguf import open_file

C = CONFIG | dict(vocab_size=258)
ENDS = [257, 10, 32]
SAMPLING = dict(temperature=0.5, top_p=0.75, top_k=40, do_sample=True)
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
DOWN = "model.layers.0.mlp.down_proj.weight"


def source(path, tensors=None, **changes):
    write(path, random_tensors(c=C) if tensors is None else tensors, C, **changes)
    for name, content in ByteTokenizer().files().items():
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def three_ends(tmp_path):
    path = source(tmp_path / "in", bos_token_id=256, eos_token_id=ENDS[:2])
    (path / "generation_config.json").write_text(json.dumps(dict(eos_token_id=[257, 32], max_length=99, **SAMPLING)))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def test_every_end_token_of_both_files_ends_a_text(three_ends):
    lm = hf.load(three_ends)
    assert sorted(lm.tokenizer.end_ids) == sorted(ENDS) and lm.tokenizer.eos_id == 257
    prompt = [97, 98, 99]
    (free,) = generate(lm, [prompt], 12, stop=[])
    assert len(free) == 12
    assert not set(ENDS) & set(free)
    for end in ENDS:  # which takes the place of the fourth token: its logit is that token's
        params = lm.params | {"lm_head": {"kernel": _swapped(lm.params["lm_head"]["kernel"], free[3], end)}}
        (ended,) = generate(dataclasses.replace(lm, params=params), [prompt], 12)
        assert ended == free[: free.index(free[3])]


def _swapped(kernel, i, j):
    """Returns a map to logits [D, V] with two of its columns swapped."""
    order = np.arange(kernel.shape[-1])
    order[[i, j]] = j, i
    return jnp.asarray(kernel)[:, order]


def test_a_directory_keeps_ends_sampling_and_template_and_so_does_its_copy(tmp_path, three_ends):
    first, out = hf.load(three_ends), tmp_path
    for name in ("once", "twice"):
        out = hf.save(first.params, first.config, first.tokenizer, tmp_path / name)
        settings = json.loads((out / "generation_config.json").read_text())
        assert sorted(settings.pop("eos_token_id")) == sorted(ENDS) and settings.pop("bos_token_id") == 256
        assert settings == SAMPLING | {"max_length": 99}
        assert sorted(json.loads((out / "config.json").read_text())["eos_token_id"]) == sorted(ENDS)
        assert (out / "chat_template.jinja").read_text() == TEMPLATE
        first = hf.load(out)


def test_gguf_keeps_ends_sampling_and_template(tmp_path, three_ends):
    pytest.importorskip("gguf")
    lm = hf.load(three_ends)
    path = hf.save_gguf(lm.params, lm.config, lm.tokenizer, tmp_path / "a.gguf")
    meta = open_file(path).metadata
    named = [meta[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")]
    assert named[0] == 257 and sorted(named) == sorted(ENDS)
    assert [meta[f"general.sampling.{key}"] for key in ("temp", "top_p", "top_k")] == [0.5, 0.75, 40]
    assert meta["tokenizer.chat_template"] == TEMPLATE
    back = hf.load(path).tokenizer
    assert back.end_ids == lm.tokenizer.end_ids
    files = back.files()
    kept = json.loads(files["generation_config.json"])
    assert {k: kept[k] for k in SAMPLING} == SAMPLING
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == TEMPLATE


def test_gguf_refuses_more_end_tokens_than_it_names(tmp_path):
    pytest.importorskip("gguf")
    lm = hf.load(source(tmp_path / "in", eos_token_id=[257, 10, 32, 33]))
    with pytest.raises(ConfigError, match=r"4 end tokens, \[257, 10, 32, 33\]; a GGUF file names three"):
        hf.save_gguf(lm.params, lm.config, lm.tokenizer, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_end_tokens_that_are_no_ids_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: eos_token_id must be ids, got \['</s>'\]"):
        hf.load(source(tmp_path / "in", eos_token_id=["</s>"]))


@pytest.mark.oracle
def test_transformers_reads_the_same_of_the_export(tmp_path, three_ends):
    transformers = pytest.importorskip("transformers")
    lm = hf.load(three_ends)
    out = hf.save(lm.params, lm.config, lm.tokenizer, tmp_path / "out")
    settings = transformers.GenerationConfig.from_pretrained(out)
    assert sorted(settings.eos_token_id) == sorted(ENDS)
    assert (settings.temperature, settings.top_p, settings.do_sample) == (0.5, 0.75, True)
    chat = transformers.AutoTokenizer.from_pretrained(out)
    assert chat.apply_chat_template([dict(role="user", content="hi")], tokenize=False) == "<|user|>hi"


def large(tmp_path, value):
    tensors = random_tensors(c=C)
    tensors[DOWN][0, 0] = value
    return hf.load(write(tmp_path / "in", tensors, C))


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("float16", 1e5, "bfloat16 and float32 hold it"),
        ("float16", -65520.0, "bfloat16 and float32 hold it"),  # the least that rounds to infinity
        ("bfloat16", 3.4e38, "float32 holds it"),
        ("float16", 3.4e38, "float32 holds it"),
    ],
)
@pytest.mark.parametrize("kind", ["directory", "gguf"])
def test_a_number_that_the_dtype_cannot_hold_is_refused_by_name(tmp_path, kind, dtype, value, fits):
    if kind == "gguf":
        pytest.importorskip("gguf")
    lm = large(tmp_path, value)
    before = sorted(p.name for p in tmp_path.iterdir())
    save, name = (hf.save, DOWN) if kind == "directory" else (hf.save_gguf, "blk.0.ffn_down.weight")
    with pytest.raises(ConfigError) as error:
        save(lm.params, lm.config, None, tmp_path / ("a.gguf" if kind == "gguf" else "a"), dtype=dtype)
    for part in (name, f"{value:g}", dtype, fits):
        assert part in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_largest_number_that_fits_is_written(tmp_path):
    lm = large(tmp_path, 65519.0)  # rounds to 65504
    again = hf.load(hf.save(lm.params, lm.config, None, tmp_path / "a", dtype="float16"))
    assert np.max(np.asarray(again.params["layers"]["mlp"]["down"]["kernel"])) == 65504


def test_the_share_that_becomes_zero_is_said(tmp_path):
    tensors = random_tensors(c=C)
    tensors[DOWN][:2, :3] = 1e-9
    total = sum(t.size for t in tensors.values())
    lm = hf.load(write(tmp_path / "in", tensors, C))
    with pytest.warns(UserWarning, match=rf"^6 of {total:,} weights .* are too small for float16 and become zero"):
        hf.save(lm.params, lm.config, None, tmp_path / "a", dtype="float16")
