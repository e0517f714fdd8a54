"""RULER's and Lost in the Middle's prompts: a reader that knows nothing of how they were made answers them."""

import collections
import json
import random
import re

import pytest

from giraffe_jax import evals
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import ruler_prompts, scoring
from giraffe_jax.evals.tasks import key_values, ruler
from giraffe_jax.tokenizer import ByteTokenizer
from tests.evals import made

BYTES = ByteTokenizer()
LENGTH = 6000


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return made.book(tmp_path_factory.mktemp("books"))


def held(text, expected):
    return scoring.match_all(text, expected)["match_all"]


def make(kind, book, **keys):
    return evals.build(dict(name="ruler", kind=kind, lengths=[LENGTH], documents=[book], n=4) | keys)


def search(pattern, text):
    found = re.search(pattern, text)
    assert found
    return found[1]


def read_needles(prompt):
    """What is asked for, by the sentences of the prompt alone."""
    found = collections.defaultdict(list)
    for _, key, value in re.findall(r"One of the special magic (numbers|uuids) for (\S+) is: (\S+)\.", prompt):
        found[key].append(value)
    asked = search(r"special magic \w+ for ([^\n]+?) mentioned in the provided text\?", prompt)
    return [v for key in re.split(r", and |, ", asked) for v in found[key]]


def read_chain(prompt):
    asked = prompt.rindex("Memorize and track")
    value = search(r"assigned the value (\d+) in", prompt[asked:])
    names, pairs = [], re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", prompt[asked:])
    while new := [name for name, source in pairs if source in (value, *names) and name not in names]:
        names += new
    return names


def read_common(prompt):
    asked = prompt[prompt.rindex("Below is a numbered list") :]
    words = re.findall(r"\d+\. (\S+)", asked[: asked.index("Question:")])
    return [w for w, _ in collections.Counter(words).most_common(10)]


def read_frequent(prompt):
    text = prompt[prompt.index("coded words. ") + 13 : prompt.index("\nQuestion:")]
    return [w for w, _ in collections.Counter(w for w in text.split() if w != "...").most_common(3)]


READERS = dict.fromkeys(ruler.NEEDLES, read_needles) | dict(vt=read_chain, cwe=read_common, fwe=read_frequent)


def length_of(kind):
    return 9000 if kind == "cwe" else LENGTH  # thirty times ten words are many bytes


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_of_the_prompt_scores_one_and_silence_scores_nothing(kind, book):
    examples = ruler.examples(make(kind, book), BYTES, length_of(kind))
    for e in examples:
        prompt, said = BYTES.decode(e.prompt), BYTES.decode(e.answer)
        found = READERS[kind](prompt)
        assert held(" ".join(found), e.expected) == 1.0 and len(found) == len(e.expected)
        assert held(said, e.expected) == 1.0  # so is the answer that teacher forcing asks for
        assert held("", e.expected) == 0.0
        if kind in ruler.DETERMINED:
            assert kind == "vt" or str(e.expected[0]) not in prompt[prompt.rindex("provided text") :]
    assert len({e.prompt for e in examples}) == 4
    assert ruler.examples(make(kind, book, n=2), BYTES, length_of(kind)) == examples[:2]


@pytest.mark.parametrize("kind", READERS)
def test_prompts_are_as_long_as_they_can_be(kind, book):
    slack = 170 if kind == "niah_multikey_3" else 120  # one unit of what fills
    for e in ruler.examples(make(kind, book), BYTES, length_of(kind)):
        assert length_of(kind) - slack < len(e.prompt) + len(e.answer) <= length_of(kind)


@pytest.mark.parametrize("kind", ["niah_single_1", "niah_single_2", "niah_multikey_2"])
def test_a_single_needle_lies_at_its_depth(kind, book):
    for depth in (0.0, 0.3, 1.0):
        (e,) = ruler.examples(make(kind, book, n=1, depths=[depth]), BYTES, LENGTH)
        prompt = BYTES.decode(e.prompt)
        context = prompt[prompt.index("afterwards.\n") : prompt.rindex("\nWhat ")]
        at = context.index(e.expected[0]) / len(context)
        assert abs(at - depth) < 0.06 and abs(e.depth - depth) < 0.02


def test_prompts_are_the_published_ones(book):
    """Released templates, written out once more."""
    (e,) = ruler.examples(make("niah_single_1", book, n=1), BYTES, LENGTH)
    prompt, (key,) = BYTES.decode(e.prompt), re.findall("for (.+) is: ", BYTES.decode(e.prompt))
    assert prompt.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
        "the number afterwards.\n"
    )
    assert prompt.endswith(
        f"\nWhat is the special magic number for {key} mentioned in the provided text? The special magic number for "
        f"{key} mentioned in the provided text is"
    )
    assert f"\nOne of the special magic numbers for {key} is: {e.expected[0]}.\n" in prompt
    (e,) = ruler.examples(make("niah_multiquery", book, n=1), BYTES, LENGTH)
    assert re.search(
        r"\nWhat are all the special magic numbers for \S+, \S+, \S+, and \S+ mentioned in the provided text\?",
        BYTES.decode(e.prompt),
    )
    (e,) = ruler.examples(make("vt", book, n=1), BYTES, LENGTH)
    assert re.search(
        r"Question: Find all variables that are assigned the value (\d{5}) in the text above\. Answer: According to "
        r"the chain\(s\) of variable assignment in the text above, 5 variables are assigned the value \1, they are: $",
        BYTES.decode(e.prompt),
    )


def test_what_makes_no_sense_is_refused(book):
    with pytest.raises(ConfigError, match="'teacher' asks for one text, and the answers of cwe have no order"):
        make("cwe", book, scoring=["teacher"])
    with pytest.raises(ConfigError, match="niah_single_2 hides its needles in text; name files"):
        make("niah_single_2", book, documents=[])
    with pytest.raises(ConfigError, match="vt hides more than one thing"):
        make("vt", book, depths=[0.5])
    with pytest.raises(ConfigError, match="ruler/cwe at length 300: 300 tokens are not enough"):
        ruler.examples(make("cwe", book), BYTES, 300)


def test_as_much_is_generated_as_published_unless_told(book):
    assert [make(k, book).new_tokens for k in ("niah_single_1", "vt", "cwe", "fwe")] == [128, 30, 120, 50]
    assert make("vt", book, new_tokens=7).new_tokens == 7 and evals.label(make("vt", book)) == "ruler/vt"


@pytest.mark.parametrize("kind", ["qa_1", "qa_2"])
def test_questions_stand_among_documents_of_the_same_article_first(kind, tmp_path):
    path = (made.squad if kind == "qa_1" else made.hotpot)(tmp_path)
    task = make(kind, path, n=6, lengths=[1200], scoring=["teacher", "generate"])
    for i, e in enumerate(ruler.examples(task, BYTES, 1200)):
        text = BYTES.decode(e.prompt)
        documents = re.split(r"\n\nDocument \d+:\n", text[: text.rindex("\n\nAnswer the question")])[1:]
        asked = search("Question: (.+) Answer:$", text)
        assert text.startswith(ruler_prompts.QUESTION[:60]) and e.expected[0] in "".join(documents)
        assert BYTES.decode(e.answer) == f" {e.expected[0]}" and len(set(documents)) == len(documents) > 4
        if kind == "qa_1":
            a, p = divmod(i, 5)
            assert asked == f"What color is door {a}-{p}?" and e.expected == (f"color{a}{p}", f"Color{a}{p} paint")
            assert all(any(f"Door {a}-{k} is" in d for d in documents) for k in range(5))
            at = [f"Door {a}-{p} is" in d for d in documents].index(True)
            assert e.depth == pytest.approx(at / (len(documents) - 1))
        else:
            assert asked == f"Which fact has number {i}?"
            assert all(any(f"Title {i} {k}\n" in d for d in documents) for k in range(3))
    all_of_them = make(kind, path, n=1, lengths=[50_000])
    (e,) = ruler.examples(all_of_them, BYTES, 50_000)
    text = BYTES.decode(e.prompt)
    documents = re.split(r"\n\nDocument \d+:\n", text[: text.rindex("\n\nAnswer the question")])[1:]
    times = collections.Counter(documents).values()  # too few for the length, they repeat, one as often as another
    assert len(times) == (20 if kind == "qa_1" else 36) and max(times) - min(times) <= 1 < min(times)
    assert 49_000 < len(e.prompt) + len(e.answer) <= 50_000


def test_a_file_of_questions_that_is_none_is_named(tmp_path, book):
    with pytest.raises(ConfigError, match=r"qa_1 takes one file, SQuAD's dev-v2\.0\.json; got \(\)"):
        make("qa_1", book, documents=[])
    with pytest.raises(ConfigError, match="ruler.documents: no such file"):
        ruler.examples(make("qa_1", "no/such.json"), BYTES, 1200)
    with pytest.raises(ConfigError, match=r"is not SQuAD's dev-v2\.0\.json \(TypeError"):
        ruler.examples(make("qa_1", made.hotpot(tmp_path)), BYTES, 1200)


def test_one_of_several_chains_is_asked_for(book):
    for e in ruler.examples(make("vt", book, chains=3, hops=2), BYTES, LENGTH):
        text = BYTES.decode(e.prompt)
        assert len(e.expected) == 3 and set(read_chain(text)) == set(e.expected)
        assert len(re.findall("VAR [A-Z]{5} = ", text)) == 9


@pytest.mark.parametrize("compat", [True, False])
def test_only_compat_shuffles_all_examples_alike(compat, book, monkeypatch):
    orders = {}

    def spy(rng, shuffle, size, *, words):
        order = list(range(9))
        shuffle(order)
        orders.setdefault(rng.random(), set()).add(tuple(order))  # by example, whatever its size
        return "x" * size, ["a"], " a", 0.0

    monkeypatch.setattr(ruler_prompts, "frequent", spy)
    ruler.examples(make("fwe", book, n=5, compat=compat), ByteTokenizer(), 400)
    assert len(orders) == 5 and all(len(found) == 1 for found in orders.values())
    assert len(set.union(*orders.values())) == (1 if compat else 5)


def test_compat_keeps_one_order_and_room_for_the_output(book):
    def order(seed, shuffle):
        text, *_ = ruler_prompts.common(random.Random(seed), shuffle, 50, short=False)
        words = re.findall(r"\d+\. (\S+)", text[text.rindex("Below is a") : text.rindex("Question:")])
        return [words.index(w) for w in words]  # which places hold the same word

    assert (
        order(1, random.Random(7).shuffle) == order(2, random.Random(7).shuffle) != order(2, random.Random(8).shuffle)
    )
    free, kept = (ruler.examples(make("cwe", book, n=3, compat=c), BYTES, 9000) for c in (False, True))
    assert all(8700 < len(e.prompt) + len(e.answer) <= 9000 for e in free)
    # Answers are longer than what the release generates, in bytes.
    assert all(len(e.prompt) + max(len(e.answer), 120) <= 9000 for e in kept)
    (single,) = ruler.examples(make("niah_single_1", book, n=1, compat=True), BYTES, LENGTH)
    assert LENGTH - 128 - 120 < len(single.prompt) <= LENGTH - 128


def pairs_task(**keys):
    return evals.build(dict(name="key_values", lengths=[LENGTH], n=4) | keys)


@pytest.mark.parametrize("depth", [None, 0.0, 0.5, 1.0])
def test_the_object_is_json_and_holds_the_answer_at_its_depth(depth):
    for e in key_values.examples(pairs_task(depths=None if depth is None else [depth]), BYTES, LENGTH):
        prompt = BYTES.decode(e.prompt)
        found = json.loads(prompt[prompt.index("{") : prompt.index("}") + 1])
        asked = search('Key: "(.+)"\nCorresponding value: "$', prompt)
        assert (found[asked],) == e.expected and BYTES.decode(e.answer) == found[asked]
        assert e.depth == pytest.approx(list(found).index(asked) / (len(found) - 1))
        assert depth is None or abs(e.depth - depth) < 0.51 / (len(found) - 1)
        assert LENGTH - 85 < len(e.prompt) + len(e.answer) <= LENGTH


def test_the_prompt_of_lost_in_the_middle():
    assert key_values.prompt([("a", "b"), ("c", "d")], "c") == (
        "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n"
        '{"a": "b",\n "c": "d"}\n\nKey: "c"\nCorresponding value:'
    )
    (e,) = key_values.examples(pairs_task(n=1, cue=False, scoring=["generate"]), BYTES, LENGTH)
    assert BYTES.decode(e.prompt).endswith("\nCorresponding value:")
    with pytest.raises(ConfigError, match="'teacher' needs cue=True"):
        pairs_task(cue=False)


def test_texts_are_scored_by_the_published_rules():
    said, texts = "it is ABC, and def", ("abc", "DEF", "ghi")
    assert held(said, texts) == pytest.approx(2 / 3)
    assert scoring.match_part(said, texts) == {"match_part": 1} and scoring.match_part(said, ["x"])["match_part"] == 0
    assert scoring.presence(said, [" ABC "]) == {"presence": 1} and scoring.presence(said, ["abc"])["presence"] == 0


def test_rows_of_texts(tiny, book):
    task = make("niah_multiquery", book, n=2, new_tokens=4)
    rows = list(ruler.rows(task, tiny, 2000, tiny.config.bind(2000.0), tokens_per_batch=4000))
    assert [r["metrics"].keys() for r in rows] == [{"match_all"}] * 2 and all(len(r["expected"]) == 4 for r in rows)
    task = pairs_task(n=2, scoring=["teacher", "generate"], new_tokens=4)
    rows = list(key_values.rows(task, tiny, 500, tiny.config.bind(500.0), tokens_per_batch=1000))
    assert rows[0]["metrics"].keys() == {"teacher", "answer_nll", "match_all"}
    assert evals.build(dict(name="key_values", lengths=[500])).scoring == ("teacher",)
