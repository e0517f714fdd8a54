"""What columns say beside their lengths."""

from giraffe_jax.report import tables


def test_a_column_says_how_short_its_prompts_are():
    rows = [{"length": n, "prompt_tokens": t} for n, t in [(1000, 980), (1000, 999), (2000, 500), (2000, 1999)]]
    # What an answer takes is no shortness: a UUID is 4% of 1,000 tokens.
    rows += [{"length": 3000, "prompt_tokens": 2900, "answer_tokens": 60}] * 2
    rows += [{"length": 8000, "prompt_tokens": 7700, "answer_tokens": a} for a in (40, 200)]
    said = tables.short_prompts([*rows, {"length": 4000}])
    assert said == {
        2000: "prompts with answers of 500 tokens or more, mean 1,250",
        8000: "prompts with answers of 7,740 tokens or more, mean 7,820",
    }
    table = tables.Table("t", tables.BY_POSITION, "t", (), (1000, 2000), {}, 1000, prompts=said)
    assert table.notes(1000) == ["1×"] and table.notes(2000) == ["2×", said[2000]]
