"""Chat templates: what they write, where answers stand, and what a template from anywhere cannot do."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from giraffe_jax.config import ConfigError
from giraffe_jax.tokenizer import ByteTokenizer, JsonTokenizer
from giraffe_jax.tokenizer.chat import STEPS, ChatTemplate, answer_tokens, template_of

pytest.importorskip("jinja2")

# HuggingFaceTB/SmolLM2-135M-Instruct and meta-llama/Meta-Llama-3-8B-Instruct, as they are published.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# The same two, written so that the answers are marked: what transformers takes them from.
_TURN = "{% if message['role'] == 'assistant' %}{% generation %}ANSWER{% endgeneration %}{% else %}ANSWER{% endif %}"
SMOLLM2_MARKED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' }}" + _TURN.replace("ANSWER", "{{ message['content'] + '<|im_end|>' }}")
    + "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
LLAMA3_MARKED = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' }}"
    + _TURN.replace("ANSWER", "{{ message['content'] | trim + '<|eot_id|>' }}")
    + "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PAIRS = [(SMOLLM2, SMOLLM2_MARKED), (LLAMA3, LLAMA3_MARKED)]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CHATS = {
    "two turns": [("system", "Be brief."), ("user", "Hi 🦒"), ("assistant", "Yes."), ("user", "No?"),
                  ("assistant", "Jawohl 🦒🦒")],
    "no system": [("user", "Sum?"), ("assistant", "\n\n  1 + 1\n")],
    "said before": [("user", "Yes."), ("assistant", "Yes."), ("user", "Yes. Yes."), ("assistant", "Yes. Yes.")],
    "twice": [("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")],
    "empty": [("user", "a"), ("assistant", "")],
    "the token itself": [("user", "a"), ("assistant", "x <|im_end|> y <|eot_id|> z")],
}  # fmt: skip


def messages(chat):
    return [dict(role=role, content=content) for role, content in chat]


def bytes_and_specials(template=None):
    """A byte-level tokenizer of two-byte merges with the special tokens of both families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("s", "."), ("Y", "e")]
    vocab = {piece: i for i, piece in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(SPECIAL)
    config = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>")
    return JsonTokenizer(tok, bos="<s>", eos="</s>", config=config | ({"chat_template": template} if template else {}))


def marked(template, chat):
    """The text, and of its tokens the ids and which are of an answer."""
    tokenizer = bytes_and_specials(template)
    found = template_of(tokenizer, "here").render(messages(chat))
    [(ids, offsets)] = tokenizer.encode_offsets([found.text])
    return found.text, ids, answer_tokens(offsets, found.answers)


@pytest.mark.parametrize("chat", ["two turns", "said before", "twice"])
@pytest.mark.parametrize(("template", "end", "begin"), [(SMOLLM2, "<|im_end|>", ""), (LLAMA3, "<|eot_id|>", "<s>")])
def test_the_loss_is_on_answers_and_the_token_that_ends_them(template, end, begin, chat):
    tokenizer = bytes_and_specials()
    text, ids, mask = marked(template, CHATS[chat])
    assert text.startswith(begin) and ids == tokenizer.encode(text)
    said = [content + end for role, content in CHATS[chat] if role == "assistant"]
    assert tokenizer.decode([i for i, here in zip(ids, mask, strict=True) if here]) == "".join(said)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize(("plain", "with_marks"), PAIRS)
def test_prefixes_and_marks_agree(plain, with_marks, chat):
    """Of the same template, with `{% generation %}` and without it."""
    assert marked(plain, CHATS[chat]) == marked(with_marks, CHATS[chat])


@pytest.mark.oracle
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize(("plain", "with_marks"), PAIRS)
def test_transformers_marks_the_same_tokens(tmp_path, plain, with_marks, chat):
    transformers = pytest.importorskip("transformers")
    for name, content in bytes_and_specials(with_marks).files().items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    want = theirs.apply_chat_template(messages(CHATS[chat]), return_dict=True, return_assistant_tokens_mask=True)
    for template in (plain, with_marks):
        text, ids, mask = marked(template, CHATS[chat])
        assert text == theirs.apply_chat_template(messages(CHATS[chat]), tokenize=False, chat_template=template)
        assert ids == want["input_ids"] and mask == [bool(here) for here in want["assistant_masks"]]


def test_what_ends_a_turn_where_no_token_does():
    """Then the line break is all that does."""
    lines = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    text, [(start, stop)] = lines.render(messages([("user", "a"), ("assistant", "b")]))
    assert text[start:stop] == "assistant: b\n"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}{% if loop.last %}</s>{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '...' }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_looks_ahead_is_refused(template):
    chat = messages([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")])
    with pytest.raises(ConfigError, match=r"here: the chat template does not say where answers stand.*generation"):
        ChatTemplate(template, where="here").render(chat)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ strftime_now('%Y') }}", "'strftime_now' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError|unsafe"),
        ("{{ messages.append(1) }}", "SecurityError|not safely callable"),
        ("{% set ns = namespace() %}{% set ns.__html__ = 1 %}", "__html__"),
        ("{% include '/etc/passwd' %}", "TypeError|no loader"),
        ("{% for i in range(99999) %}{% endfor %}", "a range of more than"),
        ("{% set r = range(9000) | list %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}"
         "{% endfor %}", f"its loops take more than {STEPS:,} turns"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "RecursionError|its loops"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "its loops"),
        ("{{ 'x' * 99999999 }}", "makes more than"),
        ("{{ 9 ** 9999999999 }}", "makes more than"),
        ("{% for i in range(9999) %}{{ 'x' * 999 }}{% endfor %}", "writes more than"),
    ],
)  # fmt: skip
def test_what_a_template_cannot_do(template, said):
    with pytest.raises(ConfigError, match=rf"here: the chat template fails \(.*({said})"):
        ChatTemplate(template, where="here").render(messages(CHATS["no system"]))


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ open", "{% generation %}x", "{% elsewhere %}", "x" * (2**20 + 1)]
)
def test_what_is_no_template_is_refused(template):
    with pytest.raises(ConfigError, match="here: the chat template (cannot be read|has 1,048,577 characters)"):
        ChatTemplate(template, where="here")


def test_which_template_a_tokenizer_has():
    several = [dict(name="tools", template="no"), dict(name="default", template="{{ bos_token }}yes")]
    assert template_of(bytes_and_specials(several), "here").render([]).text == "<s>yes"
    tok = bytes_and_specials("no")
    beside = JsonTokenizer(tok._tok, bos="<s>", config=tok._config, beside={"chat_template.jinja": b"file"})
    assert template_of(beside, "here").render([]).text == "file"
    for without in (ByteTokenizer(), bytes_and_specials()):
        with pytest.raises(ConfigError, match="here: the tokenizer has no chat template.*chat_template.jinja"):
            template_of(without, "here")
    prints = {template_of(bytes_and_specials(t), "here").fingerprint for t in (SMOLLM2, LLAMA3, LLAMA3_MARKED)}
    assert len(prints) == 3
