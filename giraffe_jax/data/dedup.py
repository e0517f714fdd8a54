"""Deduplication of documents, and a check that held-out texts are not in the training data: for preparing data.

    kept = distinct(texts)                                  # indices of texts, without near-duplicates of earlier ones
    found = contained(held_out, [texts[i] for i in kept])   # share of each held-out work's 13-grams that training has

MinHash: Broder, "On the resemblance and containment of documents" (1997). Under a random hash, two sets have the same
minimum with a probability equal to their Jaccard similarity; here they are sets of word 5-grams. Held-out texts are
compared by 13-grams as in GPT-3 (arXiv:2005.14165, appendix C). Results depend only on the texts and their order.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt64

from giraffe_jax.config import ConfigError

HASHES = 128
BANDS = 32  # of 4 hashes each: two texts of similarity s share no band with probability (1 - s**4)**32


def grams(text: str, n: int) -> UInt64[np.ndarray, " grams"]:
    """Returns the sorted hashes of the text's distinct word n-grams. A text of fewer than n words has one, of all its
    words; a text without words has none. Words are runs of letters and digits, in lower case."""
    words = re.findall(r"\w+", text.lower())
    runs = {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()
    hashes = [int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little") for run in runs]
    return np.sort(np.array(hashes, np.uint64))


def distinct(texts: Iterable[str], threshold: float = 0.8, n: int = 5) -> Int[np.ndarray, " kept"]:
    """Returns the indices of the texts that are not near-duplicates of an earlier kept text. Uses 8 bytes of memory
    per word of the kept texts.

    Args:
      threshold: in (0, 1]. Two texts are near-duplicates if their sets of word n-grams have at least this Jaccard
        similarity. MinHash finds candidates, whose similarity is then computed exactly. It misses one pair in 20
        million of similarity 0.8, one in 6,600 of 0.7 and one in 8 of 0.5.

    Raises:
      ConfigError: the threshold is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"distinct.threshold: got {threshold}; a similarity is above 0 and at most 1")
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    kept: list[int] = []
    sets: dict[int, np.ndarray] = {}
    buckets: dict[tuple[int, bytes], list[int]] = {}
    for index, text in enumerate(texts):
        text_grams = grams(text, n)
        keys = list(_bands(text_grams, factors))
        candidates = {other for key in keys for other in buckets.get(key, ())}
        if any(_similarity(text_grams, sets[other]) >= threshold for other in candidates):
            continue
        kept.append(index)
        sets[index] = text_grams
        for key in keys:
            buckets.setdefault(key, []).append(index)
    return np.array(kept, np.int64)


def contained(held_out: Sequence[str], training: Iterable[str], n: int = 13) -> Float[np.ndarray, " held_out"]:
    """Returns, for each held-out text, the share (0 to 1) of its distinct word n-grams that occur in training texts."""
    wanted = [grams(text, n) for text in held_out]
    everything = np.unique(np.concatenate([np.zeros(0, np.uint64), *wanted]))
    seen = np.zeros(len(everything), bool)
    for text in training:
        seen |= np.isin(everything, grams(text, n))
    present = everything[seen]
    return np.array([np.isin(one, present).mean() if len(one) else 0.0 for one in wanted], np.float64)


def refuse_contained(held_out: dict[str, str], training: Iterable[str], most: float = 0.01, n: int = 13) -> None:
    """Raises ConfigError if a held-out work (name -> text) has more than the share `most` of its word n-grams in the
    training texts; names each such work."""
    shares = contained(list(held_out.values()), training, n)
    over = [f"{name} {share:.1%}" for name, share in zip(held_out, shares, strict=True) if share > most]
    if over:
        raise ConfigError(
            f"held-out texts are in the training texts: {', '.join(over)} of their {n}-grams; at most {most:.1%} is "
            "allowed. Take these works, or the documents that quote them, out of one side."
        )


def _bands(hashes: np.ndarray, factors: np.ndarray) -> Iterator[tuple[int, bytes]]:
    if not len(hashes):  # all texts without words are in one bucket
        yield 0, b""
        return
    # Multiplication by an odd number permutes the 64-bit integers: each factor is one random hash.
    least = np.array([(hashes * factor).min() for factor in factors])
    for band, part in enumerate(least.reshape(BANDS, -1)):
        yield band, part.tobytes()


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    num_shared = len(np.intersect1d(a, b, assume_unique=True))
    return num_shared / (len(a) + len(b) - num_shared) if len(a) or len(b) else 1.0
