"""From examples to rows: fixed-shape batches through the model, and the two ways to score retrieval.

Teacher-forced: prompt and answer in one forward pass; right if the most likely token is the answer's at every answer
position, which is when greedy decoding would produce the answer. It needs no KV cache, and the answer's loss shows
progress earlier than generation does. Generated: greedy decoding from the prompt, scored by the task's rule, a `Judge`.
"""

import dataclasses
import functools
import hashlib
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from giraffe_jax.config import Bound, ConfigError
from giraffe_jax.evals import lengths
from giraffe_jax.evals.lengths import NAMED

Scoring = Literal["generate", "teacher"]
Count = Annotated[int, Bound(1, high=10**6)]  # bounded, since all examples are built before the first is evaluated
Seed = Annotated[int, Bound(0)]
Share = Annotated[float, Bound(0.0, high=1.0)]


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and its answer as tokens; prompt + answer is the whole text."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    expected: int | tuple[str, ...]  # a number, or the texts that the task's rule looks for in the output
    depth: float  # relative position of the answer (of the first of several): 0 the start, 1 the end
    slack: int = 0  # tokens by which the prompt may be short: the size of one more unit, or room for a longer answer


TAIL = 200  # characters of a prompt's end that determine where its last tokens end
KEPT = 2**22  # most tokens of examples kept in memory, about 36 bytes each
LEAST_SCORED = 32  # fewer tokens of a row are not scored alone: tasks with short answers share a compilation
ASKED = 200  # characters of a prompt's end that a row keeps

# (output, expected) -> metrics: a task's rule for generated output.
Judge = Callable[[str, Any], dict[str, float]]


def numbers(text: str, expected: int) -> dict[str, float]:
    """Returns whether the first number in the output is the answer (Giraffe's rule), and whether the last one is
    (LongEval's)."""
    return {"generate": int(first_number(text) == expected), "generate_last": int(last_number(text) == expected)}


def match_all(text: str, expected: Sequence[str]) -> dict[str, float]:
    """Returns the share of the texts that the output contains, ignoring case (RULER's string_match_all)."""
    return {"match_all": sum(e.lower() in text.lower() for e in expected) / len(expected)}


def match_part(text: str, expected: Sequence[str]) -> dict[str, float]:
    """Returns whether the output contains one of the texts, ignoring case (RULER's string_match_part)."""
    return {"match_part": int(any(e.lower() in text.lower() for e in expected))}


def presence(text: str, expected: Sequence[str]) -> dict[str, float]:
    """Returns whether the output contains one of the texts, case-sensitively (Giraffe's presence accuracy)."""
    return {"presence": int(any(e.strip() in text for e in expected))}


def remembered(examples: Callable[[Any, Any, int], list[Any]]) -> Callable[[Any, Any, int], list[Any]]:
    """Decorates `examples(task, tokenizer, length)` with a cache, since every variant asks for the same examples.

    They are rebuilt if a file that the task names has changed. They are dropped with the tokenizer or, oldest first,
    beyond `KEPT` tokens per task. ConfigError if they are shorter than `length` (`lengths.check`).
    """

    memories: weakref.WeakKeyDictionary[Any, dict[Any, list[Any]]] = weakref.WeakKeyDictionary()

    @functools.wraps(examples)
    def known(task: Any, tokenizer: Any, length: int) -> list[Any]:
        memory = memories.setdefault(tokenizer, {})
        key = task, length, _files_of(task)
        if key not in memory:
            built = examples(task, tokenizer, length)
            lengths.check(task, length, built)
            memory[key] = built
            while len(memory) > 1 and sum(map(_tokens, memory.values())) > KEPT:
                del memory[next(iter(memory))]
        return memory[key]

    return known


def _tokens(examples: Sequence[Any]) -> int:
    return sum(map(lengths.tokens, examples))


def _files_of(task: Any) -> tuple[Any, ...]:
    named = [Path(name) for key in NAMED for name in getattr(task, key, ())]
    files = [p for place in named for p in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files if p.is_file())


def split(tokenizer: Any, prompt: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns (prompt tokens, answer tokens) of the text prompt + answer, tokenised as one text.

    A tokenizer may merge the prompt's end with the answer's start into one token. The split is then before that token,
    so the model never has to continue from a token boundary that does not occur in its training text.
    """
    whole = tokenizer.encode(prompt + answer)
    # Tokenises only the last words of a long prompt a second time, if they have the same tokens on their own.
    for tail in (prompt[max(0, prompt.rfind(" ", 0, -TAIL)) :], prompt):
        together, alone = tokenizer.encode(tail + answer), tokenizer.encode(tail)
        common = 0
        while common < min(len(together), len(alone)) and together[common] == alone[common]:
            common += 1
        begun = common // 2  # skips tokens that differ because the tail is at the start of a text
        if tail is prompt or (common > 8 and whole[len(whole) - len(together) + begun :] == together[begun:]):
            break
    boundary = len(whole) - len(together) + common
    return tuple(whole[:boundary]), tuple(whole[boundary:])


def from_pieces(document: Sequence[Any], encode: Callable[[str], Sequence[int]], bos: tuple[int, ...], depth: float):
    """Returns the Example of a synthetic document that ends with its question and answer (see `data.synthetic`)."""
    answer = document[-1].text.rstrip("\n")  # a leading space is part of the expected answer
    prompt = tuple(token for piece in document[:-1] for token in encode(piece.text))
    return Example(bos + prompt, tuple(encode(answer)), int(answer), depth)


def check_retrieval(task: Any) -> None:
    """Raises ConfigError if a setting of a retrieval task is out of range."""
    if not task.scoring:
        raise ConfigError(f"{task.name}.scoring: the list is empty; allowed are 'generate', 'teacher' or both.")
    if task.n < 1 or task.new_tokens < 1:
        raise ConfigError(f"{task.name}: n and new_tokens must be at least 1, got {task.n} and {task.new_tokens}.")
    depths = getattr(task, "depths", None)
    if depths == () or not all(0 <= d <= 1 for d in depths or ()):
        raise ConfigError(f"{task.name}.depths: expected numbers from 0 to 1, got {depths}.")


def scores(
    lm: Any,
    rows: Sequence[Sequence[int] | np.ndarray],
    length: int,
    encoding: Any,
    size: int,
    needed: Sequence[np.ndarray | range] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (nll, correct) per row, each [T - 1]: the loss in nats and whether the token was the most likely one, for
    the row's tokens from the second on.

    Every batch is padded to the shape [size, length], so that methods, and tasks of one length and size, share one
    compilation.

    Args:
      lm: the model.
      rows: tokens of each row.
      length: tokens to which rows are padded.
      encoding: of the positions.
      size: rows of a batch.
      needed: per row, the indices (from 1) of the tokens whose loss is used: logits of others are not computed, and
        their loss is NaN. By default all tokens.
    """
    most = max(map(len, needed), default=0) if needed is not None else length
    most = max(LEAST_SCORED, 1 << max(0, most - 1).bit_length())
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        tokens, segments = np.zeros((size, length), np.int32), np.zeros((size, length), np.int32)
        for i, row in enumerate(batch):
            tokens[i, : len(row)], segments[i, : len(row)] = row, 1
        scored = None
        if needed is not None and most < length - 1:
            scored = np.ones((size, most), np.int32)
            for i, indices in enumerate(needed[start : start + size]):
                scored[i] = np.resize(np.asarray(indices), most)  # filled up by repeating them
        nll, correct = lm.score_rows(tokens, encoding, segments, scored)
        nll, correct = np.asarray(nll), np.asarray(correct)
        for i, row in enumerate(batch):
            yield nll[i, : len(row) - 1], correct[i, : len(row) - 1]


def retrieval_rows(
    lm: Any,
    examples: Sequence[Example],
    length: int,
    encoding: Any,
    *,
    task: Any,
    tokens_per_batch: int,
    judge: Judge = numbers,
) -> Iterator[dict[str, Any]]:
    """Yields one row per example, scored as `task.scoring` says: metrics teacher (0 or 1) and answer_nll (mean nats
    per token), and for generated output those of `judge`.

    `prompt` in a row is a hash of the prompt's tokens: equal for all models and methods given the same prompt.
    """

    size = batch_size(length, tokens_per_batch, len(examples))
    for start in range(0, len(examples), size):
        batch = examples[start : start + size]
        metrics: list[dict[str, float]] = [{} for _ in batch]
        outputs: list[str | None] = [None] * len(batch)
        if "teacher" in task.scoring:
            sequences = [e.prompt + e.answer for e in batch]
            answers = [range(len(e.prompt), len(w)) for e, w in zip(batch, sequences, strict=True)]
            scored = scores(lm, sequences, length, encoding, size, answers)
            for m, e, (nll, correct) in zip(metrics, batch, scored, strict=True):
                m["teacher"] = int(correct[-len(e.answer) :].all())
                m["answer_nll"] = float(np.mean(nll[-len(e.answer) :], dtype=np.float64))
        if "generate" in task.scoring:
            prompts = [list(e.prompt) for e in batch]
            new = task.new_tokens
            generated = lm.generate_rows(prompts, new, encoding, length=length, batch=size, width=length)
            for i, (m, e, tokens) in enumerate(zip(metrics, batch, generated, strict=True)):
                outputs[i] = text = lm.tokenizer.decode(tokens)
                m |= judge(text, e.expected)
        for i, (m, e, text) in enumerate(zip(metrics, batch, outputs, strict=True)):
            yield {
                "example": start + i,
                "depth": e.depth,
                "question": lm.tokenizer.decode(e.prompt[-ASKED:])[-ASKED:],
                "metrics": m,
                "prompt_tokens": len(e.prompt),
                "answer_tokens": len(e.answer),
                "prompt": hashlib.sha256(np.asarray(e.prompt, "<i4").tobytes()).hexdigest()[:16],
                "expected": e.expected if isinstance(e.expected, int) else list(e.expected),
            } | ({} if text is None else {"output": text})


def batch_size(length: int, tokens_per_batch: int, examples: int) -> int:
    """Returns the rows of a batch: as many as `tokens_per_batch` allows, at least one, and not many more than examples.

    With few examples it is a power of two, so that tasks with similar numbers of examples share a compilation.
    """
    return max(1, min(tokens_per_batch // length, 1 << max(0, examples - 1).bit_length()))


def first_number(text: str) -> int | None:
    """Returns the first run of digits in a text as an integer, or None."""
    numbers = re.findall(r"[0-9]+", text)
    return int(numbers[0]) if numbers else None


def last_number(text: str) -> int | None:
    """Returns the last run of digits in a text as an integer, or None."""
    numbers = re.findall(r"[0-9]+", text)
    return int(numbers[-1]) if numbers else None
