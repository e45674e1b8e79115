"""The final answer of a turn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solostream.envs.text.answers import final_answer, find_answer
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
        ("line", "So the answer is 42.", "42"),
        ("line", "The final answer is $3.50.", "$3.50"),
        ("line", "The answer is **12**, because 3 * 4 = 12.", "12"),
        ("line", "the answer is: 7\nAnswer: 8", "8"),
        ("line", "Answer: 8. Or rather, the result is 9.5 metres; yes", "9.5 metres"),
        ("boxed", r"so $\boxed42$.", "42"),
        ("boxed", r"\boxed \frac{\sqrt{2}}{2} units", r"\frac{\sqrt{2}}{2}"),
        ("boxed", r"\(\boxed-3\)", "-3"),
        ("boxed", r"**\boxed(3, 4)**", "(3, 4)"),
        ("boxed", r"\boxed B", "B"),
        ("boxed", r"\boxed5, no: \boxed{6}", "6"),
        ("boxed", r"\boxed{6}, no: \boxed3.5.", "3.5"),
        ("boxed", r"put it in \boxed and go on, or in \boxed a number", None),
        ("boxed", "\\boxed\n5", None),
        ("line", "**Answer:**\n\n$42$\n", "$42$"),
        ("line", "### Final Answer\n\n17", "17"),
        ("line", "The final answer is:\n\\[\n3x+1\n\\]", "3x+1"),
        ("line", "answer: 12\nAnswer:\r\n13\r\n", "13"),
        ("line", "ANSWER: (C)", "(C)"),
        ("line", "Answer:\n```python\nprint(1)\n```\n", None),
        ("line", "Answer:\n\n\n\n5", None),
        ("line", "answer\n42", None),
        ("last_number", "I think 3 and 4 make 7.", "7"),
        ("last_number", "It costs $1,250.50!", "$1,250.50"),
        ("last_number", "from 5 to -3", "-3"),
        ("last_number", "5-3", "3"),
        ("last_number", "that is 3/4 of it", "3/4"),
        ("last_number", "about 1.5e-05 then", "1.5e-05"),
        ("last_number", "28% of them", "28%"),
        ("last_number", "nothing", None),
        ("last_number", "7 apples\n```python\nprint(9)\n```\n", None),  # a call: not an answer yet
        ("last_number", "7 apples\n```text\n9\n```\n", "7"),
        ("auto", r"Answer: 4, the answer is 5, <answer>6</answer> \boxed{7} 8", "7"),
        ("auto", "Answer: 4, <answer>6</answer> 8", "6"),
        ("auto", "The answer is 5. That took 8 steps.", "5"),
        ("auto", "There are 8 steps.", "8"),
        ("auto", "<think>9</think> none", None),
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


@pytest.mark.parametrize(
    ("text", "style"),
    [(r"\boxed{7}", "boxed"), ("<answer>7</answer>", "tag"), ("Answer: 7", "line"), ("it is 7", "last_number")],
)
def test_auto_says_which_style_matched(text, style):
    found = find_answer(text, parse(text), "auto")
    assert (found.answer, found.style) == ("7", style)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["\\boxed{", "}", "{", "\\", "<answer>", "</answer>", "Answer:", "```\n", "1", "\n", " ", "*"])
    )
)
def test_any_text_gives_a_clean_answer_or_none(pieces):
    text = "".join(pieces)
    for style in ("boxed", "line", "tag", "last_number", "auto"):
        found = final_answer(text, parse(text), style)
        assert found is None or (found[0] == found[0].strip() != "" and found[0] in text)


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 20_000,
        "<answer>" * 20_000,
        "```x\n" * 20_000,
        "Answer: *" * 20_000,
        "the answer is " * 20_000,
        "1,111" * 20_000,
    ],
)
def test_hostile_text_does_not_blow_up(text):
    """Quadratic work here would take minutes, beyond the suite's time limit of a test."""
    for style in ("boxed", "line", "tag", "last_number", "auto"):
        final_answer(text * 5, parse(text * 5), style)
