"""Evaluations of a small real model against transformers: perplexity by every protocol, and greedy text."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from giraffe_jax import hf, inference
from giraffe_jax.evals import run, scoring
from giraffe_jax.evals.tasks import perplexity
from tests.close import decided

STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260K"
SCRIPT = Path(__file__).parents[2] / "experiments/evaluation/by_transformers.py"
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(not STORIES.is_dir(), reason="no shared data")]

LENGTHS = (64, 128)
STORY = (
    "Once upon a time, there was a little {0} named Lily. She loved to play with her {1} in the park. One day, she saw "
    'a big {2} near the tree.\n"Can I have it?" asked Lily. Her mom smiled and said, "Yes, you can, but be careful."\n'
)


@pytest.fixture(scope="module")
def theirs():
    """The script, the model and the tokenizer on transformers' side."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("evaluation_by_transformers", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script, *script.load(STORIES)


@pytest.fixture(scope="module")
def stories():
    return hf.load(STORIES)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    words = [("girl", "ball", "dog"), ("cat", "red hat", "box"), ("bird", "toys", "flower")]
    for i, name in enumerate(("a.txt", "b.txt")):
        (folder / name).write_text("\n".join(STORY.format(*w) for w in (words[i:] + words[:i]) * 2))
    return sorted(folder.iterdir())


def test_perplexity_by_every_protocol(theirs, stories, documents):
    script, model, tokenizer = theirs
    places = tuple(map(str, documents))
    tasks = [perplexity.Task(LENGTHS, places, protocol=p, n=6, label=p) for p in script.PROTOCOLS]
    rows = list(run.evaluate(stories, tasks, lambda length: stories.config.bind(length=length)))
    ours = {(r["task"], r["length"], r["document"], r["window"]): r["metrics"] for r in rows}
    found = script.measure(model, tokenizer, documents, LENGTHS, 3)
    want = {(r["protocol"], r["length"], r["document"], r["window"]): r for r in found}
    assert ours.keys() == want.keys() and len(want) == 2 * (1 + 3 * 3) * len(LENGTHS)
    for key, r in want.items():
        assert ours[key]["tokens"] == r["tokens"], key
        # Of the mean of losses of which each is right to what logits of another library are: 1e-5 is 84 ulps of it.
        assert ours[key]["nll"] == pytest.approx(r["nats"] / r["tokens"], rel=1e-5), key


@dataclasses.dataclass(frozen=True)
class Asked:
    """What `scoring.retrieval_rows` reads of a task."""

    new_tokens: int
    scoring: tuple[str, ...] = ("teacher", "generate")


def test_an_answer_is_generated_exactly_where_the_teacher_says_so(theirs, stories, documents):
    """Answers are what transformers says, and the same with one token of it changed, at any place."""
    script, model, _ = theirs
    count, ids = 6, stories.encode(documents[0].read_text())
    examples = []
    for i, end in enumerate(range(20, 110, 15)):
        prompt = ids[:end]
        answer = script.greedy(model, prompt, count)
        assert len(answer) == count and not undecided(model, prompt + answer)[end - 1 : -1].any()
        wrong = answer.copy()
        wrong[i % count] = answer[i % count] % 500 + 3
        examples += [scoring.Example(tuple(prompt), tuple(a), 0, 0.5) for a in (answer, wrong)]
    encoding = stories.config.bind(128)
    rows = scoring.retrieval_rows(stories, examples, 128, encoding, task=Asked(count), tokens_per_batch=4096)
    prompts = [e.prompt for e in examples]
    texts = inference.generate(stories, prompts, count, encoding, length=128, batch=len(prompts), width=128)
    for i, (row, e, text) in enumerate(zip(rows, examples, texts, strict=True)):
        assert row["metrics"]["teacher"] == int(tuple(text) == e.answer) == (i + 1) % 2
        assert row["output"] == stories.tokenizer.decode(text)


def undecided(model, tokens):
    """Returns where the likeliest next token of transformers' leads by no more than rounding."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return ~decided(model(torch.tensor([tokens])).logits[0].numpy(), ulps=1024)
