"""Haystacks of any script: no sentence rule of one language decides how long a prompt is."""

import re
import time

import pytest

from giraffe_jax import evals
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import haystack, lengths
from giraffe_jax.tokenizer import ByteTokenizer, load_tokenizer
from tests.evals import made

BYTES = ByteTokenizer()
TEXTS = {
    "English": made.text(0, 3000),
    "Chinese": "从前有一个小女孩。她住在山里！「真的吗？」他问。" * 1500,
    "Russian": "Жила была одна девочка. Она жила в горах! Правда ли это? " * 800,
    "lower-case German": "über den bergen wohnte ein mädchen. es hatte einen hund; ölig war sein fell. " * 600,
    "Python": "def walk(tree, depth=0):\n    for leaf in tree.leaves:\n        yield leaf, depth\n\n\n" * 600,
    "Arabic": "عاشت فتاة في الجبل؟ كان لها كلب. " * 1200,
    "Hindi": "एक लड़की पहाड़ में रहती थी। उसका एक कुत्ता था॥ " * 900,
    "Thai, one line": "กาลครั้งหนึ่งนานมาแล้วมีเด็กผู้หญิงอยู่ในภูเขา" * 900,
    "no space, no mark": "山里有一个小女孩她有一只狗" * 2000,
    "words alone": "the old giraffe saw rain and slowly walked over far hills " * 800,
    "one short line": "Once upon a time.",
}
HIDING = [
    dict(name="ruler", kind="niah_single_2"),
    dict(name="ruler", kind="niah_multiquery"),
    dict(name="needle", depths=[0.0, 0.5, 1.0], distractors=2),
]


def examples(tokenizer, length, path, n=3, **keys):
    task = evals.build(dict(lengths=[length], documents=[str(path)], n=n) | keys)
    return evals.module(task.name).examples(task, tokenizer, length)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("keys", HIDING, ids=lambda keys: keys.get("kind", keys["name"]))
def test_prompts_of_any_text_are_as_long_as_asked(keys, text, tmp_path):
    path = tmp_path / "hay.txt"
    path.write_text(TEXTS[text])
    for length in (700, 1024, 8192):
        for e in examples(BYTES, length, path, **keys):
            assert 0.98 * length <= len(e.prompt) + len(e.answer) <= length
            prompt = BYTES.decode(e.prompt)
            assert str(e.expected if isinstance(e.expected, int) else e.expected[0]) in prompt
            assert "\ufffd" not in prompt


@pytest.mark.parametrize("text", [t for t in TEXTS if t != "one short line"])
def test_a_needle_lies_at_its_depth_in_any_text(text, tmp_path):
    path = tmp_path / "hay.txt"
    path.write_text(TEXTS[text])
    for depth in (0.0, 0.3, 1.0):
        (e,) = examples(BYTES, 8192, path, n=1, name="ruler", kind="niah_single_2", depths=[depth])
        prompt = BYTES.decode(e.prompt)
        context = prompt[prompt.index("afterwards.\n") : prompt.rindex("\nWhat ")]
        assert abs(context.index(e.expected[0]) / len(context) - depth) < 0.06 and abs(e.depth - depth) < 0.03


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_and_none_is_long(text):
    found = haystack.pieces(TEXTS[text])
    assert " ".join("".join(found).split()) == " ".join(TEXTS[text].split())
    assert max(len(piece.encode()) for piece in found) <= haystack.PROSE
    assert text == "English" or max(len(piece.encode()) for piece in found) <= haystack.LONGEST


def test_sentences_end_where_their_script_ends_them():
    def found(text):  # so long that the rule for English prose does not do
        return [piece.strip() for piece in haystack.pieces(text * 60)][: len(haystack.pieces(text * 60)) // 60]

    assert found("从前有一个小女孩。她说：「好！」他问？") == ["从前有一个小女孩。", "她说：「好！」", "他问？"]
    assert found("एक लड़की थी। उसका कुत्ता था॥ ") == ["एक लड़की थी।", "उसका कुत्ता था॥"]
    assert found("عاشت فتاة؟ كان لها كلب. ") == ["عاشت فتاة؟", "كان لها كلب."]
    assert found("über 3.5 km. ölig… ja? ") == ["über 3.5 km.", "ölig…", "ja?"]
    assert found("ሰላም ነው። ደህና ነህ፧ ") == ["ሰላም ነው።", "ደህና ነህ፧"]


def test_prose_is_cut_as_it_always_was():
    text = '"Stop!" he said. She left at 3.5 p.m. today.  (So it was.)\nWas it? Yes. and no'
    assert haystack.pieces(text) == [
        s + " " for s in re.split(r"(?<=[.!?])\s+(?=[\"'(A-Z0-9])", " ".join(text.split()))
    ]


def test_needles_stand_between_pieces_with_space_around():
    assert haystack.joined(["a ", "b "], [(0, "N"), (2, "M"), (1, "L")]) == "N a L b M"
    assert haystack.joined(["甲。", "乙。"], [(1, "N"), (2, "M")]) == "甲。 N 乙。 M"
    assert haystack.joined(["a ", "b "], []) == "a b" and haystack.joined([], [(0, "N")]) == "N"


def test_what_cannot_be_filled_is_refused_in_one_way(tmp_path):
    talks, questions, book = made.conversations(tmp_path), made.questions(tmp_path), made.book(tmp_path)
    for keys, file in [
        (dict(name="topics", conversations=[talks]), "conversations.jsonl"),
        (dict(name="giraffe_qa", kind="free_form", questions=[questions]), "questions.jsonl"),
        (dict(name="perplexity", documents=[book]), "a.txt"),
        (dict(name="copying", kind="text", documents=[book]), "a.txt"),
        (dict(name="longppl", documents=[book], evaluator="other", window=64), "a.txt"),
    ]:
        task = evals.build(dict(lengths=[300_000], n=1) | keys)
        said = rf"{task.label or task.name} at length 300,000: expected 300,000 tokens, .* got [\d,]+ from .*{file}"
        with pytest.raises(ConfigError, match=said):
            evals.module(task.name).examples(task, BYTES, 300_000)


def test_every_task_is_compared(tmp_path, monkeypatch):
    """A task that makes half of what is asked does not get through, whatever it is called."""
    seen = []
    monkeypatch.setattr(lengths, "check", lambda task, length, examples: seen.append((task.name, len(examples))))
    for name in evals.names():
        files = dict(perplexity="documents", copying="documents", longppl="documents", needle="documents")
        keys = {files[name]: [made.book(tmp_path)]} if name in files else {}
        keys |= dict(ruler=dict(kind="niah_single_1"), giraffe_qa=dict(kind="free_form")).get(name, {})
        keys |= dict(questions=[made.questions(tmp_path)]) if name == "giraffe_qa" else {}
        keys |= dict(conversations=[made.conversations(tmp_path)]) if name == "topics" else {}
        keys |= dict(evaluator="other", window=64) if name == "longppl" else {}
        task = evals.build(dict(name=name, lengths=[2500], n=1) | keys)
        evals.module(name).examples(task, BYTES, 2500)
    assert [name for name, _ in seen] == evals.names() and all(n for _, n in seen)


def test_what_is_too_short_by_more_than_its_unit_is_refused():
    task = evals.build(dict(name="passkey", lengths=[1000]))
    e = evals.module("passkey").examples(task, BYTES, 1000)[0]
    for tokens, slack, fine in [(980, 0, True), (979, 0, False), (900, 80, True), (899, 80, False)]:
        cut = type(e)(e.prompt[: tokens - len(e.answer)], e.answer, e.expected, e.depth, slack)
        assert lengths.short(cut, 1000) is not fine
        if not fine:
            with pytest.raises(ConfigError, match=f"passkey at length 1,000: .* got {tokens}"):
                lengths.check(task, 1000, [e, cut])


def asked_about(text, folder):
    """Conversations and a question on a text, for the tasks that take no plain text."""
    parts = [text[i : i + 100].replace("\n", " ") for i in range(0, len(text), 100)][:400]
    talks = [
        {"topic": f"Tea {i}", "conversation": f"USER: I would like to discuss the topic of tea {i}. {part} \n "}
        for i, part in enumerate(parts)
    ]
    half = len(text) // 2
    document = f"{text[:half]} The house has 48,213 bricks. {text[half:]}"
    question = {"document": document, "question": "How many bricks does the house have?", "answer": "48,213"}
    talks = made.lines_of(folder / "talks.jsonl", talks)
    return dict(
        topics=dict(conversations=[talks]), giraffe_qa=dict(questions=[made.lines_of(folder / "q.jsonl", [question])])
    )


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["topics", "giraffe_qa"])
def test_conversations_and_questions_in_any_script_fill_the_length(name, text, tmp_path):
    whole = TEXTS[text] * (3000 if text == "one short line" else 3)
    for length in (1024, 8192):
        keys = dict(kind="free_form") if name == "giraffe_qa" else {}
        keys |= asked_about(whole, tmp_path)[name]
        task = evals.build(dict(name=name, lengths=[length], n=6) | keys)
        found = evals.module(task.name).examples(task, BYTES, length)
        assert len(found) == 6
        for e in found:
            size = len(e.prompt) + len(e.answer)
            unit = max(60, 0.02 * length) if name == "giraffe_qa" else 400  # a word; a conversation
            assert length - unit <= size <= length


@pytest.mark.slow
def test_table_of_lengths_made(tmp_path, capsys):
    """`pytest -n0 -s -m slow tests/evals/test_haystack.py`: asked, made and CPU seconds of every task on five texts."""
    from giraffe_jax.hf.load import locate

    tokenizer = load_tokenizer(locate("giraffe-mini"))
    squad, hotpot = made.squad(tmp_path), made.hotpot(tmp_path)
    hay = tmp_path / "hay.txt"
    kinds = [k for k in evals.module("ruler").NEW_TOKENS]
    tasks = [dict(name="ruler", kind=k) for k in kinds]
    tasks += [dict(name=name) for name in ("needle", "passkey", "lines", "key_values")]
    tasks += [dict(name="copying", kind="text"), dict(name="perplexity"), dict(name="topics")]
    tasks += [dict(name="giraffe_qa", kind=kind) for kind in ("free_form", "altered_numeric")]
    takes_none = "niah_single_1 niah_multikey_2 niah_multikey_3 vt cwe fwe passkey lines key_values".split()
    own = dict.fromkeys(takes_none, {}) | dict(qa_1=dict(documents=[squad]), qa_2=dict(documents=[hotpot]))
    for i, text in enumerate(list(TEXTS)[:5]):
        hay.write_text("\n".join([TEXTS[text]] * 3))
        files = own | asked_about(hay.read_text(), tmp_path)
        for keys in tasks:
            kind = keys["name"] if keys["name"] in files else keys.get("kind", keys["name"])
            if kind in own and i > 0:
                continue  # takes no text: one of them is all
            for length in (512, 2048, 8192):
                named = files.get(kind, dict(documents=[str(hay)]))
                task = evals.build(dict(lengths=[length]) | keys | named)
                start, said = time.process_time(), ""
                try:
                    found = evals.module(task.name).examples(task, tokenizer, length)
                    sizes = [lengths.tokens(e) for e in found]
                    said = f"{min(sizes):5} to {max(sizes):5} of {len(found):3}"
                    assert all(not lengths.short(e, length) and lengths.tokens(e) <= length for e in found)
                except ConfigError as error:
                    said = str(error)
                seconds = time.process_time() - start
                of = "takes no text" if kind in own else text
                with capsys.disabled():
                    print(f"{of:18} {task.label or task.name:22} {length:5}  {said}  {seconds:5.2f} s", flush=True)
