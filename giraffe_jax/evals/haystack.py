"""The text in which needles are hidden, in any script, split into sentences where possible.

Prose with ASCII capitals is split where a full stop, exclamation mark or question mark precedes a capital. Text that
this leaves in long pieces (other scripts, lower case, code) is split after the sentence terminators of any script, then
at line ends, then between words, and as the last resort between characters. White space becomes one space, as in RULER.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from giraffe_jax.config import ConfigError
from giraffe_jax.evals import cases, filling, lengths
from giraffe_jax.evals.scoring import Example

LONGEST_END = 2**14  # most words or characters of the partial piece at the end of a prompt
LONGEST = 300  # most bytes of a piece, if the text is not prose
PROSE = 1000  # most bytes of a sentence of prose
PROSE_SHARE = 0.95  # a text is prose if such sentences hold this share of its bytes
_ENGLISH = re.compile(r"(?<=[.!?])\s+(?=[\"'(A-Z0-9])")
# Unicode's Sentence_Terminal beyond ASCII: such a mark ends a sentence even without a space after it.
_MARKS = (
    "\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362\u1367\u1368"
    "\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8-\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1c3b\u1c3c\u1c7e"
    "\u1c7f\u203c\u203d\u2047-\u2049\u2e2e\u2e3c\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f"
    "\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
)
_CLOSING = "\"'\u2019\u201d\u203a\u00bb\u300d\u300f\u3009\u300b\u3011\u3015\uff09)\\]}"
_SENTENCE = re.compile(rf"[{_MARKS}][{_MARKS}.!?…]*[{_CLOSING}]*\s*|[.!?…]+[{_CLOSING}]*\s+")
_LEVELS = (_SENTENCE, re.compile(r"\n"), re.compile(r"\s+"))


class End(NamedTuple):
    """How much of the beginning of a piece to take, in words or characters."""

    count: int
    unit: Literal["words", "characters"] = "words"


NOTHING = End(0)
END_UNITS: dict[Literal["words", "characters"], re.Pattern[str]] = {
    "words": re.compile(r"\S+\s*"),
    "characters": re.compile(r".", re.DOTALL),
}


class Haystack(NamedTuple):
    """Pieces of text in order, each with the white space after it (none in Chinese, for example)."""

    pieces: tuple[str, ...]

    def part(self, start: int, size: int, end: End = NOTHING) -> list[str]:
        """Returns `size` pieces from `start` on, wrapping around, and the part of the next piece that `end` takes."""
        chosen = [self.pieces[(start + k) % len(self.pieces)] for k in range(size)]
        if end.count:
            piece = self.pieces[(start + size) % len(self.pieces)]
            chosen.append("".join(END_UNITS[end.unit].findall(piece)[: end.count]))
        return chosen


def joined(pieces: Sequence[str], needles: Sequence[tuple[int, str]], space: str = " ") -> str:
    """Returns the text of pieces with needles inserted, each (place, text) before the piece at index `place`.

    `space` is put before and after each needle, even if the pieces have none between them.
    """
    parts: list[str] = []
    start = 0
    for place, needle in sorted(needles, key=lambda pair: pair[0]):
        parts += pieces[start:place]
        start = place
        parts += [space if parts and not parts[-1].endswith(space) else "", needle, space]
    return "".join([*parts, *pieces[start:]]).removesuffix(space)


def filled(fill: filling.Filler, make: Callable[[int, End], filling.Made]) -> Example:
    """Returns the example with as many pieces as fit and, if it is too short, words or characters of the next one.

    `make(size, end)` builds it from that many pieces and the end, as `Haystack.part` returns them.
    """
    size, example = fill(lambda k: make(k, NOTHING), atomic=False)
    for unit in END_UNITS:
        if lengths.short(example, fill.length):
            # Asking for more words than the piece has takes all of it.
            _, example = fill(lambda k, unit=unit: make(size, End(k, unit)), probe=4, most=LONGEST_END, atomic=False)
    return example


def read(documents: tuple[str, ...], where: str) -> Haystack:
    """Returns the pieces of documents, in order; ConfigError if there is no text."""
    files = tuple(path for _, path in cases.documents(documents, where))
    states = tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in (path.stat() for path in files))
    haystack = _read(files, states, where)
    if not haystack.pieces:
        raise ConfigError(f"{where}: no text in {', '.join(documents)}.")
    return haystack


@functools.lru_cache(maxsize=8)
def _read(files: tuple[Path, ...], states: tuple[tuple[int, ...], ...], where: str) -> Haystack:
    """Caches by the files' content: `states` (size, mtime, inode) is a cache key only."""
    return Haystack(tuple(piece for path in files for piece in pieces(cases.text(path, where))))


def pieces(text: str) -> list[str]:
    """Returns a text's sentences, or shorter pieces if it is not prose; joined they give the text."""
    text = "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)
    parts = [f"{sentence} " for sentence in _ENGLISH.split(text) if sentence]
    prose = sum(size for size in map(_size, parts) if size <= PROSE)
    if prose < PROSE_SHARE * sum(map(_size, parts)):
        parts = [piece for sentence in parts for piece in _cut(sentence, _LEVELS)]
    return [piece.replace("\n", " ") for piece in parts]


def _size(text: str) -> int:
    return len(text.encode("utf-8", errors="surrogatepass"))


def _cut(text: str, levels: Sequence[re.Pattern[str]]) -> Iterator[str]:
    """Yields pieces of at most LONGEST bytes that join to the text, split at the first of `levels` that suffices."""
    if _size(text) <= LONGEST:
        yield text
    elif not levels:
        count = max(1, LONGEST // 4)  # characters of at most four bytes
        yield from (text[i : i + count] for i in range(0, len(text), count))
    else:
        ends = [match.end() for match in levels[0].finditer(text)]
        parts = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if a < b]
        if levels[0] is _SENTENCE:
            for part in parts:
                yield from _cut(part, levels[1:])
            return
        pending = ""  # merges lines or words up to LONGEST bytes
        for part in parts:
            if pending and _size(pending) + _size(part) > LONGEST:
                yield from _cut(pending, levels[1:])
                pending = ""
            pending += part
        yield from _cut(pending, levels[1:])
