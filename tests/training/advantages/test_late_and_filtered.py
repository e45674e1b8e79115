"""What a tracker and a single stream learn from batches that come late or filtered, and that nothing counts twice."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from tiny_ledgers import one_each, trajectory

from solostream.agent.trajectory import Trajectory
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.stages.inclusion_weights import InclusionWeights
from solostream.training.advantages.stream.forgetting import CalibratedForgetting
from solostream.training.advantages.stream.pooling import Pool
from solostream.training.advantages.stream.shared_drift import SharedDrift
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch
from solostream.training.rollouts.task_sampler import Prioritized


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def mean_values(delay: int, frozen: SharedDrift | None = None) -> list[float]:
    """The mean value of 128 tasks, all of rate .85 for ever, after each batch of 64 that comes `delay` updates late.

    frozen: learns the same batches against the values that were frozen at their dispatch.
    """
    rng, tracker = random.Random(11), ValueTracker(shared_drift=0.5)
    tasks, spo, flying, means = [f"t{i}" for i in range(128)], SPO(tracker), [], []
    for task in tasks:
        tracker.initialize(task, [float(rng.random() < 0.85) for _ in range(8)], version=0)
    for step in range(50 + delay):
        drawn = [(task, tracker.value(task), float(rng.random() < 0.85)) for task in rng.sample(tasks, 64)]
        version = max(step - delay, 0)
        made = [
            trajectory(task, r, value=v, event=64 * step + i, version=version) for i, (task, v, r) in enumerate(drawn)
        ]
        flying.append((version, made))
        if len(flying) > delay:
            version, batch = flying.pop(0)
            if frozen is not None:
                frozen.update(version, [("", t.reward, t.dispatch.value) for t in batch])
            spo(Batch(batch))
            means.append(sum(map(tracker.value, tasks)) / len(tasks))
    if frozen is not None:
        assert tracker.state_dict()["shared"] == frozen.state_dict()
    return means


def test_late_batches_do_not_make_the_shared_drift_swing() -> None:
    """Nothing moves, so nothing may be learnt but noise, and of it no more four updates late than at once."""
    for delay in range(5):
        settled = mean_values(delay)[20:]
        assert 0.75 < min(settled) < 0.85 < max(settled) < 0.92, delay


def test_a_batch_that_comes_at_once_is_learnt_against_its_frozen_values() -> None:
    """Exactly: nothing came in between."""
    mean_values(0, frozen=SharedDrift(0.5))


def test_a_lag_that_is_mended_does_not_count_again() -> None:
    """(2 + .5)/(3 + 1) = .625 was frozen for two batches; when the second lands, the first has moved all values."""
    tracker = ValueTracker(0.9, 0.9, shared_drift=0.5)
    for task in ["x", *(f"{letter}{i}" for letter in "yz" for i in range(12))]:
        tracker.initialize(task, [1, 1, 0], version=0)
    spo = SPO(tracker)
    spo(Batch([trajectory(f"y{i}", 0.9, value=0.625, version=1, event=i) for i in range(12)]))
    first = 0.5 * (0.9 - 0.625) / (0.625 * 0.375)
    assert logit(tracker.value("x")) == pytest.approx(logit(0.625) + first)
    now = tracker.value("z0")
    got = spo(Batch([trajectory(f"z{i}", 0.9, value=0.625, version=2, event=12 + i) for i in range(12)]))
    second = 0.5 * (0.9 - now) / (now * (1 - now))
    assert logit(tracker.value("x")) == pytest.approx(logit(0.625) + first + second)
    assert second < 0.7 * first
    assert got.metrics["advantage/mean"] == pytest.approx(0.9 - 0.625)  # the advantage keeps what was frozen


def sampled(task: str, reward: float, *probabilities: float, **fields) -> Trajectory:
    logprobs = [math.log(p) for p in probabilities]
    return trajectory(task, reward, response=range(len(probabilities)), logprobs=logprobs, **fields)


FILTERED = [  # two right, one wrong; and a wrong answer of forty improbable tokens that was cut off
    sampled("a", 1.0, 0.9, 0.5, event=0),
    sampled("b", 1.0, 0.8, event=1),
    sampled("c", 0.0, 0.7, 0.4, 0.5, event=2),
    sampled("d", 0.0, *[0.2] * 40, event=3),
]


def test_the_energy_ratio_is_of_what_is_trained_on() -> None:
    """Right (.26 + .04)/2, wrong .09 + .36 + .25: κ = 4.6667, whatever the fourth would weigh (.64 forty times)."""
    spo = SPO(ValueTracker(), baseline="energy")
    spo(Batch(FILTERED, [True, True, True, False]))
    assert spo.ratio is not None
    assert spo.ratio.value == pytest.approx(0.7 / 0.15)
    spo(Batch(FILTERED, [False] * 4))
    assert spo.ratio.value == pytest.approx(0.7 / 0.15)


def test_the_slope_and_the_running_scale_are_of_what_is_trained_on() -> None:
    """Both as after the batch without what is filtered; a batch of which nothing is left leaves them as they were."""
    states = []
    for filtered in (True, False):
        spo = SPO(ValueTracker(), slope="fitted", scale="running")
        values = [0.25, 0.75, 0.5, 0.375]
        made = [replace(t, dispatch=replace(t.dispatch, value=v)) for t, v in zip(FILTERED, values, strict=True)]
        spo(Batch(made, [True, True, True, False]) if filtered else Batch(made[:3]))
        if filtered:
            spo(Batch(made, [False] * 4))
        states.append((spo.slope.state_dict()["moments"], spo.scale.state_dict()))
    assert states[0][0] == pytest.approx(states[1][0])
    assert states[0][1] == pytest.approx(states[1][1])


def test_inclusion_weights_have_the_mean_of_what_is_trained_on() -> None:
    """Weights .55, .45 and .05 (v of .5, .8 and 1): 1/w of the first two has the mean 2.0202, with the third 8.0135."""
    tracker = ValueTracker()
    batch = [trajectory(task, 1.0, value=v, event=i) for i, (task, v) in enumerate([("a", 0.5), ("b", 0.8), ("c", 1)])]
    stage = InclusionWeights(SPO(tracker, scale="none"), Prioritized(["a"], tracker, epsilon=0.05))
    got = stage(Batch(batch, [True, True, False]))
    mean = (1 / 0.55 + 1 / 0.45) / 2
    assert one_each(got)[:2] == pytest.approx([0.5 / (0.55 * mean), 0.2 / (0.45 * mean)])
    assert got.metrics["inclusion/largest"] == pytest.approx(1 / (0.45 * mean))


@pytest.mark.parametrize(("right", "wrong", "expected"), [(1, 0, 2 / 3), (7, 1, 0.8), (0, 3, 0.2)])
def test_a_start_counts_once_in_the_value_of_its_task(right: int, wrong: int, expected: float) -> None:
    """Before any other task the prior is (1, 1): (s + 1)/(n + 2)."""
    tracker = ValueTracker(pooled=True)
    tracker.initialize("a", [1.0] * right + [0.0] * wrong, version=0)
    assert tracker.value("a") == pytest.approx(expected)


def test_a_later_task_starts_from_what_all_before_it_earned() -> None:
    """Its prior has all six outcomes of the first task in it, and none of its own."""
    tracker, pool = ValueTracker(pooled=True), Pool(8.0)
    before = None
    for r in (1.0, 0.5, 1.0, 1.0, 0.25, 1.0):
        pool.observe("", r, before)
        before = r
    tracker.initialize("a", [1.0, 0.5, 1.0, 1.0, 0.25, 1.0], version=0)
    assert tracker.evidence("b") == pool.prior("")
    alpha, beta = pool.prior("")
    tracker.initialize("b", [0.0, 1.0, 0.0], version=0)
    assert tracker.value("b") == pytest.approx((1 + alpha) / (3 + alpha + beta))


def calibrated(streams: int, delay: int) -> float:
    """ρ after 40 batches of 16 of 48 tasks, each played `streams` times, of rates that never change."""
    rng = random.Random(5)
    spo = SPO(ValueTracker(0.5, 0.98), divergence="calibrated")
    rates, flying = {f"t{i}": rng.uniform(0.1, 0.9) for i in range(48)}, []
    for step in range(40 + delay):
        made = []
        for task in rng.sample(sorted(rates), 16):
            where = {"value": spo.tracker.value(task), "version": max(step - delay, 0)}
            for _ in range(streams):
                reward = float(rng.random() < rates[task])
                made.append(trajectory(task, reward, event=16 * streams * step + len(made), **where))
        flying.append(made)
        if len(flying) > delay:
            spo(Batch(flying.pop(0)))
    assert spo.forgetting is not None
    return spo.forgetting.rho


@pytest.mark.parametrize(("streams", "delay"), [(1, 0), (8, 0), (1, 3), (3, 2)])
def test_a_policy_that_stays_is_forgotten_slowly(streams: int, delay: int) -> None:
    """It starts at .9: what several streams or late batches have in common is one value, not a policy that moves."""
    assert calibrated(streams, delay) > 0.93


def test_streams_of_one_batch_are_one_visit_by_hand() -> None:
    """√(v(1 − v) + .05) is .5 at v = .276393; mean errors (.723607 − .276393·2)/3/.5 = .113881 and 1.447214."""
    forgetting = CalibratedForgetting(ValueTracker(0.5, 0.98))
    v = (1 - math.sqrt(0.2)) / 2
    forgetting.update(["x", "x", "x"], [1.0, 0.0, 0.0], [v] * 3)
    assert forgetting.rho == pytest.approx(0.9)  # no pair yet
    forgetting.update(["x", "y"], [1.0, 0.0], [v, v])
    assert math.log(1 - forgetting.rho) == pytest.approx(math.log(0.1) + 0.113881 * 1.447214, rel=1e-5)
