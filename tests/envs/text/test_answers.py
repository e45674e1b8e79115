"""The final answer of a turn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solostream.envs.text.answers import final_answer
from solostream.envs.text.parse import parse


def answer(text, style="boxed", **options):
    found = final_answer(text, parse(text, ("fence", "code"), **options), style)
    return found and found[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{}", None),
        (r"first \boxed{5}, then \boxed{ }", "5"),
        (r"\boxed{1", None),
        (r"\boxed{ \boxed{3} }", "3"),
        (r"} \boxed{4} {", "4"),
        ("```python\nprint('\\\\boxed{1}')\n```\n", None),
        ("\\boxed{2}\n```\n\\boxed{1}\n```\n", "2"),
        ("<code>'\\boxed{1}'</code>", None),
        ("```python\n\\boxed{1}", None),
        ("<think>\\boxed{1}</think> It is \\boxed{2}", "2"),
        ("<think>\\boxed{1}</think>", None),
        ("\\boxed{1}</think> hm", None),
        ("no answer", None),
    ],
)
def test_boxed(text, expected):
    assert answer(text) == expected


@pytest.mark.parametrize(
    ("style", "text", "expected"),
    [
        ("line", "Answer: 5", "5"),
        ("line", "work\n**Answer:** $x^2$ \nbye", "$x^2$"),
        ("line", "Final answer: 1\nAnswer: 2", "2"),
        ("line", "the Answer: 5", None),
        ("line", "Answer:", None),
        ("tag", "<answer> 5 </answer>", "5"),
        ("tag", "<answer>1</answer><answer>2</answer>", "2"),
        ("tag", "<answer>1", None),
    ],
)
def test_other_styles(style, text, expected):
    assert answer(text, style) == expected


def test_position_is_where_the_answer_begins():
    text = "a \\boxed{1}"
    assert final_answer(text, parse(text)) == ("1", 2)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["\\boxed{", "}", "{", "\\", "<answer>", "</answer>", "Answer:", "```\n", "1", "\n", " ", "*"])
    )
)
def test_any_text_gives_a_clean_answer_or_none(pieces):
    text = "".join(pieces)
    for style in ("boxed", "line", "tag"):
        found = final_answer(text, parse(text), style)
        assert found is None or (found[0] == found[0].strip() != "" and found[0] in text)


@pytest.mark.parametrize("text", ["\\boxed{" * 20_000, "<answer>" * 20_000, "```x\n" * 20_000, "Answer: *" * 20_000])
def test_hostile_text_does_not_blow_up(text):
    """Quadratic work here would take minutes, beyond the suite's time limit of a test."""
    for style in ("boxed", "line", "tag"):
        final_answer(text * 5, parse(text * 5), style)
