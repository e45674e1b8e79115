"""Rewards by hand."""

import asyncio
import math
from itertools import pairwise

import pytest

from solostream.envs.rewards import Episode, RewardError, Rubric
from solostream.envs.rewards.builtin import otc_tool_reward
from solostream.envs.rewards.economy import tier
from solostream.envs.types import Step, Task, ToolCall
from solostream.errors import UserError
from solostream.sandbox.types import Execution

DONE, FAILED = Execution(), Execution(status="error")


def half(episode):
    return 0.5


def too_much(episode):
    return 2.0


def episode(answer="5", executions=(DONE,), status="ok", meta=None, ending="answered"):
    calls = tuple(ToolCall("python", {"code": "1"}, (0, 1), status) for _ in executions)
    steps = [Step("", calls, tuple(executions), (), 0.0, None)] if executions else []
    steps.append(Step("", (), (), (), 0.0, ending, answer))
    return Episode(Task("t", "?", "5", meta=meta or {}), tuple(steps), answer, ending, 4)


def total(weights, of):
    rubric = Rubric(weights)
    return rubric.total(asyncio.run(rubric.scores(of)))


@pytest.mark.parametrize(
    ("name", "of", "expected"),
    [
        ("correct", episode("5"), 1),
        ("correct", episode("6"), 0),
        ("correct", episode(None), 0),
        ("answered", episode("6"), 1),
        ("answered", episode(None, ending="turn_limit"), 0),
        ("well_formed", episode(), 1),
        ("well_formed", episode(status="malformed"), 0),
        ("well_formed", episode(None), 0),  # a void last turn
        ("code_passes", episode(executions=(DONE, FAILED, None, DONE)), 2 / 3),
        ("code_passes", episode(executions=()), 1),
        ("otc", episode("6"), 0),
        ("otc", episode(executions=()), 1),
        ("otc", episode(executions=(DONE,)), math.cos(math.pi / 6)),  # m = 1, c = 4
        ("otc", episode(executions=(DONE,), meta={"min_calls": 1}), 1),
        ("otc", episode(executions=(DONE,), meta={"min_calls": "1"}), 1),  # from a CSV file
        ("tapo", episode("5"), 1),
        ("tapo", episode("6"), 0.5),
        ("tapo", episode("5", status="malformed"), 0),  # the format comes first
        ("tapo", episode(None, ending="turn_limit"), 0),
        ("tapo", episode("5", executions=(DONE,) * 9), 1),  # neither a bonus nor a price for calls
        ("tiers", episode("6"), 0),
        ("tiers", episode("5", executions=()), 1),  # otc 1
        ("tiers", episode("5", executions=(DONE,)), 1),  # otc .866: the best zone, as no call at all
        ("tiers", episode("5", executions=(DONE,) * 4), 0.5625),  # otc cos(π/3) = .5: zone 3 of 4, squared
        ("tiers", episode("5", executions=(DONE,) * 40), 0.0625),  # otc .0747: zone 1
    ],
)
def test_each_reward(name, of, expected):
    assert total(name, of) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("calls", "fewest", "expected"),
    [
        (0, None, 1.0),
        (2, None, math.cos(2 * math.pi / 8)),
        (10**6, None, 0.0),
        (0, 0, 1.0),
        (3, 0, math.cos(3 * math.pi / 10)),
        (2, 2, 1.0),  # f = 2, sin(π/2)
        (0, 2, 0.0),
        (6, 2, math.sin(3 * math.pi / 4)),  # f = 24/8 = 3
        (1, 2, math.sin(math.pi / 3)),  # f = 4/3
    ],
)
def test_otc_by_hand(calls, fewest, expected):
    assert otc_tool_reward(calls, c=4, fewest=fewest) == pytest.approx(expected, abs=1e-5)


def test_a_rubric_is_a_weighted_sum():
    weights = {"correct": 0.75, "well_formed": 0.25}
    assert total(weights, episode("5")) == 1.0
    assert total(weights, episode("5", status="malformed")) == 0.75
    assert total(weights, episode("6")) == 0.25
    assert total({"test_rewards:half": 0.5, "correct": 0.5}, episode("5")) == 0.75


@pytest.mark.parametrize("weights", [{}, {"correct": 0.0}, {"correct": 1.2}, {"correct": 0.9, "answered": -0.1}])
def test_weights_that_leave_the_range(weights):
    with pytest.raises(UserError, match="sum to at most 1"):
        Rubric(weights)


def test_unknown_rewards_and_scores_out_of_range():
    with pytest.raises(UserError, match="did you mean 'correct'"):
        Rubric("corect")
    with pytest.raises(UserError, match="there is no module 'nowhere'"):
        Rubric("nowhere:f")
    with pytest.raises(RewardError, match=r"must lie in \[0, 1\]"), pytest.warns(RuntimeWarning):
        total("test_rewards:too_much", episode())


def test_tiers_keep_the_order_and_grow_faster_towards_the_sweet_spot():
    qualities = [0.0, 0.01, 0.24, 0.25, 0.5, 0.74, 0.75, 0.99, 1.0]
    got = [tier(q, 4, 2.0) for q in qualities]
    assert got == pytest.approx([0, 1 / 16, 1 / 16, 1 / 4, 9 / 16, 9 / 16, 1, 1, 1])
    steps = [tier((i + 0.5) / 4, 4, 2.0) for i in range(4)]
    gains = [b - a for a, b in pairwise(steps)]
    assert gains == sorted(gains)
    assert tier(0.5, 1, 2.0) == 1  # one zone is a plain reward
    assert total({"tiers": {"of": "code_passes", "zones": 3, "power": 1}}, episode(executions=(DONE, FAILED))) == (
        pytest.approx(2 / 3)
    )
    with pytest.raises(UserError, match="zones"):
        Rubric({"tiers": {"zones": 0}})
