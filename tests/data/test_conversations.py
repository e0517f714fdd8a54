"""Conversations as a source: messages in every spelling, and the loss on answers through cache, packing and skip."""

import json
import re

import numpy as np
import pytest

from giraffe_jax.config import ConfigError, build
from giraffe_jax.data import DataConfig, make_pipeline, source
from giraffe_jax.data.source import load_tokens
from giraffe_jax.tokenizer import ByteTokenizer
from tests.tokenizer.test_chat import LLAMA3, SMOLLM2, bytes_and_specials

SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system"}


def chats(count=30):
    """Conversations of one to three turns; an answer is all Q's and R's, which nothing else here has."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        chat = [dict(role="system", content=f"chat {i}")] if i % 3 else []
        for turn in range(int(rng.integers(1, 4))):
            answer = "".join(rng.choice(["Q", "R"], size=int(rng.integers(1, 40))))
            chat += [dict(role="user", content=f"ask {turn}?"), dict(role="assistant", content=answer)]
        made.append(chat)
    return made


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pipeline_of(path, tokenizer, **keys):
    sources = [dict(kind="jsonl", path=path, conversations=True)]
    values = dict(seq_len=64, batch_size=2, sources=sources) | keys
    return make_pipeline(build(DataConfig, values), tokenizer)


def test_every_spelling_is_the_same_conversation(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    tokenizer = bytes_and_specials(SMOLLM2)
    theirs = [[{"from": SHAREGPT[m["role"]], "value": m["content"]} for m in chat] for chat in chats()]
    first = write(tmp_path / "a.jsonl", [{"messages": chat, "id": i} for i, chat in enumerate(chats())])
    second = write(tmp_path / "b.jsonl", [{"conversations": chat} for chat in theirs])
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": chat} for chat in chats()]), tmp_path / "c.parquet")
    found = [
        load_tokens(kind, path, tokenizer, conversations=True)[0]
        for kind, path in (("jsonl", first), ("jsonl", second), ("parquet", str(tmp_path / "c.parquet")))
    ]
    for tokens in found:
        for name in ("tokens", "ends", "answers"):
            assert np.array_equal(getattr(tokens, name), getattr(found[0], name))
    wanted = [
        "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat) for chat in chats()
    ]  # fmt: skip
    for ids, want in zip(np.split(found[0].tokens, found[0].ends[:-1]), wanted, strict=True):
        assert tokenizer.decode(ids).endswith(want), "what the template writes, and nothing after it"


@pytest.mark.parametrize(("template", "end"), [(SMOLLM2, "<|im_end|>"), (LLAMA3, "<|eot_id|>")])
@pytest.mark.parametrize("how", ["concat", "document", "across", "pose"])
def test_the_loss_is_on_answers_alone_in_every_row(tmp_path, template, end, how):
    """Whether a target is of an answer is read off its letters; over an epoch each token of an answer is asked once."""
    keys = dict(
        concat={}, document=dict(packing="document"), across=dict(across_documents=True),
        pose=dict(skip=dict(kind="pose", target_len=256)),
    )[how]  # fmt: skip
    tokenizer = bytes_and_specials(template)
    path = write(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats()])
    pipeline = pipeline_of(path, tokenizer, batch_size=1, **keys)
    letters, [end_id] = {tokenizer.encode(letter)[0] for letter in "QR"}, tokenizer.encode(end)
    asked = 0
    for step in range(200):
        batch = pipeline.batch(step)
        for token, target, weight in zip(*(batch[k][0] for k in ("tokens", "targets", "weights")), strict=True):
            is_answer = target in letters or (target == end_id and token in letters)
            assert weight == (1 if is_answer else 0), (tokenizer.decode([token]), tokenizer.decode([target]))
            asked += int(weight)
    assert asked > 500


def test_an_epoch_asks_for_each_token_of_the_answers_once(tmp_path):
    tokenizer = bytes_and_specials(LLAMA3)
    path = write(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats()])
    pipeline = pipeline_of(path, tokenizer, batch_size=1)
    tokens, _ = load_tokens("jsonl", path, tokenizer, conversations=True)
    rows = [pipeline.batch(step) for step in range(-(-tokens.tokens.size // 64))]
    answers = sum(len(m["content"]) + 1 for chat in chats() for m in chat if m["role"] == "assistant")
    assert sum(row["weights"].sum() for row in rows) == answers
    [said] = pipeline.notes
    assert said == (
        f"data.sources[0]: the loss is on answers alone, {answers:,} of {tokens.tokens.size:,} tokens of "
        "30 conversations"
    )


def test_the_cache_keeps_where_answers_stand(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats()])
    cache, tokenizer = tmp_path / "cache", bytes_and_specials(SMOLLM2)
    first, _ = load_tokens("jsonl", path, tokenizer, str(cache), conversations=True)
    with monkeypatch.context() as context:
        context.setattr(source, "_write_cache", lambda *_: pytest.fail("made again"))
        again, _ = load_tokens("jsonl", path, tokenizer, str(cache), conversations=True)
    assert np.array_equal(first.answers, again.answers) and isinstance(again.answers, np.memmap)
    [file] = cache.glob("*/answers.bool")
    file.write_bytes(file.read_bytes()[:-1])
    good = np.array(first.tokens)
    repaired, _ = load_tokens("jsonl", path, tokenizer, str(cache), conversations=True)
    assert repaired.answers is not None and repaired.answers.size == good.size and np.array_equal(repaired.tokens, good)
    other = bytes_and_specials(LLAMA3)
    changed, _ = load_tokens("jsonl", path, other, str(cache), conversations=True)
    assert not np.array_equal(changed.tokens, good), "another template, the same files and vocabulary"
    assert pipeline_of(path, tokenizer).fingerprint != pipeline_of(path, other).fingerprint


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a"}, r"a\.jsonl:2 has neither 'messages' nor 'conversations'; it has \['text'\]"),
        ({"messages": []}, r"a\.jsonl:2: 'messages' is a list; it takes a list of messages, one at least"),
        ({"messages": "a"}, r"a\.jsonl:2: 'messages' is a string"),
        ({"messages": ["a"]}, r"a\.jsonl:2: messages\[0\] is a string; a message is an object"),
        ({"messages": [dict(role="asistant", content="a")]}, r"messages\[0\]: the role is 'asistant'.*'assistant'\?"),
        ({"messages": [dict(role="user", content=["a"])]}, r"messages\[0\]: the content is a list; it takes a string"),
        ({"messages": [dict(role="user")]}, r"messages\[0\]: the content is null"),
    ],
)
def test_what_is_no_conversation_is_refused_by_line(tmp_path, row, said):
    path = write(tmp_path / "a.jsonl", [{"messages": chats(1)[0]}, row])
    with pytest.raises(ConfigError, match=r"data\.sources\[0\]: .*" + said):
        pipeline_of(path, bytes_and_specials(SMOLLM2))


def test_what_the_template_refuses_is_said_with_the_line(tmp_path):
    refusing = bytes_and_specials("{{ raise_exception('no system') if messages[0].role == 'system' }}")
    path = write(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats(2)])
    with pytest.raises(ConfigError, match=r"data\.sources\[0\]: .*a\.jsonl:2: .*the chat template fails \(.*no system"):
        pipeline_of(path, refusing)
    with pytest.raises(ConfigError, match=r"data\.sources\[0\]: the tokenizer has no chat template"):
        pipeline_of(path, ByteTokenizer())


def test_a_mixture_of_texts_and_conversations(tmp_path):
    """Texts keep the loss on all of their tokens, and their own begin and end."""
    path = write(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats()])
    texts = write(tmp_path / "t.jsonl", [{"text": "words " * 30}] * 9)
    sources = [dict(kind="jsonl", path=texts), dict(kind="jsonl", path=path, conversations=True)]
    batch = pipeline_of(path, bytes_and_specials(SMOLLM2), sources=sources, batch_size=8).batch(0)
    full = [bool(re.search("words", bytes_and_specials().decode(row))) for row in batch["tokens"]]
    shares = batch["weights"].sum(1) / (batch["segments"] > 0).sum(1)
    assert sum(full) == 4 and all((share > 0.9) == text for share, text in zip(shares, full, strict=True))
