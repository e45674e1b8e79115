"""Generated problems: right answers, disjoint splits, stable ids."""

import math
from collections import Counter

import pytest

from solostream.envs.data.arithmetic import KINDS, LEVELS, generate
from solostream.errors import UserError


def test_every_answer_is_what_its_code_evaluates_to() -> None:
    for task in generate(360, seed=3):
        *body, last = task.meta["code"].split("\n")
        scope: dict = {}
        exec("\n".join(body), scope)
        assert str(eval(last, scope)) == task.answer, task


def test_hand_computed_answers() -> None:
    o = {"a": 7, "p": 3, "q": 2, "m": 10, "n": 3}
    assert KINDS["recurrence"].solve(o) == 5  # 7 -> 23 % 10 = 3 -> 11 % 10 = 1 -> 5
    assert KINDS["primesum"].solve({"n": 11}) == 17  # 2 + 3 + 5 + 7
    assert KINDS["primecount"].solve({"a": 11, "b": 19}) == 3  # 11, 13, 17
    assert KINDS["divisible"].solve({"n": 23, "a": 5, "b": 11}) == 7  # 0 5 10 11 15 20 22
    assert KINDS["digitsum"].solve({"a": 12, "b": 3}) == 18  # 1728


def test_splits_share_no_operands_and_ids_are_stable() -> None:
    train, test = generate(2000, seed=0), generate(300, seed=0, split="test")
    operands = lambda tasks: {t.id.rsplit("-", 1)[0] for t in tasks}
    assert not operands(train) & operands(test)
    assert not operands(generate(2000, seed=7)) & operands(test)
    assert len({t.id for t in train}) == 2000
    assert generate(50, seed=0) == train[:50]
    again = {t.id: t for t in generate(2000, seed=11)}
    assert all(again[t.id].prompt == t.prompt for t in train if t.id in again)


def test_kinds_levels_and_phrasings_are_covered_and_cannot_be_guessed() -> None:
    tasks = generate(3600, seed=1)
    assert set(Counter((t.meta["kind"], t.meta["level"]) for t in tasks)) == {(k, n) for k in KINDS for n in LEVELS}
    for kind in KINDS:
        answers = Counter(t.answer for t in tasks if t.meta["kind"] == kind)
        assert max(answers.values()) < 0.08 * answers.total(), kind
        assert {t.id[-1] for t in tasks if t.meta["kind"] == kind} == {"0", "1"}


def test_large_common_factors() -> None:
    for task in generate(100, seed=0, kinds=["gcd"]):
        assert math.gcd(*map(int, task.meta["code"].split("(")[1].rstrip(")").split(","))) >= 11


@pytest.mark.parametrize("bad", [{"kinds": ["gdc"]}, {"levels": [9]}, {"split": "dev"}])
def test_unknown_names_are_refused_with_the_choices(bad: dict) -> None:
    with pytest.raises(UserError, match="one of: "):
        generate(1, seed=0, **bad)


def test_asking_for_more_than_there_is() -> None:
    with pytest.raises(UserError, match=r"hold only \d+ distinct"):
        generate(2000, seed=0, kinds=["primesum"], levels=[1])
