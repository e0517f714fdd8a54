"""Logits against transformers: tiny random Llamas with every rope scaling in both schemas, and one real small model."""

from pathlib import Path

import numpy as np
import pytest
from hf_models import CONFIG, our_logits, random_tensors, write

from giraffe_jax import hf
from giraffe_jax.data import synthetic
from giraffe_jax.hf.load import locate
from tests.close import close, decided

pytestmark = pytest.mark.oracle
STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260K"
RAMP = [1.0, 1.3, 2.0, 4.0]
ROPE = {
    "default": {},
    "linear": dict(factor=4.0),
    "dynamic": dict(factor=2.0),
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    "yarn": dict(factor=4.0, original_max_position_embeddings=16),
    "yarn mscale": dict(
        factor=8.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.8, beta_fast=16.0
    ),
    "yarn no truncate": dict(factor=4.0, truncate=False, attention_factor=1.2, original_max_position_embeddings=32),
    "longrope": dict(short_factor=[1.0, 1.0, 1.1, 1.2], long_factor=RAMP, original_max_position_embeddings=24),
}


def transformers_logits(directory, tokens):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def change(kind, schema):
    rope = {"rope_type": kind.split()[0], **ROPE[kind]}
    if schema == 5:
        return {"rope_parameters": rope | {"rope_theta": 3e4}, "rope_theta": 3e4}
    # Where transformers 4 looks for longrope's original length; without it the file would be two models.
    top = {"original_max_position_embeddings": 24} if kind == "longrope" else {}
    return {"rope_scaling": None if kind == "default" else rope, "rope_theta": 3e4} | top


@pytest.mark.parametrize("schema", [4, 5])
@pytest.mark.parametrize("kind", ROPE)
def test_logits_with_every_scaling(tmp_path, kind, schema):
    directory = write(tmp_path, random_tensors(), **change(kind, schema))
    for length in (20, 90):  # shorter and longer than max_position_embeddings and the original lengths
        tokens = np.random.default_rng(length).integers(0, 96, (2, length))
        expected = transformers_logits(directory, tokens)
        close(our_logits(hf.load(directory), tokens), expected, ulps=1024)


@pytest.mark.parametrize(
    "changes,tied",
    [
        (dict(num_key_value_heads=4), False),
        (dict(num_key_value_heads=1), True),
        (dict(head_dim=16), False),
        (dict(rms_norm_eps=1e-2), True),
    ],
)
def test_logits_of_other_shapes(tmp_path, changes, tied):
    c = CONFIG | changes | dict(tie_word_embeddings=tied)
    directory = write(tmp_path, random_tensors(tied=tied, c=c), c)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 50))
    expected = transformers_logits(directory, tokens)
    close(our_logits(hf.load(directory), tokens), expected, ulps=1024)


@pytest.mark.parametrize("kind", ROPE)
def test_transformers_loads_what_is_saved(tmp_path, kind):
    c = hf.load(write(tmp_path / "in", random_tensors(), **change(kind, 5)))
    out = hf.save(c.params, c.config, None, tmp_path / "out", dtype="float32", max_len=64)
    for length in (20, 90):
        tokens = np.random.default_rng(length).integers(0, 96, (2, length))
        expected = transformers_logits(out, tokens)
        close(our_logits(c, tokens), expected, ulps=1024)


def test_logits_of_the_packaged_model():
    """At its trained length and, plain, at twice that."""
    c = hf.load("giraffe-mini")
    assert (tokenizer := c.tokenizer) is not None
    document = synthetic.lines_document(np.random.default_rng(0), 512, lambda text: len(tokenizer.encode(text)))
    tokens = np.array([tokenizer.encode(synthetic.text_of(document))])
    for length in (256, tokens.shape[1]):
        expected = transformers_logits(locate("giraffe-mini"), tokens[:, :length])
        close(our_logits(c, tokens[:, :length]), expected, ulps=1024)


@pytest.mark.skipif(not STORIES.is_dir(), reason="no shared data")
def test_stories_logits_and_greedy_text():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    c = hf.load(STORIES)
    assert c.tokenizer is not None
    tokens = np.array([[1, *c.tokenizer.encode("Once upon a time, a giraffe lost her scarf. " * 5)]])
    expected = transformers_logits(STORIES, tokens)
    close(our_logits(c, tokens), expected, ulps=1024)
    model = transformers.AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    start = [1, *c.tokenizer.encode("Once upon a time")]
    theirs = model.generate(torch.tensor([start]), max_new_tokens=24, do_sample=False)[0].tolist()
    length = len(start) + 24
    ids = start + [0] * 24  # fixed length: one compilation; what follows a position cannot change it
    for at in range(len(start), length):
        scores = our_logits(c, np.array([ids]))[0, at - 1]
        assert decided(scores, ulps=1024)  # this text was chosen to hold no near tie
        ids[at] = int(scores.argmax())
    assert c.tokenizer.decode(ids) == c.tokenizer.decode(theirs)
    assert "little girl" in c.tokenizer.decode(ids)
