"""What every text begins with: one rule, which files hold, and which all that reads text follows."""

import dataclasses
import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from giraffe_jax import evals
from giraffe_jax.config import build
from giraffe_jax.data.config import DataConfig
from giraffe_jax.data.pipeline import make_pipeline
from giraffe_jax.data.source import load_tokens
from giraffe_jax.evals.tasks import lines, passkey
from giraffe_jax.loading import load
from giraffe_jax.tokenizer import ByteTokenizer, load_tokenizer

VOCAB = {chr(97 + i): i for i in range(26)} | {"Ġ": 26}


def write(folder, *, post=None, config=None):
    """A tokenizer of letters as a Hugging Face directory has one, with a begin token of id 27."""
    tok = Tokenizer(models.BPE(vocab=VOCAB, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.add_special_tokens([AddedToken("<b>", special=True), AddedToken("<e>", special=True)])
    if post is not None:
        tok.post_processor = TemplateProcessing(post, None, [("<b>", 27), ("<e>", 28)])
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tok.to_str())
    names = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<b>", eos_token="<e>")
    (folder / "tokenizer_config.json").write_text(json.dumps(names | (config or {})))
    return folder


CASES = {
    "nothing is said": (None, None, ()),
    "the post-processor begins": ("<b> $A", None, (27,)),
    "it begins and ends": ("<b> $A <e>", None, (27,)),
    "it ends alone": ("$A <e>", None, ()),
    "it begins, whatever the config says": ("<b> $A", dict(add_bos_token=False), (27,)),
    "it does nothing, whatever the config says": ("$A", dict(add_bos_token=True), ()),
    "the config says not to": (None, dict(add_bos_token=False), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_rule_is_that_of_the_files_and_outlives_them(tmp_path, name):
    post, config, want = CASES[name]
    found = load_tokenizer(write(tmp_path / "a", post=post, config=config))
    assert found.prefix == want and found.encode("abc") == [0, 1, 2]
    for where in ("b", "c"):  # saved, and saved again
        (tmp_path / where).mkdir()
        for file, content in found.files().items():
            (tmp_path / where / file).write_bytes(content)
        found = load_tokenizer(tmp_path / where)
        assert found.prefix == want
        assert json.loads((tmp_path / where / "tokenizer_config.json").read_text())["add_bos_token"] is bool(want)


def test_a_config_that_says_so_alone_gets_a_post_processor(tmp_path):
    found = load_tokenizer(write(tmp_path / "a", config=dict(add_bos_token=True)))
    assert found.prefix == (27,)
    assert Tokenizer.from_str(found.files()["tokenizer.json"].decode()).encode("ab").ids == [27, 0, 1]


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_texts_begin_as_in_transformers(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    post, config, _ = CASES[name]
    source = write(tmp_path / "a", post=post, config=config)
    ours = load_tokenizer(source)
    theirs = transformers.AutoTokenizer.from_pretrained(str(source))("ab").input_ids
    assert [t for t in theirs if t != 28] == [*ours.prefix, 0, 1]
    (tmp_path / "b").mkdir()
    for file, content in ours.files().items():
        (tmp_path / "b" / file).write_bytes(content)
    assert transformers.AutoTokenizer.from_pretrained(str(tmp_path / "b"))("ab").input_ids == theirs


class Begun(ByteTokenizer):
    prefix = (256,)

    @property
    def fingerprint(self):
        return ByteTokenizer().fingerprint


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Begun()], ids=["none", "begun"])
def test_documents_prompts_and_texts_begin_with_it(tmp_path, tokenizer):
    first = list(tokenizer.prefix)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    tokens, _ = load_tokens("text", str(tmp_path), tokenizer, str(tmp_path / "cache"))
    assert tokens.tokens.tolist() == [*first, *b"one", 257, *first, *b"two", 257]
    synthetic = dict(seq_len=128, batch_size=2, sources=[dict(kind="synthetic", synthetic=dict(min_len=64))])
    batch = make_pipeline(build(DataConfig, synthetic), tokenizer).batch(0)
    starts = (batch["positions"] == 0) & (batch["segments"] > 0)
    assert ((batch["tokens"][starts] == 256) == bool(first)).all()
    for task, module in (("lines", lines), ("passkey", passkey)):
        for style in ("compact", "landmark") if task == "passkey" else ("compact",):
            built = evals.build(dict(name=task, lengths=[600], n=1, style=style))
            for example in module.examples(built, tokenizer, 600):
                assert (example.prompt[0] == 256) == bool(first) and 256 not in example.prompt[1:]
                assert len(example.prompt) + len(example.answer) <= 600
    lm = dataclasses.replace(load("giraffe-mini"), tokenizer=tokenizer)
    assert lm.encode("ab") == [*first, 97, 98]


def test_the_rule_is_part_of_what_is_cached_and_of_what_a_run_reads(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    config = build(DataConfig, dict(seq_len=4, batch_size=1, sources=[dict(kind="text", path=str(tmp_path / "a.txt"))],
                                    cache_dir=str(tmp_path / "cache")))  # fmt: skip
    plain, begun = (make_pipeline(config, tokenizer) for tokenizer in (ByteTokenizer(), Begun()))
    assert plain.fingerprint != begun.fingerprint
    assert 256 not in plain.batch(0)["tokens"] and 256 in begun.batch(0)["tokens"]


def test_the_packaged_model_s_texts_begin_with_nothing():
    assert load("giraffe-mini").tokenizer.prefix == ()


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Begun()], ids=["none", "begun"])
def test_made_documents_leave_room_for_what_begins_and_ends_them(tokenizer):
    made = dict(seq_len=256, batch_size=64, sources=[dict(kind="synthetic", synthetic=dict(min_len=80))])
    batch = make_pipeline(build(DataConfig, made), tokenizer).batch(0)
    for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
        for segment in range(1, segments.max() + 1):
            assert tokens[segments == segment][-1] == 257
