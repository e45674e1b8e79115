"""Every metric against a number worked out by hand, and against naive enumeration on random data."""

from __future__ import annotations

import math
import random
from itertools import combinations, permutations
from statistics import fmean

import numpy as np
import pytest

from solostream.evaluation.majority import majority_at_k, majority_vote
from solostream.evaluation.metrics import (
    Sample,
    average,
    bootstrap,
    by_problem,
    pass_at_k,
    pass_curve,
    scalar,
    spread,
    summarize,
    tool_use_summary,
)
from solostream.evaluation.tool_use import ToolUse


def behaviour(**fields) -> ToolUse:
    plain = dict(response_length=10, action_tokens=8, first_call=None, calls=0, passed=0, code_lines=(), errors=(),
                 late_calls=0, trivial=False, void=False, sandbox_s=0.0)  # fmt: skip
    return ToolUse(**{**plain, **fields})


def sample(task: str, reward: float, answer: str | None = None, **fields) -> Sample:
    return Sample(task, reward, answer, "answered", behaviour(**fields))


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 4, 1) == 1.0
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(5, 2, 4) == 1.0  # only three are wrong
    assert pass_at_k(1024, 1, 512) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


def test_pass_at_k_is_naive_enumeration() -> None:
    rng = random.Random(0)
    for _ in range(60):
        n = rng.randint(1, 9)
        solved = [rng.random() < 0.4 for _ in range(n)]
        k = rng.randint(1, n)
        naive = fmean(any(solved[i] for i in subset) for subset in combinations(range(n), k))
        assert pass_at_k(n, sum(solved), k) == pytest.approx(naive, abs=1e-12)


def test_average_weighs_problems_equally() -> None:
    assert average([[1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]) == 0.625
    assert average([1.0, 0.0, 0.0, 1.0]) == 0.5  # one sample a problem
    assert math.isnan(average([]))


def test_majority_vote_by_hand() -> None:
    assert majority_vote(["7", "8", "8"]) == "8"
    assert majority_vote(["7", "8", "8", "7"]) == "7"  # tie: first seen
    assert majority_vote([None, None, "3"]) == "3"  # None abstains
    assert majority_vote([None]) is None
    assert majority_vote(["0.5", "2", "1/2", "2", "50%"], lambda a, b: {a, b} <= {"0.5", "1/2", "50%"}) == "0.5"


def test_majority_at_k_is_naive_enumeration() -> None:
    """Over every order of the samples: the vote of the first k, ties to the answer seen first."""
    rng = random.Random(1)
    for _ in range(60):
        answers = [rng.choice(["1", "2", "3", "4", None]) for _ in range(rng.randint(1, 6))]
        solved = [a is not None and rng.random() < 0.5 for a in answers]  # also within one answer: a reward may say so
        for k, share in enumerate(majority_at_k(answers, solved), 1):
            orders = list(permutations(range(len(answers)), k))
            votes = [majority_vote([answers[i] for i in order]) for order in orders]
            right = [
                solved[next(i for i in o if answers[i] == v)] if v else False
                for o, v in zip(orders, votes, strict=True)
            ]
            assert share == pytest.approx(fmean(right), abs=1e-12)


def test_majority_at_k_by_hand() -> None:
    assert majority_at_k(["7", "7", "8"], [True, True, False]) == pytest.approx([2 / 3, 1 / 3 + 2 / 3 / 2, 1])
    assert majority_at_k(["7", "8", None], [True, False, False]) == pytest.approx([1 / 3, (1 / 2 + 1 + 0) / 3, 1 / 2])
    same = lambda a, b: {a, b} <= {"0.5", "1/2"}
    assert majority_at_k(["0.5", "3", "1/2"], [True, False, True], same)[-1] == pytest.approx(1)
    assert majority_at_k([None, None], [False, False]) == pytest.approx([0, 0])


def test_majority_of_many_samples_stays_finite() -> None:
    shares = majority_at_k(["1"] * 600 + ["2"] * 424, [True] * 600 + [False] * 424)
    assert shares[0] == pytest.approx(600 / 1024)
    assert shares[1] == pytest.approx(600 / 1024)  # two samples: alike, or a tie
    assert shares[-1] == pytest.approx(1)
    assert (np.diff(shares) > -1e-9).all()


def test_bootstrap_covers_the_mean_at_its_level() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = bootstrap(rng.binomial(1, 0.4, size=80), draws=400, seed=trial)
        hits += low <= 0.4 <= high
    assert 180 <= hits <= 199
    low, high = bootstrap(np.array([3.0, 3.0, 3.0]))
    assert (low, high) == (3.0, 3.0)


def test_pass_curve_stops_at_the_smallest_n() -> None:
    problems = by_problem([sample("a", 1), sample("b", 0), sample("a", 0), sample("b", 0), sample("a", 0)])
    curve = pass_curve(problems)
    assert [row["k"] for row in curve] == [1, 2]
    assert curve[0]["mean"] == pytest.approx((1 / 3 + 0) / 2)
    assert curve[1]["mean"] == pytest.approx((2 / 3 + 0) / 2)


def test_behaviours_by_hand() -> None:
    rows = [
        behaviour(response_length=100, first_call=10, calls=2, passed=1, code_lines=(1, 3)),
        behaviour(response_length=50, first_call=30, calls=2, passed=2, code_lines=(2, 2)),
        behaviour(response_length=30),
        behaviour(response_length=20, first_call=5, calls=0),  # called, but not executed: over a budget
    ]
    six = tool_use_summary(rows)
    assert six["response_length"]["mean"] == 50
    assert six["first_call"]["mean"] == 15
    assert six["code_ratio"] == 0.75
    assert six["code_pass_ratio"] == 0.75
    assert six["code_rounds"]["mean"] == 1.0
    assert six["code_rounds"]["counts"] == [2, 0, 2]
    assert six["code_lines"]["mean"] == 2.0


def test_spread_counts_every_value_once() -> None:
    values = [random.Random(2).gauss(0, 100) for _ in range(999)]
    row = spread(values)
    assert sum(row["counts"]) == 999
    assert len(row["edges"]) == len(row["counts"]) + 1
    assert spread([]) is None
    assert spread([5])["counts"] == [1]


def test_summary_by_hand() -> None:
    samples = [
        sample("a", 1.0, "4", first_call=3, calls=1, passed=1, code_lines=(1,), sandbox_s=0.5),
        sample("a", 0.0, "5", errors=("NameError",), trivial=True, first_call=9, calls=1, code_lines=(1,)),
        sample("a", 1.0, "4"),
        sample("b", 0.0, None, void=True),
        sample("b", 0.0, "1"),
        sample("b", 0.0, "2", late_calls=2, first_call=0, calls=3, passed=3, code_lines=(1, 1, 1)),
    ]
    m = summarize(samples)
    assert m["avg"]["mean"] == pytest.approx(1 / 3)
    assert m["maj"]["mean"] == 0.5
    assert [row["mean"] for row in m["pass"]] == pytest.approx([1 / 3, 0.5, 0.5])
    assert [row["mean"] for row in m["majority"]] == pytest.approx([1 / 3, 1 / 3, 0.5])
    assert scalar(m, "maj@2") == pytest.approx(1 / 3)
    assert m["errors"] == {"NameError": 1}
    assert m["reward_with_tool"] == pytest.approx(1 / 3)
    assert m["reward_without_tool"] == pytest.approx(1 / 3)
    assert m["tokens_a_problem"] == 24
    assert m["sandbox_s_a_problem"] == 0.25
    assert m["late_calls"] == 2
    assert m["trivial_code_ratio"] == pytest.approx(1 / 3)
    assert m["void_ratio"] == pytest.approx(1 / 6)
    assert scalar(m, "pass@2") == pytest.approx(0.5)
    assert scalar(m, "code_pass_ratio") == pytest.approx(4 / 5)
    with pytest.raises(KeyError):
        scalar(m, "pas@2")


def test_summary_of_nothing_says_nothing() -> None:
    m = summarize([])
    assert m["avg"] is None
    assert m["pass"] == []
    assert m["behaviour"]["code_ratio"] is None
