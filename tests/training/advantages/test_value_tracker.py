"""The tracker's worked numbers, and the order of evidence."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solostream.errors import UserError
from solostream.training.advantages.value_tracker import ValueTracker


def started(alpha: float, beta: float) -> ValueTracker:
    tracker = ValueTracker()
    state = tracker.state_dict()
    state["beliefs"]["x"] = {"start": [alpha, beta, None], "now": [alpha, beta], "events": []}
    tracker.load_state_dict(state)
    return tracker


def test_forgetting_is_clipped_from_below() -> None:
    tracker = started(4, 4)
    tracker.observe("x", 1, divergence=0.06)  # 2^-1 = 0.5 -> 0.875
    assert tracker.evidence("x") == (4.5, 3.5)
    assert tracker.value("x") == 0.5625 == 0.5 + (1 - 0.5) / 8  # eta = 1/(0.875*8 + 1)


def test_forgetting_inside_the_clip() -> None:
    tracker = started(6, 2)
    tracker.observe("x", 0, divergence=0.005)  # 2^(-1/12) = 0.94387
    assert tracker.evidence("x") == pytest.approx((5.66325, 2.88775), abs=5e-6)
    assert tracker.value("x") == pytest.approx(0.66229, abs=5e-6)


def test_no_divergence_forgets_least() -> None:
    tracker = started(5, 5)
    tracker.observe("x", 1)
    assert tracker.evidence("x") == pytest.approx((0.96 * 5 + 1, 0.96 * 5))


def test_offline_start() -> None:
    tracker = ValueTracker()
    tracker.initialize("x", [1, 0, 1, 0, 0, 1, 0, 0])
    assert tracker.value("x") == pytest.approx(3.5 / 9)
    assert tracker.evidence("x") == pytest.approx((3.11111, 4.88889), abs=5e-6)


def test_the_first_observation_forgets_by_the_travel_since_the_start() -> None:
    tracker = ValueTracker()
    tracker.initialize("x", [1, 0, 1, 0, 0, 1, 0, 0], version=0)
    tracker.record_drift(1, 0.005)  # 2^(-1/12)
    tracker.observe("x", 0, event=0, version=1)
    rho = 2 ** (-1 / 12)
    assert tracker.evidence("x") == pytest.approx((rho * 8 * 3.5 / 9, rho * 8 * 5.5 / 9 + 1))


def test_start_without_outcomes_is_jeffreys() -> None:
    tracker = ValueTracker()
    tracker.initialize("x", [])
    assert tracker.evidence("x") == tracker.evidence("never seen") == (0.5, 0.5)
    tracker.observe("x", 1)
    assert tracker.evidence("x") == pytest.approx((1.48, 0.48))


def test_fractional_reward_is_the_moving_average() -> None:
    tracker = started(3, 5)
    v = tracker.value("x")
    tracker.observe("x", 0.3, divergence=0.01)
    rho = min(max(2 ** (-0.01 / 0.06), 0.875), 0.96)
    assert tracker.value("x") == pytest.approx(v + (0.3 - v) / (rho * 8 + 1))


def test_evidence_converges_to_the_window() -> None:
    tracker = ValueTracker()
    for _ in range(400):
        tracker.observe("x", 1, divergence=1.0)
        tracker.observe("y", 1, divergence=0.0)
    assert sum(tracker.evidence("x")) == pytest.approx(8)  # 1/(1 - 0.875)
    assert sum(tracker.evidence("y")) == pytest.approx(25)  # 1/(1 - 0.96)


@pytest.mark.parametrize("reward", [-0.1, 1.1, float("nan"), float("inf")])
def test_reward_outside_the_unit_interval_names_task_and_remedy(reward: float) -> None:
    with pytest.raises(UserError, match=r"task sums-7 .*reward_range"):
        ValueTracker().observe("sums-7", reward)


@pytest.mark.parametrize("settings_", [{"rho_min": 0.97}, {"rho_max": 1.0}, {"d_half": 0}, {"window": 0}])
def test_impossible_settings(settings_: dict) -> None:
    with pytest.raises(UserError, match="rho_min"):
        ValueTracker(**settings_)


def test_weights() -> None:
    tracker = started(1, 3)
    assert tracker.weights(["x", "new"]) == pytest.approx([(0.25 * 0.75) ** 0.5 + 0.05, 0.55])


@pytest.mark.parametrize(
    ("outcomes", "alpha", "beta"),
    [([1.0], 0.75, 0.25), ([1, 0, 1], 1.875, 1.125), ([1] * 5 + [0] * 15, 8 * 5.5 / 21, 8 * 15.5 / 21)],
)
def test_a_start_is_believed_as_the_outcomes_that_it_has(outcomes: list[float], alpha: float, beta: float) -> None:
    tracker = ValueTracker()  # N0 = 8
    tracker.initialize("x", outcomes)
    assert tracker.evidence("x") == pytest.approx((alpha, beta))


def test_drift_between_versions_is_summed() -> None:
    tracker = ValueTracker(rho_min=0.5, rho_max=0.99)
    for version, kl in enumerate([0.01, 0.02, 0.03], start=1):
        tracker.record_drift(version, kl)
    tracker.observe("x", 1, event=0, version=0)
    tracker.observe("x", 1, event=1, version=2)  # 0.03 nats after version 0: 2^-0.5
    rho = 2**-0.5
    assert tracker.evidence("x") == pytest.approx((rho * (0.99 * 0.5 + 1) + 1, rho * 0.99 * 0.5))
    with pytest.raises(ValueError, match="drift of version 3"):
        tracker.record_drift(3, 0.1)


EVENTS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from([None, 0.0, 0.01, 0.2])),
    min_size=1,
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(EVENTS, st.randoms(use_true_random=False))
def test_any_arrival_order_gives_the_same_tracker(events: list, rng: random.Random) -> None:
    """Events are numbered as dispatched; three to a policy version."""

    def run(order: list[int]) -> dict:
        tracker = ValueTracker()
        for version in range(1, 15):
            tracker.record_drift(version, 0.004 * version)
        for i in order:
            task, reward, divergence = events[i]
            tracker.observe(task, reward, divergence, event=i, version=i // 3)
        return {t: (tracker.evidence(t), tracker.state_dict()["beliefs"].get(t)) for t in "ab"}

    order = list(range(len(events)))
    expected = run(order)
    rng.shuffle(order)
    assert run(order) == expected


def test_order_matters_to_the_state_itself() -> None:
    """Control: the property above is not empty, since other events in order give another state."""
    first, second = ValueTracker(), ValueTracker()
    for tracker, rewards in ((first, [1, 0]), (second, [0, 1])):
        for event, reward in enumerate(rewards):
            tracker.observe("x", reward, event=event)
    assert first.value("x") < 0.5 < second.value("x")


def test_old_events_are_folded_without_changing_the_belief() -> None:
    short, long = ValueTracker(window=2), ValueTracker(window=100)
    rng = random.Random(1)
    for event in range(50):
        reward, divergence = rng.random(), rng.random() / 20
        for tracker in (short, long):
            tracker.observe("x", reward, divergence, event=event)
    assert short.evidence("x") == long.evidence("x")
    assert len(short.state_dict()["beliefs"]["x"]["events"]) == 2


def test_state_round_trip_goes_on_identically() -> None:
    import json

    tracker = ValueTracker()
    tracker.record_drift(1, 0.02)
    for event in range(6):
        tracker.observe("x", event % 2, event=event, version=event // 3)
    copy = ValueTracker()
    copy.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
    for t in (tracker, copy):
        t.observe("x", 1, event=3, version=1)  # late
        t.observe("x", 0, event=9, version=1)
    assert copy.state_dict() == tracker.state_dict()
