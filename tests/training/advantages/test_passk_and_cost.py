"""Pass@k training and the price of calls: numbers by hand, and toy problems on which they do what their papers say."""

from __future__ import annotations

import json
from itertools import combinations
from statistics import fmean, pstdev

import numpy as np
import pytest
from tiny_ledgers import one_each, trajectory

from solostream.errors import UserError
from solostream.training.advantages import estimator
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.passk import PassK, passk_advantages
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.stages.tool_cost import ToolCost
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch


def group_of(rewards: list[float], group: int = 0) -> list:
    return [trajectory("x", r, event=i + 10 * group, group=group) for i, r in enumerate(rewards)]


@pytest.mark.parametrize(
    ("n", "right", "k", "expected"),
    [
        (4, 1, 2, (1.0, -1 / 3)),  # R = 1/2, σ = 1/2; C(2,1)/C(3,1) = 2/3
        (8, 3, 4, (0.27735, -0.16641)),  # R = 13/14; C(4,3)/C(7,3) = 4/35
        (8, 6, 4, (0.0, 0.0)),  # two wrong: every four have a right one
        (6, 0, 2, (0.0, 0.0)),
        (5, 2, 1, (1.22474, -0.81650)),  # GRPO, population deviation
        (3, 1, 8, (0.0, 0.0)),  # the whole group is one try, and it succeeded
    ],
)
def test_passk_by_hand(n: int, right: int, k: int, expected: tuple[float, float]) -> None:
    assert passk_advantages(n, right, k) == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(("n", "right", "k"), [(5, 2, 3), (7, 1, 2), (6, 4, 2), (9, 2, 6)])
def test_passk_is_the_mean_over_all_subsets(n: int, right: int, k: int) -> None:
    """The definition written out: a subset's advantage is (max − mean)/deviation, an answer's the mean of its own."""
    rewards = [1.0] * right + [0.0] * (n - right)
    subsets = list(combinations(range(n), k))
    best = [max(rewards[i] for i in subset) for subset in subsets]
    mean, deviation = fmean(best), pstdev(best)
    own = [fmean((b - mean) / deviation for b, s in zip(best, subsets, strict=True) if i in s) for i in (0, n - 1)]
    assert passk_advantages(n, right, k) == pytest.approx(own, abs=1e-12)


def test_passk_in_a_batch_by_groups() -> None:
    batch = Batch([*group_of([0.0, 1.0, 0.0, 0.0]), *group_of([0.75, 0.5, 0.0], 1), *group_of([1.0, 1.0], 2)])
    got = PassK(k=2)(batch)
    assert one_each(got)[:4] == pytest.approx([-1 / 3, 1, -1 / 3, -1 / 3])
    assert one_each(got)[4:7] == pytest.approx([2**-0.5, -(2**-0.5) / 2, -(2**-0.5) / 2])  # one right of three
    assert one_each(got)[7:] == [0.0, 0.0]
    assert got.metrics["advantage/degenerate"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="has no group"):
        PassK()(Batch([trajectory()]))


def test_undivided_it_is_the_gradient_of_passk() -> None:
    """Policy of two actions, p right: d/dθ (1 − (1 − p)^k) = k(1 − p)^(k−1)·p(1 − p); the mean of A·∇log π is 1/k of
    it, in expectation over all groups; the group's own R as baseline shrinks it as GRPO's mean does."""
    p, n, k = 0.3, 7, 3
    exact, total = (1 - p) ** (k - 1) * p * (1 - p), 0.0
    for right in range(n + 1):
        chance = float(np.prod([1.0]) * _binomial(n, right) * p**right * (1 - p) ** (n - right))
        good, bad = passk_advantages(n, right, k, divide=False)
        r_of_group = 1 - _choose(n - right, k) / _choose(n, k)
        # with the baseline put back: the unbiased estimate itself
        degenerate = good == bad == 0.0
        a_good, a_bad = (good + r_of_group, bad + r_of_group) if not degenerate else _undegenerate(n, right, k)
        total += chance * (right * a_good * (1 - p) + (n - right) * a_bad * -p) / n
    assert total == pytest.approx(exact, rel=1e-12)


def _undegenerate(n: int, right: int, k: int) -> tuple[float, float]:
    """Where every subset, or none, has a right answer: 1 for the right ones, and for a wrong one the others' chance."""
    others_fail = _choose(n - right - 1, k - 1) / _choose(n - 1, k - 1) if right < n else 0.0
    return 1.0, 1 - others_fail


def _choose(n: int, k: int) -> float:
    return float(_binomial(n, k)) if 0 <= k <= n else 0.0


def _binomial(n: int, k: int) -> int:
    return int(np.prod([(n - i) / (i + 1) for i in range(k)]).round()) if k else 1


def explored(k: int, *, steps: int = 1500, seed: int = 0) -> float:
    """Two ways, 60 % of the problems are solved by the first, 40 % by the second, and nothing tells them apart.
    π(first way) after training with groups of 8. k = 1 is GRPO without its division."""
    rng, theta = np.random.default_rng(seed), 0.0
    for _ in range(steps):
        p = 1 / (1 + np.exp(-theta))
        first = rng.random((8, 8)) < p
        right = first == (rng.random((8, 1)) < 0.6)
        found = [passk_advantages(8, int(row.sum()), k, divide=False) for row in right]
        values = np.array([np.where(row, *pair) for row, pair in zip(right, found, strict=True)])
        theta += 0.1 * float((values * (first - p)).mean())
    return float(1 / (1 + np.exp(-theta)))


def test_passk_keeps_the_second_way_where_grpo_gives_it_up() -> None:
    """pass@4 is largest at .6(1−p)³ = .4p³, p = .534; pass@1 at p = 1."""
    assert explored(4) == pytest.approx(0.534, abs=0.06)
    assert explored(1) > 0.9


def test_calls_are_free_until_the_policy_without_a_tool_is_known_to_do() -> None:
    tracker = ValueTracker()
    tracker.initialize("easy~direct", [1] * 8)  # v₀ = 8.5/9
    tracker.initialize("hard~direct", [0] * 6 + [1] * 2)
    stage = ToolCost(GRPO(divide=False), tracker)
    batch = Batch(
        [
            trajectory("easy", 1.0, call_at=1, group=0),
            trajectory("easy", 1.0, group=0),
            trajectory("hard", 1.0, call_at=1, group=1),
            trajectory("hard", 1.0, group=1),
            trajectory("new", 1.0, call_at=1, group=2),
            trajectory("new", 0.0, call_at=1, group=2),
        ]
    )
    cost = (8.5 / 9) ** 2  # 0.89198
    got = stage(batch)
    assert one_each(got) == pytest.approx([-cost / 2, cost / 2, 0, 0, 0.5, -0.5])
    assert got.metrics["tool_cost/mean"] == pytest.approx(cost / 6)
    assert [t.reward for t in batch] == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]  # the log keeps what was paid
    assert one_each(ToolCost(GRPO(divide=False), tracker, known=0.95)(batch))[:2] == [0.0, 0.0]


def test_what_a_filter_takes_out_is_not_compared_with_after_the_price_either() -> None:
    tracker = ValueTracker()
    batch = Batch([trajectory("x", r, event=i, group=0) for i, r in enumerate((1.0, 0.0, 0.25))], [True, False, True])
    assert one_each(ToolCost(GRPO(divide=False), tracker)(batch))[::2] == pytest.approx([0.375, -0.375])


def test_a_tracker_that_is_kept_two_stages_further_in_is_not_told_twice() -> None:
    tracker, alone = ValueTracker(), ValueTracker()
    stage = estimator("spo", ("negative_weight", "tool_cost"), {}, tracker, lambda batch: [])[-1]
    batch = Batch([trajectory("x", float(i % 3 == 0), event=i, group=0) for i in range(5)])
    stage(batch)
    SPO(alone)(batch)
    assert tracker.evidence("x") == alone.evidence("x")


@pytest.mark.parametrize("inner", ["spo", "grpo"])
def test_evidence_enters_the_tracker_once_whoever_keeps_it(inner: str) -> None:
    tracker, alone = ValueTracker(), ValueTracker()
    stage = estimator(inner, ("tool_cost",), {}, tracker, lambda batch: [])[-1]
    batch = Batch([trajectory("x", float(i % 2), event=i, group=0) for i in range(4)])
    stage(batch)
    SPO(alone)(batch)
    assert tracker.evidence("x") == alone.evidence("x")
    stage.load_state_dict(json.loads(json.dumps(stage.state_dict())))


def routed(*, priced: bool, seed: int = 0) -> tuple[float, float]:
    """Share of episodes with a call, on easy and on hard problems, after training. The tool is right .95 of the time;
    without it easy ones are right .9 and hard ones .1 of the time. A quarter of the episodes goes out without it."""
    tracker, rng = ValueTracker(), np.random.default_rng(seed)
    advantage: object = SPO(tracker)
    if priced:
        advantage = ToolCost(SPO(tracker), tracker)
    alone, theta, event = {"easy": 0.9, "hard": 0.1}, {"easy": 0.0, "hard": 0.0}, 0
    for version in range(200):
        batch, acted = [], []
        for i in range(32):
            kind = ("easy", "hard")[i % 2]
            direct = rng.random() < 0.25
            called = not direct and rng.random() < 1 / (1 + np.exp(-theta[kind]))
            reward = float(rng.random() < (0.95 if called else alone[kind]))
            name = f"{kind}~direct" if direct else kind
            at = 1 if called else None
            batch.append(trajectory(name, reward, event=event, value=tracker.value(name), version=version, call_at=at))
            acted.append((kind, direct, called))
            event += 1
        values = one_each(advantage(Batch(batch)))  # type: ignore[operator]
        for a, (kind, direct, called) in zip(values, acted, strict=True):
            if not direct:
                p = 1 / (1 + np.exp(-theta[kind]))
                theta[kind] += 0.1 * a * (called - p)
    return tuple(float(1 / (1 + np.exp(-theta[kind]))) for kind in ("easy", "hard"))  # type: ignore[return-value]


def test_with_the_price_easy_problems_are_answered_at_once_and_hard_ones_with_the_tool() -> None:
    easy, hard = routed(priced=True)
    assert easy < 0.1
    assert hard > 0.9
    easy_free, hard_free = routed(priced=False)
    assert easy_free > 0.4
    assert hard_free > 0.9
