"""Line retrieval: a record of `line <key>: <number>`, then the question for one key's number (LongEval,
LongChat-Lines).

Style "longchat" is the exact published text, two-word keys included (LongEval's LRT-NL; Giraffe's LongChat-Lines are
its files), with as many lines as fit into `length` tokens. `files` are those published cases themselves (LongEval's
JSON lines, LongChat-Lines' Parquet), each used at the shortest length that it fits into. Base models get LongEval's cue
for text-completion models at the end, which the number must follow; `cue=False` gives the prompt for chat models, which
can only be scored by generation. Keys are never repeated, which the published generator does not ensure. Style
"compact" is this project's own short text, for models of a few million parameters (see `data.synthetic`): records of
four tokens with an equal amount of filler between them, so that records are as dense in a prompt of 2,048 tokens as in
a short one, and each key is one word.
"""

import dataclasses
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from giraffe_jax.config import ConfigError
from giraffe_jax.data import synthetic
from giraffe_jax.data.packing import Length
from giraffe_jax.evals import cases, filling, metrics, scoring
from giraffe_jax.evals.scoring import Count, Example, Scoring, Seed, Share
from giraffe_jax.tokenizer import begun

HEADER = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its corresponding "
    "<REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding <REGISTER_CONTENT> of "
    "a certain line index. Now the record start:\n\n"
)
LINE = "line {key}: REGISTER_CONTENT is <{value}>\n"
QUESTION = "\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {key}? I need the number."
CUE = "Line <{key}>: <REGISTER_CONTENT> is"
HIGHEST = 50_000
COMPACT_FILLER = 0.5  # share of filler in a compact prompt, so that keys are one word each up to 2,048 tokens

# Our own words, so that prompts do not change with a word list's version.
ADJECTIVES = tuple(
    """
    able acid aged airy ample amber ancient arid bald basic bitter bland blind blunt bold brave brief bright brisk broad
    bumpy busy calm careful cheap clean clear clever clumsy coarse cold common cosy crisp crooked curious curly damp
    dark deep dense dizzy double dry dull dusty eager early easy elastic empty equal even exact faint fair famous
    fancy fast fierce final firm flat fluffy foggy fond formal fragile free fresh frosty full fuzzy gentle giant glad
    glossy golden grand gray great green grim gritty handy happy hard harsh hasty heavy hidden high hollow honest huge
    humble hungry icy idle jolly keen kind large late lazy lean light lively lone long loose loud loyal lucky mad
    major mellow merry mild minor misty modern modest moist muddy narrow neat new noble noisy odd old open orange
    outer pale patient plain polite proud pure quick quiet rapid rare raw ready rich ripe rough round royal rusty sad
    safe salty sandy sharp shiny short shy silent silky simple sleepy slim slow small smart smooth soft solid sore
    sour spare spicy stale steady steep stern stiff still strange strict strong sturdy sunny sweet swift tall tame
    tart tender thick thin tidy tight tiny tough true upper urban useful vague vain vast vivid warm wary weak weary
    wet white whole wide wild windy wise witty wooden young
    """.split()
)
NOUNS = tuple(
    """
    acorn anchor apple apron arrow badge bakery balcony bamboo banjo barn barrel basin basket beacon beaver bench berry
    blanket bottle boulder branch brick bridge broom bucket button cabin cactus camel candle canoe canyon carpet castle
    cedar cellar chair cherry chimney circle clock cloud clover coast coin comet compass copper coral corner cotton
    cradle crane crater cricket crown curtain daisy desert desk diary dolphin donkey door drum eagle easel elbow
    engine fable falcon farmer feather fence ferry fiddle finch flag flame flute forest fossil fountain fox garden
    garlic gate ginger glacier glove goat grape gravel guitar hammer harbor hazel hedge helmet heron hill honey
    horizon island ivory jacket jasmine jungle kettle kitchen kite ladder lagoon lantern lemon letter library lily
    lizard lobster lumber magnet mango maple marble market meadow melon mirror mitten monkey mosaic mountain museum
    napkin needle nest oasis ocean olive onion orchard otter oven owl paddle palace panther paper parrot pasture peach
    pebble pencil pepper piano pigeon pillow planet plateau pocket pony poplar prairie puddle puzzle quarry quilt
    rabbit radio raven ribbon river robin rocket saddle salmon sandal saucer school shadow shelter shovel signal
    spider spoon squash stable statue summit table teapot temple thimble thunder ticket tiger tunnel turnip valley
    velvet village violin wagon walnut willow window winter zebra
    """.split()
)


@dataclasses.dataclass(frozen=True)
class Lines:
    """The keys of a line retrieval task; `n` examples for every length (and depth, where depths are set)."""

    VERSION: ClassVar[int] = 1  # raised whenever prompts or scores of the same keys change
    lengths: tuple[Length, ...]
    n: Count = 50
    # Depth of the queried line, from 0 (first) to 1 (last). None is random.
    depths: tuple[Share, ...] | None = None
    # "longchat" is the published prompt; "compact" a shorter one for small models.
    style: Literal["longchat", "compact"] = "longchat"
    files: tuple[str, ...] = ()  # Published cases, used unchanged.
    scoring: tuple[Scoring, ...] = ("teacher",)
    cue: bool = True  # With style "longchat": the prompt ends with the start of the answer.
    # Most tokens to generate. They may exceed the length, which holds prompt and answer only. Giraffe generates 35,
    # LongEval 100.
    new_tokens: Length = 16
    seed: Seed = 0
    name: Literal["lines"] = "lines"
    label: str | None = None

    def __post_init__(self):
        scoring.check_retrieval(self)
        if not self.cue and "teacher" in self.scoring and self.style == "longchat":
            raise ConfigError("lines.scoring: 'teacher' needs cue=True; without it the answer's words are the model's.")
        if self.files and (self.depths is not None or self.style != "longchat"):
            raise ConfigError("lines.files: published cases have their own form and depths; set neither.")


Task = Lines
METRICS = (metrics.TEACHER, metrics.NUMBER, metrics.LAST_NUMBER, metrics.ANSWER_NLL)


def rows(task: Lines, lm: Any, length: int, encoding: Any, *, tokens_per_batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per example; the metrics are those of `scoring.retrieval_rows`."""
    yield from scoring.retrieval_rows(
        lm, examples(task, lm.tokenizer, length), length, encoding, task=task, tokens_per_batch=tokens_per_batch
    )


@scoring.remembered
def examples(task: Lines, tokenizer: Any, length: int) -> list[Example]:
    """Returns n examples (per depth) in at most `length` tokens each, answer included.

    Each depends only on (tokenizer, length, depth, its index, seed). ConfigError if none fits into `length`.
    """
    if task.files:
        rows = cases.read(task.files, {"prompt": str, "expected_number": int}, "lines.files")
        return cases.asked(rows, lambda row: _published(row, task, tokenizer), task, length, "lines.files")
    make = _longchat(task, tokenizer, length) if task.style == "longchat" else _compact(task, tokenizer)
    return [make(task, tokenizer, length, depth, i) for depth in task.depths or (None,) for i in range(task.n)]


def prompt(keys: Sequence[str], values: Sequence[int], target: int, *, trailing_space: bool = False) -> str:
    """Returns the published prompt asking for line `target`; some of the published files end it with a space."""
    record = "".join(LINE.format(key=k, value=v) for k, v in zip(keys, values, strict=True))
    return HEADER + record + QUESTION.format(key=keys[target]) + " " * trailing_space


def draw_keys(rng: random.Random, n: int) -> list[str]:
    """Returns n different `adjective-noun` keys. ConfigError if there are not that many."""
    most = len(ADJECTIVES) * len(NOUNS)
    if n > most:
        raise ConfigError(f"lines: {n} different keys wanted, there are {most}.")
    return [f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}" for i in rng.sample(range(most), n)]


def _published(row: dict[str, Any], task: Lines, tokenizer: Any) -> Example:
    text, value = row["prompt"], row["expected_number"]
    keys = re.findall(r"^line (.+): REGISTER_CONTENT is <\d+>$", text, re.MULTILINE)
    question = re.search(r"what is the <REGISTER_CONTENT> in line (.+)\? I need the number", text)
    if question is None or question[1] not in keys:
        raise ConfigError(f"lines.files: a prompt asks for no line that it has: ...{text[-120:]!r}.")
    text = f"{text.rstrip(' ')} {CUE.format(key=question[1])}" if task.cue else text
    before, answer = scoring.split(tokenizer, text, f" <{value}")
    where = keys.index(question[1]) / max(1, len(keys) - 1)
    return Example(begun(tokenizer, before), answer, value, where)


def _longchat(task: Lines, tokenizer: Any, length: int):
    fill = filling.Filler(task, tokenizer, length, probe=8)

    def make(task: Lines, tokenizer: Any, length: int, depth: float | None, i: int) -> Example:
        rng = random.Random(f"lines {task.seed} {length} {depth} {i}")
        # More keys than can fit: every tokenizer takes at least six tokens per line.
        keys = draw_keys(rng, min(len(ADJECTIVES) * len(NOUNS), length // 6 + 16))
        values = [rng.randint(1, HIGHEST) for _ in keys]
        where = rng.random()

        def build(extra: int) -> filling.Made:
            n = extra + 1
            target = min(int(where * n), n - 1) if depth is None else round(depth * (n - 1))
            text = prompt(keys[:n], values[:n], target)
            cue = " " + CUE.format(key=keys[target]) if task.cue else ""
            # Without the closing bracket, whose tokenisation and prediction have nothing to do with retrieval.
            return filling.Made(text + cue, f" <{values[target]}", values[target], target / max(1, n - 1))

        return fill(build, most=len(keys) - 1)[1]

    return make


def _compact(task: Lines, tokenizer: Any):
    encode = synthetic.piece_encoder(tokenizer)
    bos, slack = tuple(tokenizer.prefix), synthetic.granularity(lambda text: len(encode(text)))

    def make(task: Lines, tokenizer: Any, length: int, depth: float | None, i: int) -> Example:
        rng = np.random.default_rng([task.seed, length, 0 if depth is None else 1 + round(depth * 1e6), i])
        try:
            document = synthetic.lines_document(
                rng,
                length - len(bos),
                lambda text: len(encode(text)),
                queries=1,
                depth=depth,
                gap=COMPACT_FILLER,
            )
        except ValueError as error:
            raise ConfigError(f"lines (compact) at length {length}: {error}") from None
        keys = [piece.text for piece in document if piece.role == "drawn"][::2]  # of the records, then of the question
        example = scoring.from_pieces(document, encode, bos, keys.index(keys[-1]) / max(1, len(keys) - 2))
        return dataclasses.replace(example, slack=slack)

    return make
