"""Other forms of a problem: what is asked, what counts as right, and when there is no such form."""

from __future__ import annotations

import re

import pytest

import solostream.envs  # noqa: F401  (registers the environments)
from solostream.envs.data import Tasks
from solostream.envs.data.forms import base_of, make_form, solution_of
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Task
from solostream.errors import UserError

WORKED = "Twelve eggs cost 3 dollars each, so all cost 36 dollars.\nThe answer is 36."
EGGS = Task("eggs", "What do 12 eggs cost?", "36", "shop", {"solution": WORKED})
CAPITALS = ("Paris", "Rome", "Bern", "Oslo")
POOL = Tasks([EGGS, *(Task(f"c{i}", "?", name, "capitals") for i, name in enumerate(CAPITALS))])


def test_a_hint_is_the_first_share_of_the_solution_and_ends_with_a_word() -> None:
    made = make_form(EGGS, "hint=0.5")
    assert made is not None
    assert (made.id, made.source, made.answer) == ("eggs~hint=0.5", "shop~hint=0.5", "36")
    shown = made.prompt.removeprefix(EGGS.prompt).split(":\n", 1)[1]
    assert WORKED.startswith(shown)
    assert shown == "Twelve eggs cost 3 dollars each, so"
    assert "36" not in shown
    whole = make_form(EGGS, "hint=1")
    assert whole is not None
    assert whole.prompt.endswith(WORKED)


@pytest.mark.parametrize(
    ("meta", "found"),
    [
        ({"solution": "36"}, None),  # the bare answer is no solution
        ({"code": "12 * 3"}, "12 * 3"),
        ({"row": {"answer": "12 * 3 = 36\n#### 36"}}, "12 * 3 = 36\n#### 36"),
        ({"row": {"solution": WORKED, "answer": "36"}}, WORKED),
        ({"row": ["not", "a", "mapping"]}, None),
        ({}, None),
    ],
)
def test_where_a_solution_is_looked_for(meta, found) -> None:
    assert solution_of(Task("x", "?", "36", meta=meta)) == found


def test_a_multiple_choice_accepts_the_letter_and_the_answer_and_is_always_the_same() -> None:
    made = make_form(EGGS, "choice=4")
    assert made is not None
    options = dict(re.findall(r"^([A-D])\. (.+)$", made.prompt, re.M))
    assert len(options) == len(set(options.values())) == 4
    assert options[made.answer] == "36"
    assert set(made.accepted) == {made.answer, "36"}
    assert make_form(EGGS, "choice=4") == made
    ten = make_form(EGGS, "choice=10")
    assert ten is not None
    assert len(re.findall(r"^[A-J]\. ", ten.prompt, re.M)) == 10


def test_choices_of_words_are_answers_of_the_same_source_or_the_data_brings_them() -> None:
    rome = POOL.by_id["c1"]
    made = make_form(rome, "choice=4", POOL)
    assert made is not None
    assert set(re.findall(r"^[A-D]\. (.+)$", made.prompt, re.M)) == {"Paris", "Rome", "Bern", "Oslo"}
    assert make_form(rome, "choice=10", POOL) is None  # too few
    brought = make_form(Task("x", "?", "Rome", "s", {"choices": ["Pisa", "Rome", "Bari", "Pisa", "Asti"]}), "choice=4")
    assert brought is not None
    assert set(re.findall(r"^[A-D]\. (.+)$", brought.prompt, re.M)) == {"Pisa", "Rome", "Bari", "Asti"}


@pytest.mark.parametrize("answer", ["B", "(c)", " d "])
def test_what_is_a_multiple_choice_already_is_not_made_one(answer: str) -> None:
    assert make_form(Task("x", "?", answer, meta={"choices": list("PQRS")}), "choice=4") is None


@pytest.mark.parametrize(
    ("answer", "shown"), [("1003", 1), ("36", 1), (r"\frac{15}{82}", 1), ("-4.25", 1), ("1234567", 2)]
)
def test_a_cloze_blanks_most_digits_and_shows_at_least_one(answer: str, shown: int) -> None:
    made = make_form(Task("x", "?", answer), "cloze")
    assert made is not None
    mask = made.prompt.rpartition(": ")[2]
    assert made.answer == answer
    assert len(mask) == len(answer)
    assert all(m in ("_", a) for m, a in zip(mask, answer, strict=True))
    assert all(a.isdigit() for m, a in zip(mask, answer, strict=True) if m != a)
    assert sum(c.isdigit() for c in mask) == shown


@pytest.mark.parametrize("answer", ["7", "x", r"\pi"])
def test_nothing_to_blank_no_cloze(answer: str) -> None:
    assert make_form(Task("x", "?", answer), "cloze") is None


def test_data_brings_forms_ready_made() -> None:
    task = Task("x", "?", "7", "s", {"forms": {"cloze": {"prompt": "7 is the _ number", "answer": "lucky"}}})
    made = make_form(task, "cloze")
    assert made is not None
    assert (made.prompt, made.answer, made.id) == ("7 is the _ number", "lucky", "x~cloze")


@pytest.mark.parametrize("form", ["hints=0.5", "hint=1.5", "hint=", "choice=1", "choice=ten"])
def test_a_form_that_there_is_not_is_an_error(form: str) -> None:
    with pytest.raises(UserError):
        make_form(EGGS, form)


def test_ids_with_the_mark_in_them_stay_what_they_are() -> None:
    odd = Tasks([Task("a~b", "?", "1"), EGGS])
    assert odd.find("a~b") is odd[0]
    assert odd.find("a~b~direct").id == "a~b~direct"
    assert odd.find("nobody~direct") is None
    assert (base_of("a~b~direct"), base_of("eggs")) == ("a~b", "eggs")


async def test_the_environment_plays_a_form_and_runs_no_call_in_a_direct_one() -> None:
    env = ToolEnv([EGGS], sandbox="fork")
    _, info = await env.areset(options={"task_id": "eggs~direct"})
    assert info["task_id"] == "eggs~direct"
    said, _, done, *_ = await env.astep("```python\nprint(36)\n```")
    assert not done
    assert "no such tool; there is: none for this problem" in said
    *_, info = await env.astep(r"\boxed{36}")
    assert (info["ending"], env.trace[-1].reward) == ("answered", 1.0)
    assert env.trace[0].executions == (None,)
    _, info = await env.areset(options={"task_id": "eggs~choice=4"})
    letter = env.task.answer
    *_, info = await env.astep(rf"\boxed{{{letter}}}")
    assert env.trace[-1].reward == 1.0
    with pytest.raises(UserError, match="no task"):
        await env.areset(options={"task_id": "nobody~direct"})
    await env.aclose()
