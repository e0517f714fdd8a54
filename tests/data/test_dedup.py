"""Near-duplicates by the similarity of all pairs, computed the slow way; held-out works by their 13-grams, by hand."""

import functools

import numpy as np
import pytest

from giraffe_jax.config import ConfigError
from giraffe_jax.data.dedup import contained, distinct, refuse_contained


def words(rng, count):
    return [f"w{i}" for i in rng.integers(0, 400, count)]


@functools.cache
def runs(text, n):
    found = text.lower().replace(".", " ").split()
    return {tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1))}


def jaccard(a, b):
    return len(runs(a, 5) & runs(b, 5)) / len(runs(a, 5) | runs(b, 5))


@pytest.mark.parametrize("threshold", [0.6, 0.8, 1.0])
def test_what_is_left_is_what_all_pairs_say(threshold):
    """60 texts and copies of them in which some words are changed: similarities of all sizes."""
    rng = np.random.default_rng(0)
    texts = [words(rng, 80) for _ in range(60)]
    for i in range(120):
        copy = list(texts[i % 60])
        for at in rng.integers(0, 80, i % 5):
            copy[at] = f"other{i}"
        texts.append(copy)
    texts = [" ".join(text) + "." * (i % 2) for i, text in enumerate(texts)]
    want: list[int] = []
    for i, text in enumerate(texts):
        if not any(jaccard(text, texts[j]) >= threshold for j in want):
            want.append(i)
    found = distinct(texts, threshold).tolist()
    assert found == want and len(texts) // 3 <= len(want) < len(texts)
    assert distinct(texts, threshold).tolist() == found


def test_texts_of_few_words():
    assert distinct(["", "a", "A.", " ", "a b", "b a"]).tolist() == [0, 1, 4, 5]
    for threshold in (0.0, 1.5):
        with pytest.raises(ConfigError, match="distinct.threshold: got"):
            distinct(["a"], threshold)


def test_held_out_works_that_are_in_the_training_texts():
    """Of 100 words 30 in a row are quoted: 18 of 88 runs of 13."""
    rng = np.random.default_rng(1)
    work, other = [f"x{i}" for i in range(100)], words(rng, 100)
    training = [" ".join([*words(rng, 50), *work[40:70], *words(rng, 50)]), " ".join(words(rng, 300))]
    held_out = {"quoted": " ".join(work).upper(), "clean": " ".join(other), "nothing": ""}
    shares = contained(list(held_out.values()), training)
    np.testing.assert_allclose(shares, [18 / 88, 0, 0], rtol=1e-15)
    refuse_contained(held_out, training, most=0.3)
    with pytest.raises(ConfigError, match=r"training texts: quoted 20\.5% of their 13-grams; at most 1\.0% is allowed"):
        refuse_contained(held_out, training)
