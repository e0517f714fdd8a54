"""What columns say beside their lengths."""

from giraffe_jax.report import tables


def test_a_column_says_how_short_its_prompts_are():
    rows = [{"length": n, "prompt_tokens": t} for n, t in [(1000, 980), (1000, 999), (2000, 500), (2000, 1999)]]
    said = tables.short_prompts([*rows, {"length": 4000}])
    assert said == {2000: "prompts of 500 or more, mean 1,250"}
    table = tables.Table("t", tables.BY_POSITION, "t", (), (1000, 2000), {}, 1000, prompts=said)
    assert table.notes(1000) == ["1×"] and table.notes(2000) == ["2×", "prompts of 500 or more, mean 1,250"]
