"""Estimators by hand, on numbers that sit on no symmetry: each of these kills a mutant that lived (docs/testing.md)."""

import itertools

import numpy as np
import pytest
from tiny_ledgers import one_each, trajectory

from solostream.errors import UserError
from solostream.training.advantages import grouped, tracker_of
from solostream.training.advantages.aspo import ASPO
from solostream.training.advantages.base import Advantages
from solostream.training.advantages.grpo import GRPO, DrGRPO
from solostream.training.advantages.reinforce import OPO, Reinforce
from solostream.training.advantages.rloo import RLOO
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.value_tracker import ValueTracker

REWARDS = (1.0, 0.0, 0.25, 0.25, 0.5)  # mean 0.4, squared deviations 0.36, 0.16, 0.0225, 0.0225, 0.01: variance 0.115


def group(rewards=REWARDS, lengths=None, number=0) -> list:
    return [
        trajectory(f"t{i}", reward, response=range(4 if lengths is None else lengths[i]), group=number, event=i)
        for i, reward in enumerate(rewards)
    ]


def test_dr_grpo_does_not_divide() -> None:
    assert one_each(DrGRPO()(group())) == pytest.approx([0.6, -0.4, -0.15, -0.15, 0.1])


def test_grpo_adds_epsilon_to_the_deviation() -> None:
    for deviation, variance in (("sample", 0.575 / 4), ("population", 0.575 / 5)):
        got = one_each(GRPO(epsilon=0.25, deviation=deviation)(group()))
        assert got == pytest.approx([raw / (variance**0.5 + 0.25) for raw in (0.6, -0.4, -0.15, -0.15, 0.1)])


@pytest.mark.parametrize(("estimator", "variance"), [(GRPO(), 0.115), (RLOO(), 0.115 * (5 / 4) ** 2)])
def test_the_spread_is_that_of_the_advantages_before_any_division(estimator, variance: float) -> None:
    got = estimator(group()).metrics
    assert got == pytest.approx(
        {
            "advantage/mean": 0.0,
            "advantage/variance": variance,
            "advantage/near_zero": 0.0,
            "advantage/degenerate": 0.0,
            "reward/variance": 0.115,
        }
    )


def test_opo_of_one_token_is_compared_with_itself() -> None:
    assert one_each(OPO()(group([0.75], [1], None))) == [0]


def test_aspo_running_leaves_a_wrong_answer_alone() -> None:
    """Two correct ones at 100 and 500 of 1000 tokens, mean 300; the wrong one has no place among them."""
    batch = [
        trajectory("a", reward, response=range(1000), call_at=at) for reward, at in ((1.0, 100), (0.0, 900), (1.0, 500))
    ]
    assert one_each(ASPO(Reinforce(), compare="running")(batch)) == pytest.approx([1.4, 0.0, 0.6])


def test_what_a_chain_keeps_and_compares_is_found_at_any_depth() -> None:
    tracker = ValueTracker()
    assert tracker_of(SPO(tracker)) is tracker
    assert tracker_of(ASPO(ASPO(SPO(tracker)))) is tracker
    assert tracker_of(ASPO(RLOO())) is None

    for chain in (RLOO(), ASPO(ASPO(RLOO())), ASPO(SPO(tracker), compare="group")):
        assert grouped(chain, 2)
        with pytest.raises(UserError, match=r"set algorithm\.group_size to 2 or more"):
            grouped(chain, 1)
    for size, optional in ((1, False), (2, True), (3, True)):
        assert grouped(OPO(), size) is optional
        assert grouped(ASPO(OPO()), size) is optional
        assert not grouped(ASPO(SPO(tracker)), size)


def test_outcomes_under_one_number_have_one_order_whichever_came_first() -> None:
    """They differ in one field each, so that each field decides at least once."""
    outcomes = [(0.25, 0.03, 1), (0.25, 0.01, 1), (0.25, None, 1), (0.25, None, None), (0.25, None, 0), (0.5, 0.01, 1)]
    states = []
    for order in itertools.permutations(outcomes):
        tracker = ValueTracker()
        tracker.record_drift(1, 0.02)
        for reward, divergence, version in order:
            tracker.observe("a", reward, divergence, event=7, version=version)
        states.append(tracker.state_dict())
    assert all(state == states[0] for state in states)


def test_the_oldest_outcome_leaves_the_window() -> None:
    tracker = ValueTracker(window=2)
    for event, reward in ((3, 1.0), (5, 0.0), (9, 0.25)):
        tracker.observe("a", reward, 0.0, event=event)
    assert [event for event, *_ in tracker.state_dict()["beliefs"]["a"]["events"]] == [5, 9]


def test_the_evidence_of_a_batch_is_told_after_it_has_been_added() -> None:
    """Half a success and half a failure, and one outcome after the least forgetting: 0.96 + 1."""
    batch = [trajectory("a", 1.0, event=0), trajectory("b", 0.0, event=1)]
    assert SPO(ValueTracker())(batch).metrics["tracker/n_eff"] == pytest.approx(1.96)


class Told:
    """An inner estimator that returns what it was given, and keeps what it is handed back."""

    def __init__(self, *values: list[float]) -> None:
        self.values, self.state = [np.array(one) for one in values], {"seen": 3}

    def __call__(self, batch) -> Advantages:
        return Advantages(self.values)

    def state_dict(self):
        return self.state

    def load_state_dict(self, state) -> None:
        self.state = state


def test_aspo_counts_as_cut_what_the_bounds_stop_on_every_token() -> None:
    """First calls at 0 and 2 of four tokens: ±1/2. At k = .7 the first is cut on one token only, the second on all."""
    batch = [trajectory("a", response=range(4), call_at=0), trajectory("b", response=range(4), call_at=2)]
    got = ASPO(Told([0.2, 2.0, 2.0, 2.0], [0.5, 0.5, 0.6, 0.5]), -2.0, 0.7)(batch)
    assert got.values[0] == pytest.approx([0.34, 2.5, 2.5, 2.5])
    assert got.values[1] == pytest.approx([0.15, 0.15, 0.18, 0.15])
    assert got.metrics["aspo/clipped"] == 0.5


def test_aspo_hands_its_inner_estimator_its_own_state() -> None:
    first, second = Told(), Told()
    ASPO(second).load_state_dict(ASPO(first).state_dict() | {"inner": {"seen": 7}})
    assert second.state == {"seen": 7}
    assert first.state == {"seen": 3}
