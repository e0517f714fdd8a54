"""What a run will see is said before it starts, and so is a prompt that is longer than positions reach."""

import json
import re
import warnings

import numpy as np
import pytest

from giraffe_jax import positions
from giraffe_jax.cli import main
from giraffe_jax.config import build
from giraffe_jax.data import DataConfig, make_pipeline
from giraffe_jax.inference import LM
from giraffe_jax.lab import run as lab_run
from giraffe_jax.lab import spec
from giraffe_jax.lab.cells import Cell
from giraffe_jax.lab.spec import ExperimentConfig
from giraffe_jax.model import ModelConfig
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training import header
from giraffe_jax.training.optim import OptimConfig
from tests.tokenizer.test_chat import SMOLLM2, bytes_and_specials

SHAPE = dict(vocab_size=258, d_model=16, d_mlp=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16)
YARN = (dict(name="yarn", factor=4.0),)


def said_of(tmp_path, sizes, seq_len, *, original_len=64, scaling=YARN, packing="concat", anew=False, **data):
    """What is said of documents of so many bytes: with its end, each has one token more."""
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * size}) + "\n" for size in sizes))
    values = dict(seq_len=seq_len, batch_size=2, packing=packing, sources=[dict(kind="jsonl", path=str(path))])
    config = build(DataConfig, values | data)
    pipeline = make_pipeline(config, ByteTokenizer())
    model = ModelConfig(**SHAPE, original_len=original_len, positions=scaling)
    return header.of_data(pipeline.batch(0), pipeline.longest, config, model, anew)


def test_lengths_and_shares_are_counted(tmp_path):
    """Each row holds one document of 80 tokens and two of 10: 16 of its 100 tokens are at positions 64 to 79."""
    said = said_of(tmp_path, [79, 9, 9] * 2, 100, packing="document")
    assert said == (
        "data: longest document 80 tokens; in the first batch 3 documents a row, "
        "16% of its tokens at positions beyond the trained 64"
    )
    batch = {"segments": np.ones((1, 4096), np.int32), "positions": np.arange(4096)[None]}
    data, model = DataConfig(4096, 1), ModelConfig(**SHAPE, original_len=4095)
    assert "1 documents a row, <0.1% of its tokens" in header.of_data(batch, 4096, data, model, False)
    batch["segments"][:] = 0
    assert "0 documents a row, 0% of its tokens" in header.of_data(batch, 4096, data, model, False)


@pytest.mark.parametrize(
    ("sizes", "keys", "warning"),
    [
        ([63] * 9, {}, "the longest document has 64 tokens, so yarn will learn nothing about longer"),
        ([64] * 9, {}, ""),  # one token at position 64
        ([63] * 99 + [500], {}, ""),  # in the data, although hardly in the first batch
        ([63] * 9, dict(scaling=()), "RoPE will learn nothing about longer contexts; take longer documents."),
        ([900] * 3, dict(seq_len=64), "data.seq_len is 64 tokens, .* take longer documents and a longer data.seq_len."),
        ([900] * 3, dict(seq_len=64, scaling=()), ""),  # no extension
        ([63] * 9, dict(seq_len=64, scaling=(dict(name="alibi"),), anew=True), ""),  # nor of a model that begins
        ([63] * 9, dict(seq_len=64, anew=True), "yarn will learn nothing"),
        ([63] * 9, dict(scaling=(*YARN, dict(name="randomize", max_len=256))), ""),
        ([63] * 9, dict(skip=dict(kind="pose", target_len=256)), ""),
        ([9], dict(sources=[dict(kind="synthetic", synthetic=dict(min_len=64))]), ""),
        (
            [9],
            dict(sources=[dict(kind="synthetic", synthetic=dict(min_len=64, max_len=64))]),
            "the longest document has 64 tokens",
        ),
    ],
)
def test_an_extension_that_would_see_nothing_new_is_told(tmp_path, sizes, keys, warning):
    keys = dict(seq_len=256) | keys
    said = said_of(tmp_path, sizes, **keys)
    first, _, rest = said.partition("\n")
    assert first.startswith("data: longest document ")
    if not warning:
        assert rest == ""
    else:
        assert rest.startswith("warning: no token is at a position beyond the trained 64: ")
        assert re.search(warning, rest), rest


def test_rows_across_documents_reach_as_far_as_the_row(tmp_path):
    """Documents of 64 tokens in rows of 100: 36 of 100 tokens are beyond, where masked ones have none."""
    said = said_of(tmp_path, [63] * 25, 100, across_documents=True)
    assert said == (
        "data: longest document 64 tokens; in the first batch rows run across documents, "
        "36% of its tokens at positions beyond the trained 64"
    )
    assert "warning: no token is at a position" in said_of(tmp_path, [63] * 25, 100)


def test_positions_that_a_method_draws_are_not_counted(tmp_path):
    said = said_of(tmp_path, [63] * 9, 256, scaling=(dict(name="randomize", max_len=256),))
    assert said.endswith("documents a row, positions are drawn by randomize")


def test_what_lengths_and_conversations_come_to_is_said_by_a_dry_run_and_by_the_run(tmp_path, capsys):
    """Of four texts of 9, 19, 29 and 39 bytes, each with its end, two are long enough and one is long."""
    for name, content in bytes_and_specials(SMOLLM2).files().items():
        (tmp_path / name).write_bytes(content)
    texts = [json.dumps({"text": "x" * size}) for size in (9, 19, 29, 39)]
    (tmp_path / "t.jsonl").write_text("\n".join(texts))
    chat = [dict(role="user", content="a"), dict(role="assistant", content="bc")]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": chat}))
    lengths = dict(kind="jsonl", path=str(tmp_path / "t.jsonl"), min_tokens=30, long_tokens=40, long_times=3)
    chats = dict(kind="jsonl", path=str(tmp_path / "c.jsonl"), conversations=True)
    data = dict(seq_len=64, batch_size=8, sources=[lengths, chats], across_documents=True)
    values = dict(model=SHAPE | dict(vocab_size=270, original_len=64), data=data, steps=1, tokenizer=str(tmp_path))
    (tmp_path / "config.py").write_text(f"def get_config():\n    return {values!r}\n")
    words = ["train", f"--config={tmp_path / 'config.py'}"]
    assert main([*words, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert main([*words, f"--workdir={tmp_path / 'run'}"]) == 0
    template = "".join(f"<|im_start|>{role}\n" for role in ("system", "user", "assistant"))
    rest = "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\na<|im_end|>\nbc<|im_end|>\n"
    total = len(re.sub(r"<\|\w+\|>", "#", template + rest))
    for said in (dry, capsys.readouterr().err):
        for line in (
            "data.sources[0]: documents of 30 or more tokens; 2 of 4 documents are left out, with 30 of 100 tokens",
            "data.sources[0]: 1 of 2 documents have 40 tokens or more and come 3 times in an epoch: 80% of its "
            "150 tokens",
            f"data.sources[1]: the loss is on answers alone, 3 of {total} tokens of 1 conversation",
            "batch: 8 x 64 = 512 tokens a step; attention and positions run on across the documents of a row",
        ):
            assert line in said.splitlines(), (line, said)


@pytest.mark.parametrize(("warmup_steps", "steps", "told"), [(20, 6, True), (6, 6, True), (5, 6, False), (0, 1, False)])
def test_a_warm_up_that_never_ends_is_told(warmup_steps, steps, told):
    said = header.warm_up(OptimConfig(warmup_steps=warmup_steps), steps)
    want = f"warning: optim.warmup_steps {warmup_steps} is not less than steps {steps}: "
    assert said.startswith(want) if told else said == ""


@pytest.mark.parametrize(
    ("scaling", "reach"),
    [((), 64), (YARN, 256), ((dict(name="linear", factor=2.0), *YARN), 256), ((dict(name="self_extend"),), None),
     ((dict(name="dynamic", factor=2.0),), None), ((dict(name="llama3", factor=8.0),), None),
     ((dict(name="longrope", factor=4.0, short_factor=[1.0] * 8, long_factor=[4.0] * 8),), 256),
     ((*YARN, dict(name="sliding_window", window=8)), None)],
)  # fmt: skip
def test_how_far_positions_reach(scaling, reach):
    assert positions.reach(scaling, 64) == reach


@pytest.mark.parametrize(
    ("n", "flag", "told"),
    [(8, (), False), (9, (), True), (9, ("--positions=[dict(name='linear', factor=2.0)]",), False)],
)
def test_generate_tells_of_a_prompt_that_is_too_long(tmp_path, monkeypatch, n, flag, told):
    """56 bytes of prompt in a model of 64 tokens."""
    lm = LM(ModelConfig(**SHAPE, original_len=64), None, ByteTokenizer())
    monkeypatch.setattr("giraffe_jax.loading.load", lambda *_, **__: lm)
    monkeypatch.setattr("giraffe_jax.inference.generate", lambda lm, prompts, n, encoding, **_: [[65]])
    (tmp_path / "p.txt").write_text("x" * 56)
    words = ["generate", f"--source={tmp_path}", f"--prompt-file={tmp_path / 'p.txt'}", "-n", str(n), *flag]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert main(words) == 0
    told_of = [str(w.message).partition(":")[0] for w in said if w.category is UserWarning]
    want = "56 tokens of prompt and 9 to generate exceed the context length of 64 tokens"
    assert told_of == ([want] if told else [])


def test_an_experiment_tells_of_lengths_beyond_reach():
    tasks = [dict(name="passkey", lengths=[64, 512])]
    data = dict(seq_len=512, batch_size=1, sources=[dict(kind="synthetic")])
    variants = [
        dict(name="plain"), dict(name="four", positions=YARN), dict(name="band", positions=[dict(name="self_extend")]),
        dict(name="trained", train=dict(steps=1, data=data)),
    ]  # fmt: skip
    config = build(ExperimentConfig, dict(name="x", source="s", variants=variants, tasks=tasks))
    [task] = spec.check(config)

    cells = [Cell(variant, task, n, 0, "", "") for variant in config.variants for n in (64, 512)]
    said = lab_run.beyond_reach(config, cells, 64)
    assert said == "prompts of up to 512 tokens exceed the context length of: plain 64, four 256"
    assert lab_run.beyond_reach(config, cells[::2], 64) == ""
