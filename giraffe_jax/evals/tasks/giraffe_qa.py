"""The Giraffe paper's questions on long documents: FreeFormQA, and AlteredNumericQA, whose answers no model can know.

Pal et al., "Giraffe", arXiv:2308.10882. `files` are the published cases (abacusai/WikiQA-Free_Form_QA and
WikiQA-Altered_Numeric_QA: Parquet or JSON lines), each used at the shortest length that it fits into. `questions` are
your own: JSON lines of document, question and answer, where the answer is a span of the document. Both tasks are built
from them in the published way: `length` tokens of the document, with the answer in the first tenth, anywhere, or in the
last tenth, and the question before or after the document. That makes six consecutive cases of each question.

AlteredNumericQA uses only questions whose answer is a number. Throughout the document that number is replaced by
another one: a year by one at most ten years away, others by one with the same number of digits. A model that answers
right must have read the document.

Documents must fill the longest of `lengths`; every length asks the same questions. Differences from the paper: if a
document is too short on one side of the answer, it wraps around (its beginning follows its end, after an empty line),
where the authors chose documents long enough; the new number does not already occur in the document. Base models get
"Answer:" at the end (`cue`), as in most harnesses; published prompts end with the question or the document. Scored by
the published rule, presence accuracy; BLEU, which the authors also report, is not computed.
"""

import dataclasses
import random
import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

from giraffe_jax.config import ConfigError
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import cases, filling, lengths, metrics, scoring
from giraffe_jax.evals.scoring import Count, Example, Scoring, Seed

INSTRUCTION = (
    "Answer the question based on the information provided in the document given below. The answer should be a single "
    "word or a number or a short phrase of few words"
)
CUE = "\nAnswer:"
PLACES = ("start", "random", "end")
VARIANTS = tuple((place, first) for place in PLACES for first in (False, True))  # (place, question first), as published
NUMBER = re.compile(r"\d[\d,]*(\.\d+)?")
WORD = re.compile(r"\s*(?:\S{1,40}(?!\S)|\S)")  # a word; of longer ones and of scripts without spaces, one character
YEARS = range(1000, 2101)
DRAWS = 200  # attempts at a number that does not occur in the document


@dataclasses.dataclass(frozen=True)
class GiraffeQA:
    """The keys of a Giraffe task; `n` examples for every length."""

    VERSION: ClassVar[int] = 2  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    kind: Literal["free_form", "altered_numeric"]  # FreeFormQA, or AlteredNumericQA.
    files: tuple[str, ...] = ()  # Published cases.
    questions: tuple[str, ...] = ()  # JSON lines of {"document", "question", "answer"} to build cases from.
    n: Count = 60  # Examples of each length: six of each question.
    scoring: tuple[Scoring, ...] = ("generate",)
    cue: bool = True
    new_tokens: Length = 50  # Most tokens to generate, as published.
    seed: Seed = 0
    name: Literal["giraffe_qa"] = "giraffe_qa"
    label: str | None = None

    def __post_init__(self):
        if self.label is None:
            object.__setattr__(self, "label", f"giraffe_qa/{self.kind}")
        scoring.check_retrieval(self)
        if bool(self.files) == bool(self.questions):
            raise ConfigError("giraffe_qa: name either `files` of published cases or `questions` to build them from.")
        if "teacher" in self.scoring and not self.cue:
            raise ConfigError(
                "giraffe_qa.scoring: 'teacher' needs cue=True; without it the form of the answer is open."
            )


Task = GiraffeQA
METRICS = (metrics.TEACHER, metrics.PRESENCE, metrics.ANSWER_NLL)


class Question(NamedTuple):
    """A document, a question about it, the answer, and the answer's offset in the document, in characters."""

    document: str
    question: str
    answer: str
    at: int


def rows(task: GiraffeQA, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per example; the metrics are those of `scoring.retrieval_rows`."""
    yield from scoring.retrieval_rows(
        lm, examples(task, lm.tokenizer, length), length, encoding, task=task, tokens_per_batch=tokens_per_batch,
        judge=scoring.presence,
    )  # fmt: skip


@scoring.remembered
def examples(task: GiraffeQA, tokenizer: Any, length: int) -> list[Example]:
    """Returns n examples in at most `length` tokens each, answer included (fewer if there are fewer questions).

    ConfigError if there is none, or a question does not fit into `length`.
    """
    if task.files:
        where, kinds = "giraffe_qa.files", {"conversations": list}
        return cases.asked(
            cases.read(task.files, kinds, where), lambda row: _published(row, task, tokenizer), task, length, where
        )
    items = _long_enough(task, tokenizer)
    variants = [(items[i // 6], *VARIANTS[i % 6], i) for i in range(min(task.n, 6 * len(items)))]
    fill = filling.Filler(task, tokenizer, length, probe=64)
    return [_built(task, fill, *variant) for variant in variants]


def read(task: GiraffeQA) -> list[Question]:
    """Returns the questions that the task can ask; for AlteredNumericQA their numbers are already altered."""
    kinds = {"document": str, "question": str, "answer": str}
    questions = []
    for i, row in enumerate(cases.read(task.questions, kinds, "giraffe_qa.questions")):
        document, question, answer = row["document"], row["question"].strip(), row["answer"].strip()
        if task.kind == "altered_numeric":
            if not NUMBER.fullmatch(answer):
                continue
            changed = altered(document, answer, random.Random(f"giraffe_qa {task.seed} {i}"))
            if changed is None:
                continue
            document, answer = changed
        match = _occurrence(answer).search(document)
        if match is not None:  # else the answer is not a span of the document: left out
            questions.append(Question(document, question, answer, match.start()))
    if not questions:
        condition = (
            "whose answer is a number that can be altered"
            if task.kind == "altered_numeric"
            else "whose answer is in its document"
        )
        raise ConfigError(f"giraffe_qa.questions: none {condition} in {', '.join(task.questions)}.")
    return questions


def _long_enough(task: GiraffeQA, tokenizer: Any) -> list[Question]:
    questions: list[Question] = []
    longest = 0
    for item in read(task):
        size = len(tokenizer.encode(item.document))
        longest = max(longest, size)
        questions += [item] if size >= max(task.lengths) else []
        if 6 * len(questions) >= task.n:
            break
    if not questions:
        raise lengths.refusal(task, max(task.lengths), longest)
    return questions


def altered(document: str, answer: str, rng: random.Random) -> tuple[str, str] | None:
    """Returns the document with every occurrence of the answer replaced by another number, and that number.

    An integer from 1000 to 2100 counts as a year and changes by at most ten. In any other number every digit is
    redrawn, the first not as 0, and separators are kept. None if all numbers that were tried occur in the document.
    """
    year = answer.isdigit() and int(answer) in YEARS
    for _ in range(DRAWS):
        if year:
            new = str(int(answer) + rng.choice([*range(-10, 0), *range(1, 11)]))
        else:
            drawn = [rng.choice("123456789"), *rng.choices("0123456789", k=len(answer))]
            new = "".join(drawn.pop(0) if c.isdigit() else c for c in answer)
        if new != answer and (len(answer) == 1 or not _digits(new).search(document)):
            return _digits(answer).sub(new, document), new
    return None


def prompt(document: str, question: str, *, first: bool) -> str:
    """Returns the published prompt; with `first`, the question is before the document."""
    parts = [f"Document:\n{document}", f"Question:\n{question}"]
    return "\n\n".join([INSTRUCTION, *(reversed(parts) if first else parts)])


def published(example: Example, tokenizer: Any) -> dict[str, Any]:
    """Returns an example as a row of the published files."""
    text = tokenizer.decode(example.prompt[len(tokenizer.prefix) :]).removesuffix(CUE)
    human = {"from": "human", "tok_len": len(example.prompt), "value": text}
    agent = {"from": "agent", "tok_len": len(example.answer), "value": tokenizer.decode(example.answer).strip()}
    return {"conversations": [human, agent]}


def _published(row: dict[str, Any], task: GiraffeQA, tokenizer: Any) -> Example:
    messages = {part.get("from"): part.get("value") for part in row["conversations"] if isinstance(part, dict)}
    text, answer = messages.get("human"), messages.get("agent")
    if not isinstance(text, str) or not isinstance(answer, str):
        raise ConfigError("giraffe_qa.files: a case's conversations are not one text of 'human' and one of 'agent'.")
    answer = answer.strip()
    match = _occurrence(answer).search(text, max(0, text.find("Document:")))
    made = _made(task, text.rstrip(), answer, match.start() / len(text) if match else 0.0)
    return filling.example(tokenizer, made)


def _built(task: GiraffeQA, fill: filling.Filler, item: Question, place: str, first: bool, number: int) -> Example:
    # The document is rotated to start at the answer and wraps around, so that there is text on both sides of it.
    before, after = item.document[: item.at], item.document[item.at :].rstrip()
    gap = before[len(before.rstrip()) :]
    text = f"{after}\n\n{before}".rstrip()
    words = [m.span() for m in WORD.finditer(text)]
    answer_end = next(i for i, (_, end) in enumerate(words, 1) if end >= len(item.answer))  # words that hold the answer
    share = random.Random(f"giraffe_qa {task.seed} {fill.length} {number}").random()
    share = {"start": 0.1 * share, "random": 0.1 + 0.8 * share, "end": 0.9 + 0.1 * share}[place]

    def build(extra: int) -> filling.Made:
        ahead = round(share * extra)
        head = text[words[-ahead][0] :] if ahead else ""
        document = f"{head}{gap}{text[: words[answer_end + extra - ahead - 1][1]]}".strip()
        prompt_text = prompt(document, item.question, first=first)
        return _made(task, prompt_text, item.answer, len(head.lstrip()) / len(document))

    return fill(build, most=len(words) - answer_end)[1]


def _made(task: GiraffeQA, text: str, answer: str, where: float) -> filling.Made:
    return filling.Made(text + (CUE if task.cue else ""), f" {answer}", (answer,), where)


def _occurrence(answer: str) -> re.Pattern[str]:
    """Matches the answer where it is not part of a longer word."""
    return re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)" if answer else r"(?!)")


def _digits(number: str) -> re.Pattern[str]:
    """Matches a number that is not part of a longer one."""
    return re.compile(rf"(?<!\d){re.escape(number)}(?!\d)")
