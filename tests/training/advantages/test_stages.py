"""Stages around an estimator, and the estimators of the frontier, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_ledgers import one_each, trajectory

from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantages
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.maxrl import MaxRL, MaxRLStream
from solostream.training.advantages.optimal_token import OptimalToken
from solostream.training.advantages.rloo import RLOO
from solostream.training.advantages.shrinkage import Shrinkage
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.stages.improbable_tokens import ImprobableTokens
from solostream.training.advantages.stages.inclusion_weights import InclusionWeights
from solostream.training.advantages.stages.negative_tokens import NegativeTokens
from solostream.training.advantages.stages.negative_weight import NegativeWeight
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch
from solostream.training.config import assign, validate
from solostream.training.rollouts.task_sampler import Prioritized, Uniform


class Given:
    """An estimator that gives what it was made with."""

    def __init__(self, *values: list[float]) -> None:
        self.values = values

    def __call__(self, batch) -> Advantages:
        return Advantages([np.array(v) for v in self.values])

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...


def answer(*probabilities: float, reward: float = 0.0, **fields) -> Trajectory:
    logprobs = [math.log(p) for p in probabilities]
    return trajectory("t", reward, response=range(len(probabilities)), logprobs=logprobs, **fields)


def test_negative_weight() -> None:
    got = NegativeWeight(Given([1.5, -2.0], [-0.4]), 0.25)([answer(0.5, 0.5), answer(0.5)])
    assert [v.tolist() for v in got.values] == [[1.5, -0.5], [-0.1]]


def test_of_a_negative_trajectory_the_least_likely_tokens_are_pushed_down() -> None:
    """Four negative tokens, half of them: .02 and .3; a positive token among them stays what it is."""
    batch = [answer(0.9, 0.3, 0.01, 0.02, 0.8), answer(0.1, 0.2)]
    got = NegativeTokens(Given([-1, -1, 2, -1, -1], [1, 1]), 0.5)(batch)
    assert [v.tolist() for v in got.values] == [[0, -1, 2, -1, 0], [1, 1]]
    least = NegativeTokens(Given([-1] * 5, [-1] * 2), 0.1)(batch)
    assert [v.tolist() for v in least.values] == [[0, 0, -1, 0, 0], [-1, 0]]


def test_improbable_negative_tokens_are_capped() -> None:
    """Floor .1: .02 counts a fifth, .1 and .5 count whole; a positive one is never touched."""
    got = ImprobableTokens(Given([-2.0, -2.0, -2.0, 3.0]), 0.1)([answer(0.02, 0.1, 0.5, 0.001)])
    assert got.values[0].tolist() == pytest.approx([-0.4, -2.0, -2.0, 3.0], rel=1e-6)


def test_inclusion_weights_give_the_pool_its_mean_back() -> None:
    """Tasks drawn by √(v(1 − v)) + ε: with the stage Σ over draws is, up to one factor, uniform over the pool."""
    values = [0.02, 0.5, 0.81, 0.3]
    drawn = [math.sqrt(v * (1 - v)) + 0.07 for v in values]
    batch = [answer(0.5, value=v, event=i) for i, v in enumerate(values)]
    sampler = Prioritized(["t"], ValueTracker(), epsilon=0.07)
    got = one_each(InclusionWeights(Given([1.0], [1.0], [1.0], [1.0]), sampler)(batch))
    assert np.ptp([q * a for q, a in zip(drawn, got, strict=True)]) == pytest.approx(0, abs=1e-12)
    assert np.mean(got) == pytest.approx(1)
    with pytest.raises(UserError, match="drawn without a value"):
        InclusionWeights(Given([1.0]), sampler)([answer(0.5, value=None)])


def test_inclusion_weights_undo_the_samplers_own_weights_as_they_were_drawn_by() -> None:
    """ε = .2, γ = .7, N of 4, 8 and 1: what the tracker says of a task when it is drawn, not after its batch."""
    tracker = ValueTracker()
    tracker.initialize("a", [1, 0, 0, 1], version=0)
    tracker.initialize("b", [1] * 7 + [0] * 5, version=0)
    ids = ["a", "b", "new"]
    drawn = tracker.weights(ids, 0.2, 0.7)
    batch = [trajectory(t, 1.0, value=tracker.value(t), event=i) for i, t in enumerate(ids)]
    plain = [1 - tracker.value(t) for t in ids]
    stage = InclusionWeights(SPO(tracker, scale="none"), Prioritized(ids, tracker, epsilon=0.2, gamma=0.7))
    got = one_each(stage(batch))
    mean = sum(1 / w for w in drawn) / 3
    assert got == pytest.approx([a / (w * mean) for a, w in zip(plain, drawn, strict=True)])
    assert tracker.weights(ids, 0.2, 0.7) != pytest.approx(drawn)


@pytest.mark.parametrize("sampler", ["uniform", "bands", "dump", "reformulate"])
def test_inclusion_weights_are_refused_with_another_sampler(sampler: str) -> None:
    stage = 'algorithm.stages=["inclusion_weights"]'
    with pytest.raises(UserError, match=r"set algorithm\.sampler = 'prioritized'"):
        validate(assign({}, [stage, f"algorithm.sampler={sampler}"]))
    with pytest.raises(UserError, match=r"set algorithm\.sampler = 'prioritized'"):
        validate(assign({}, [stage, "algorithm.advantage=reinforce_pp"]))  # draws uniformly
    with pytest.raises(UserError, match="leave it out"):
        InclusionWeights(SPO(ValueTracker()), Uniform(["a"]))
    assert validate(assign({}, [stage])).algorithm.task_sampler == "prioritized"


def group(rewards: list[float], number: int = 0) -> list[Trajectory]:
    return [trajectory(f"t{number}", r, group=number, event=i) for i, r in enumerate(rewards)]


def test_grpo_divides_by_the_deviation_of_the_sample() -> None:
    """1, 0, 0, 0, 0: mean .2, Σ(r − mean)² = .8: √(.8/4) against √(.8/5)."""
    rewards = group([1, 0, 0, 0, 0])
    assert one_each(GRPO(epsilon=0)(rewards))[0] == pytest.approx(0.8 / math.sqrt(0.2))
    assert one_each(GRPO(epsilon=0, deviation="population")(rewards))[0] == pytest.approx(0.8 / math.sqrt(0.16))


def test_groups_leave_out_what_a_filter_takes_out() -> None:
    batch = Batch(group([1, 0, 0, 1]), [True, True, False, True])
    assert one_each(RLOO()(batch)) == pytest.approx([0.5, -1.0, 0.0, 0.5])


def test_maxrl() -> None:
    """Mean .25: 3 and -1; a group without a right answer says nothing; an unbiased gradient of log-likelihood."""
    got = one_each(MaxRL()([*group([1, 0, 0, 0]), *group([0, 0], 1)]))
    assert got == pytest.approx([3, -1, -1, -1, 0, 0])
    batch = [trajectory("a", 1, value=0.4), trajectory("b", 0, value=0.02, event=1)]
    assert one_each(MaxRLStream(ValueTracker())(batch)) == pytest.approx([1.5, -0.2])


def test_shrinkage_by_hand() -> None:
    """Group 0 against groups of means 1/3, 2/3, 1 (variances 1/3, 1/3, 0): σ² = 2/9, τ² = 1/9 − 2/27 = 1/27."""
    batch = [*group([1, 0]), *group([1, 0, 0], 1), *group([1, 1, 0], 2), *group([1, 1, 1], 3)]
    weight = (2 / 9) / (2 / 9 + 1 / 27)  # of a mean of one other answer
    got = one_each(Shrinkage()(batch))
    assert got[0] == pytest.approx(1 - weight * 2 / 3)
    assert got[1] == pytest.approx(0 - ((1 - weight) * 1 + weight * 2 / 3))


def test_shrinkage_goes_to_the_leave_one_out_mean_where_prompts_differ() -> None:
    unlike = [*group([1] * 8), *group([0] * 8, 1), *group([1] * 8, 2), *group([0] * 8, 3)]
    assert one_each(Shrinkage()(unlike)) == pytest.approx(one_each(RLOO()(unlike)))
    alone = group([1, 0, 0])
    assert one_each(Shrinkage()(alone)) == pytest.approx(one_each(RLOO()(alone)))


def test_optimal_token_baseline_by_hand() -> None:
    """w = .25 and .01 for the first answer (right), .81 and .36 for the second, .04 for the third (right)."""
    batch = [
        answer(0.5, 0.9, reward=1.0, group=0),
        answer(0.1, 0.4, reward=0.0, group=0),
        answer(0.8, reward=1.0, group=0),
    ]
    got = OptimalToken()(batch).values
    first, second = (0.25 + 0.04) / (0.25 + 0.81 + 0.04), 0.26 / (0.26 + 1.17)
    assert got[0].tolist() == pytest.approx([1 - first, 1 - second], rel=1e-6)
    assert got[1].tolist() == pytest.approx([-first, -second], rel=1e-6)
    assert got[2].tolist() == pytest.approx([1 - first], rel=1e-6)


def test_where_only_one_answer_is_that_long_there_is_no_baseline() -> None:
    batch = [answer(0.5, 0.9, 0.3, reward=0.7, group=0), answer(0.1, reward=0.0, group=0)]
    assert OptimalToken()(batch).values[0].tolist()[1:] == [0.7, 0.7]


def test_optimal_turn_baseline_compares_turns() -> None:
    """Two turns of one token, and of two and one: the first turn's energy is .25 against .36 + .01."""

    def two(first: list[float], second: list[float], reward: float) -> Trajectory:
        ledger = TokenRecord()
        ledger.add_observation("user", [1], "")
        for turn in (first, second):
            ledger.add_action([2] * len(turn), [math.log(p) for p in turn], [0] * len(turn), "")
            ledger.add_observation("tool", [3, 3], "")
        return ledger.close("t", reward, "answered", dispatch=Dispatch(0, None, 0, 0))

    got = OptimalToken(by="turn")([two([0.5], [0.2], 1.0), two([0.4, 0.9], [0.7], 0.0)]).values
    first, second = 0.25 / (0.25 + 0.37), 0.89 / (0.89 + 0.46)
    assert got[0].tolist() == pytest.approx([1 - first, 1 - second], rel=1e-6)
    assert got[1].tolist() == pytest.approx([-first, -first, -second], rel=1e-6)
