"""One question with a right and a wrong answer."""

import html

from giraffe_jax.report import question, scores


def row(variant, example, right, length=8, **rest):
    return {
        "variant": variant, "task": "lines", "length": length, "example": example, "prompt": f"p{example}",
        "metrics": {"teacher": 1 - right, "generate": right}, "question": f"<q{example}>", "expected": 7,
        "output": "<7>",
    } | rest  # fmt: skip


def test_the_longest_length_with_a_right_and_a_wrong_answer():
    rows = [row("a", 0, 1), row("b", 0, 0), row("a", 1, 1, 16), row("b", 1, 0, 16, output="&" * 500)]
    rows += [row("a", 2, 1, 32), row("b", 2, 1, 32), row("a", 3, 0, 32), row("b", 4, 1, 32)]
    found = question.find(scores.collect(rows))
    assert found is not None and (found.task, found.length) == ("lines", 16)
    assert found.right["variant"] == "a" and found.wrong["variant"] == "b"
    assert question.find(scores.collect(rows[::-1])) is not None
    text = question.as_html(scores.collect(rows))
    assert "&lt;q1&gt;" in text and "<dd><pre>7</pre></dd>" in text and "a, right" in text and "b, wrong" in text
    assert html.unescape(text).count("&") == question.MOST - 1 and "…" in text and "at 16 tokens" in text


def test_lists_of_answers_and_long_prompts():
    rows = [row(v, 0, i, expected=["x", "y"], question="q" * 500 + "end") for i, v in enumerate("ab")]
    text = question.as_html(scores.collect(rows))
    assert "<pre>x, y</pre>" in text and "<pre>…q" in text and "qend</pre>" in text


def test_rows_without_outputs_or_questions_give_nothing():
    for name in ("output", "question"):
        rows = [{k: x for k, x in row(v, 0, i).items() if k != name} for i, v in enumerate("ab")]
        assert question.as_html(scores.collect(rows)) == ""
    rows = [row(v, 0, i, metrics={"teacher": i}) for i, v in enumerate("ab")]
    assert question.find(scores.collect(rows)) is None, "a teacher-forced answer is not the output"
