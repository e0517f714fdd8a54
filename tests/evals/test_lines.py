"""Line retrieval prompts, byte for byte against LongEval's published files where they are at hand."""

import json
import os
import random
import re
from pathlib import Path

import pytest

from giraffe_jax import evals
from giraffe_jax.config import ConfigError
from giraffe_jax.evals import scoring
from giraffe_jax.evals.tasks import lines
from giraffe_jax.tokenizer import ByteTokenizer

PUBLISHED = Path(os.environ.get("GIRAFFE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "longchat_lines"


def make(**keys):
    return evals.build(dict(name="lines", lengths=[2048]) | keys)


@pytest.mark.parametrize("count", [200, 300, 500, 1000])
def test_prompt_is_the_published_one_byte_for_byte(count):
    path = PUBLISHED / f"{count}_lines.jsonl"
    if not path.is_file():
        pytest.skip(f"needs LongEval's {path.name}")
    for line in path.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        found = re.findall(r"^line (.+): REGISTER_CONTENT is <(\d+)>$", case["prompt"], re.MULTILINE)
        assert len(found) == case["num_lines"]
        keys, values = [k for k, _ in found], [int(v) for _, v in found]
        target = case["random_idx"][1]
        assert (keys[target], values[target]) == (case["random_idx"][0], case["expected_number"])
        assert lines.prompt(keys, values, target, trailing_space=case["prompt"].endswith(" ")) == case["prompt"]


def test_prompt_in_short():
    got = lines.prompt(["big-cat", "old-dog"], [7, 50000], 1)
    assert got.startswith("Below is a record of lines I want you to remember. Each line begins with 'line <line ind")
    assert got.endswith(
        "Now the record start:\n\nline big-cat: REGISTER_CONTENT is <7>\nline old-dog: REGISTER_CONTENT is <50000>\n"
        "\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line old-dog? I need the number."
    )


def test_keys_are_different_and_many():
    keys = lines.draw_keys(random.Random(0), 10_000)
    assert len(set(keys)) == 10_000 and all(re.fullmatch(r"[a-z]+-[a-z]+", k) for k in keys)
    assert len(set(lines.ADJECTIVES)) == len(lines.ADJECTIVES) and len(set(lines.NOUNS)) == len(lines.NOUNS)
    with pytest.raises(ConfigError, match="1000000 different keys wanted"):
        lines.draw_keys(random.Random(0), 1_000_000)


@pytest.mark.parametrize("depth", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("style", ["longchat", "compact"])
def test_examples_are_answerable_within_budget_at_their_depth(style, depth):
    task = make(n=4, style=style, depths=None if depth is None else [depth])
    for example in lines.examples(task, ByteTokenizer(), 2048):
        prompt, answer = (ByteTokenizer().decode(t) for t in (example.prompt, example.answer))
        pattern = r"^line (.+): REGISTER_CONTENT is <(\d+)>$" if style == "longchat" else r"^line (.+) (\d+)$"
        record = re.findall(pattern, prompt, re.MULTILINE)
        (asked,) = re.findall(r"Line <(.+)>: <REG" if style == "longchat" else r"ask (.+)$", prompt)
        keys = [k for k, _ in record]
        assert keys.count(asked) == 1 and len(set(keys)) == len(keys)
        assert int(dict(record)[asked]) == example.expected == scoring.first_number(answer)
        assert example.depth == pytest.approx(keys.index(asked) / (len(keys) - 1))
        assert depth is None or abs(example.depth - depth) < 0.51 / (len(keys) - 1)
        total = len(example.prompt) + len(example.answer)
        assert 2048 - 70 < total <= 2048  # one more line would not have fitted


def test_examples_depend_on_their_own_number_only():
    for style in ("longchat", "compact"):
        few, many = (lines.examples(make(n=n, style=style), ByteTokenizer(), 2048) for n in (2, 4))
        assert many[:2] == few and len({e.prompt for e in many}) == 4


def test_without_a_cue_the_prompt_ends_as_published():
    (example,) = lines.examples(make(n=1, cue=False, scoring=["generate"]), ByteTokenizer(), 2048)
    assert ByteTokenizer().decode(example.prompt).endswith("? I need the number.")
    with pytest.raises(ConfigError, match="needs cue=True"):
        make(cue=False)


@pytest.mark.parametrize("style", ["longchat", "compact"])
def test_a_length_too_short_says_so(style):
    with pytest.raises(ConfigError, match=r"lines( \(compact\))? at length 20"):
        lines.examples(make(style=style), ByteTokenizer(), 20)
