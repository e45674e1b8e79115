"""What mutants that lived have shown to be unpinned (docs/testing.md): metrics, states that are handed on, defaults,
priors of a pool; by hand, on numbers that sit on no symmetry.
"""

from __future__ import annotations

import math
from statistics import fmean, pvariance, variance
from typing import Any

import numpy as np
import pytest
from tiny_ledgers import one_each, trajectory

from solostream.training.advantages.aspo import ASPO
from solostream.training.advantages.base import Advantages
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.maxrl import MaxRL, MaxRLStream
from solostream.training.advantages.optimal_token import OptimalToken
from solostream.training.advantages.reinforce import Reinforce
from solostream.training.advantages.rloo import RLOO
from solostream.training.advantages.shrinkage import Shrinkage
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.stages.improbable_tokens import ImprobableTokens
from solostream.training.advantages.stages.inclusion_weights import InclusionWeights
from solostream.training.advantages.stages.negative_tokens import NegativeTokens
from solostream.training.advantages.stages.negative_weight import NegativeWeight
from solostream.training.advantages.stream.energy_ratio import EnergyRatio
from solostream.training.advantages.stream.forgetting import RATE, SMOOTH, CalibratedForgetting
from solostream.training.advantages.stream.measure import energy
from solostream.training.advantages.stream.pooling import PAIR_PRIOR, UNKNOWN, Pool
from solostream.training.advantages.stream.shared_drift import SharedDrift
from solostream.training.advantages.stream.slope import FittedSlope
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch
from solostream.training.rollouts.task_sampler import Prioritized

REWARDS = ((1.0, 0.0, 0.25), (0.5, 0.0, 0.25, 0.75), (1.0, 1.0), (0.0, 0.5))


def groups(rewards=REWARDS) -> list:
    return [trajectory(f"t{g}", r, group=g, event=9 * g + i) for g, rs in enumerate(rewards) for i, r in enumerate(rs)]


# Metrics.


@pytest.mark.parametrize("estimator", [GRPO(divide=False), RLOO(), MaxRL(), Shrinkage(), OptimalToken(), Reinforce()])
def test_metrics_are_of_what_the_filters_left(estimator: Any) -> None:
    batch = groups()
    kept = [i not in (1, 6) for i in range(len(batch))]
    found = estimator(Batch(batch, kept))
    plain = isinstance(estimator, Reinforce)  # its metrics are of r, before the batch is centred
    values = [t.reward for t in batch] if plain else [float(v.mean()) for v in found.values]
    left = [v for v, keep in zip(values, kept, strict=True) if keep]
    assert found.metrics["advantage/mean"] == pytest.approx(fmean(left))
    assert found.metrics["advantage/variance"] == pytest.approx(pvariance(left))
    rewards = [t.reward for t, keep in zip(batch, kept, strict=True) if keep]
    assert found.metrics["reward/variance"] == pytest.approx(pvariance(rewards))
    assert plain or found.metrics["advantage/degenerate"] == 0.25


def test_a_stream_of_maxrl_tells_what_spo_would() -> None:
    batch = [trajectory("a", 1.0, value=0.25, event=0), trajectory("b", 0.5, value=0.05, event=1)]
    found = MaxRLStream(ValueTracker(), floor=0.1)(Batch(batch))
    assert one_each(found) == pytest.approx([3.0, 4.5])
    assert found.metrics == SPO(ValueTracker())(Batch(batch)).metrics


# Shrinkage: λ from the other groups.


def test_how_far_a_group_is_pulled_to_the_others() -> None:
    found = Shrinkage()(Batch(groups()))
    used = []
    for g, own in enumerate(REWARDS):
        others = [list(rs) for h, rs in enumerate(REWARDS) if h != g]
        within = fmean(map(variance, others))
        noise = fmean(variance(rs) / len(rs) for rs in others)
        between = max(variance([fmean(rs) for rs in others]) - noise, 0.0)
        mean_noise = within / (len(own) - 1)
        used.append(mean_noise / (mean_noise + between))
    assert len({round(x, 6) for x in used}) == 4
    assert found.metrics["advantage/shrinkage"] == pytest.approx(fmean(used))
    outside = fmean(fmean(rs) for rs in REWARDS[1:])
    first = 1.0 - ((1 - used[0]) * 0.125 + used[0] * outside)
    assert one_each(found)[0] == pytest.approx(first)


def test_two_other_groups_are_enough_to_know_and_one_is_not() -> None:
    two = Shrinkage()(Batch(groups(((1.0, 0.0), (0.5, 0.0), (1.0, 0.25)))))
    assert 0 < two.metrics["advantage/shrinkage"] <= 1
    one = Shrinkage()(Batch(groups(((1.0, 0.0), (0.5, 0.0)))))
    assert one.metrics["advantage/shrinkage"] == 0
    alike = Shrinkage()(Batch(groups(((1.0, 1.0), (1.0, 1.0), (1.0, 1.0)))))
    assert alike.metrics["advantage/shrinkage"] == 0
    # Groups of one say nothing of the noise within; a group of one has only the others.
    alone = Shrinkage()(Batch(groups(((1.0,), (0.5, 0.0), (1.0, 0.25)))))
    assert one_each(alone)[0] == pytest.approx(1.0 - (0.25 + 0.625) / 2)
    assert Shrinkage()(Batch(groups(((0.75,),)))).values[0] == pytest.approx(np.full(4, 0.75))


# Stages hand on what they are given.


class Inner:
    """Says what it was called with, and has a state."""

    def __init__(self, *values: list[float]) -> None:
        self.values = [np.array(one) for one in values]
        self.batch: Any = None
        self.state: Any = {"seen": 3}

    def __call__(self, batch: Any) -> Advantages:
        self.batch = batch
        return Advantages(self.values, {"inner/told": 7.0})

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def inclusion_weights(inner: Any, **options: float) -> InclusionWeights:
    return InclusionWeights(inner, Prioritized(["a"], ValueTracker(), **options))


@pytest.mark.parametrize("stage", [ImprobableTokens, inclusion_weights, NegativeTokens, NegativeWeight, ASPO])
def test_a_stage_hands_batch_metrics_and_state_on(stage: Any) -> None:
    inner = Inner([0.5] * 4)
    outer, batch = stage(inner), Batch([trajectory("a", value=0.3)])
    assert outer(batch).metrics["inner/told"] == 7.0
    assert inner.batch is batch
    saved = outer.state_dict()
    assert saved["inner"] == {"seen": 3}
    other = Inner()
    stage(other).load_state_dict({**saved, "inner": {"seen": 11}})
    assert other.state == {"seen": 11}


def test_what_stages_do_to_positive_negative_and_no_advantage() -> None:
    """Defaults: a floor of .05, a share of a tenth, a quarter; half an advantage stays what it is."""
    probabilities = [0.5, 0.01, 0.02, 0.04]
    batch = Batch([trajectory("a", logprobs=[math.log(p) for p in probabilities])])
    mixed = [-1.0, -1.0, 0.5, 0.0]
    got = ImprobableTokens(Inner(mixed))(batch).values[0]
    assert got.tolist() == pytest.approx([-1.0, -0.2, 0.5, 0.0], rel=1e-6)
    assert NegativeWeight(Inner(mixed))(batch).values[0].tolist() == [-0.25, -0.25, 0.5, 0.0]
    assert NegativeTokens(Inner(mixed))(batch).values[0].tolist() == [0.0, -1.0, 0.5, 0.0]
    longer = Batch([trajectory("a", response=range(11), logprobs=[math.log(0.3)] * 11)])
    kept = NegativeTokens(Inner([-1.0] * 11))(longer).values[0]  # two of eleven; of equal ones the earlier
    assert kept.tolist() == [-1.0, -1.0, *[0.0] * 9]


def test_inclusion_weights_tell_the_largest() -> None:
    batch = Batch([trajectory("a", value=0.5), trajectory("b", value=0.1), trajectory("c", value=0.9)])
    found = inclusion_weights(Inner([1.0] * 4, [1.0] * 4, [1.0] * 4), epsilon=0.1)(batch)
    inverse = [1 / (0.5 + 0.1), 1 / (0.3 + 0.1), 1 / (0.3 + 0.1)]
    assert one_each(found) == pytest.approx([x / fmean(inverse) for x in inverse])
    assert found.metrics["inclusion/largest"] == pytest.approx(2.5 / fmean(inverse))


def test_aspo_compares_what_the_filters_left_and_takes_a_reward_at_its_border() -> None:
    batch = [
        trajectory(name, reward, response=range(100), call_at=at)
        for name, reward, at in (("a", 1.0, 10), ("b", 0.5, 30), ("c", 1.0, 80), ("d", 0.49, 0))
    ]
    inner = Inner(*[[1.0] * 100] * 4)
    got = one_each(ASPO(inner, -1.0, 0.7)(Batch(batch, [True, True, False, True])))
    assert got == pytest.approx([1.1, 0.9, 1.0, 1.0])  # mean position 20 of a and b
    one = ASPO(Inner([1.0] * 100), -1.0, 0.7)(Batch(batch[:1]))
    assert (one.metrics["aspo/shaped"], one.metrics["aspo/clipped"]) == (0, 0)


# Pools, drifts, forgetting.


def test_a_pool_by_hand() -> None:
    """Three tasks of two sources; decays are within the tolerance of a few observations at 1 − 1/512."""
    keep, pool = 1 - 1 / 512, Pool(8.0)
    assert pool.prior("x") == pytest.approx((UNKNOWN / 2, UNKNOWN / 2))
    seen = [("x", 1.0, None), ("x", 0.75, 1.0), ("y", 0.0, None), ("x", 1.0, 0.75), ("y", 0.25, 0.0)]
    moments: dict[str, list[float]] = {}
    for source, reward, before in seen:
        pool.observe(source, reward, before)
        for name in (source, ""):
            m = moments.setdefault(name, [0.0] * 4)
            mean = (m[0] + 0.5) / (m[1] + 1)
            pair = before is not None
            m[:] = [
                keep * m[0] + reward,
                keep * m[1] + 1,
                keep * m[2] + pair * (reward - mean) * ((before or 0.0) - mean),
                keep * m[3] + pair,
            ]
    assert pool.state_dict() == {name: pytest.approx(m) for name, m in moments.items()}

    mean = (moments[""][0] + 0.5) / (moments[""][1] + 1)
    spread = moments[""][2] / moments[""][3]
    c = min(max(mean * (1 - mean) / spread - 1, 1.0), 8.0)
    assert pool.prior("z") == pytest.approx((c * mean, c * (1 - mean)))
    own = (moments["x"][0] + 8 * mean) / (moments["x"][1] + 8)
    own_spread = (moments["x"][2] + PAIR_PRIOR * spread) / (moments["x"][3] + PAIR_PRIOR)
    c = min(max(own * (1 - own) / own_spread - 1, 1.0), 8.0)
    assert 1 < c < 8
    assert pool.prior("x") == pytest.approx((c * own, c * (1 - own)))


def test_outcomes_that_do_not_go_together_are_all_one_rate() -> None:
    """A covariance that is not positive: the prior is as strong as it may be."""
    pool = Pool(8.0)
    for before, reward in ((None, 1.0), (1.0, 0.0), (0.0, 1.0)):
        pool.observe("", reward, before)
    assert sum(pool.prior("")) == pytest.approx(8.0)


def test_a_task_of_a_pool_starts_from_its_source_and_its_own_outcomes() -> None:
    tracker = ValueTracker(rho_min=0.9, rho_max=0.95, pooled=True)
    tracker.place("first", "x")
    tracker.place("second", "x")
    pool = Pool(1 / (1 - 0.9))
    for before, reward in ((None, 1.0), (1.0, 0.75)):
        pool.observe("x", reward, before)
    tracker.initialize("first", [1.0, 0.75])
    alpha, beta = pool.prior("x")  # of the first task alone
    for before, reward in ((None, 0.25), (0.25, 0.5), (0.5, 0.0)):
        pool.observe("x", reward, before)
    tracker.initialize("second", [0.25, 0.5, 0.0])
    strength = min(3 + alpha + beta, 10.0)
    v0 = (0.75 + alpha) / (3 + alpha + beta)
    assert tracker.evidence("second") == pytest.approx((strength * v0, strength * (1 - v0)))
    assert tracker.evidence("never") == pytest.approx(pool.prior(""))
    tracker.initialize("second", [])
    assert tracker.evidence("second") == pytest.approx(pool.prior("x"))


def test_a_second_batch_of_a_version_moves_that_version() -> None:
    drift = SharedDrift(0.5)
    drift.update(3, 12 * [("", 1.0, 0.5), ("", 1.0, 0.5)])  # 0.5 · 1/0.5 = 1
    drift.update(5, 12 * [("", 0.0, 0.5), ("", 1.0, 0.2)])  # 0.5 · 0.3/0.41
    drift.update(5, 12 * [("", 1.0, 0.75)])  # 0.5 · 0.25/0.1875
    later = 1.0 + 0.15 / 0.41 + 0.125 / 0.1875
    assert drift.state_dict() == {"versions": {"": [3, 5]}, "sums": {"": pytest.approx([1.0, later])}}
    for last, now, shift in ((3, 5, later - 1.0), (2, 4, 1.0), (0, None, later), (5, None, 0.0), (4, 3, 0.0)):
        logit = math.log(0.3 / 0.7) + shift
        assert drift.moved(0.3, "", last, now) == pytest.approx(1 / (1 + math.exp(-logit)))


def test_a_new_source_begins_where_all_the_others_stand() -> None:
    drift = SharedDrift(0.5)
    drift.update(1, 12 * [("", 1.0, 0.5), ("", 1.0, 0.5)])
    drift.update(2, 12 * [("x", 0.0, 0.25), ("", 1.0, 0.25)])
    common = 0.5 * 0.5 / 0.375  # of both, and what is left of x within itself
    own = common + 0.5 * (12 * -0.25 - common / 0.5 * 12 * 0.1875) / (12 * 0.1875 + 2.0)
    assert drift.state_dict()["sums"]["x"] == pytest.approx([1.0, 1.0 + own])
    # Values at the very ends are moved from a thousandth within, and only where there is a shift.
    assert drift.moved(1.0, "x", 1, 2) < 1
    assert drift.moved(1.0, "x", 2, 2) == 1
    empty = SharedDrift(0.5)
    empty.update(1, [])
    assert empty.moved(0.4, "x", 0, None) == 0.4


def test_errors_of_the_same_sign_forget_faster_by_hand() -> None:
    tracker = ValueTracker(rho_min=0.5, rho_max=0.98)
    forgetting = CalibratedForgetting(tracker)
    start = (math.log(0.5) + math.log(1 - 0.98)) / 2
    forgetting.update(["a", "b"], [1.0, 0.0], [0.7, 0.4])
    forgetting.update(["a", "b"], [1.0, 0.25], [0.8, 0.1])

    def u(r: float, v: float) -> float:
        return (r - v) / math.sqrt(v * (1 - v) + SMOOTH)

    products = [u(1.0, 0.8) * u(1.0, 0.7), u(0.25, 0.1) * u(0.0, 0.4)]
    assert forgetting.rho == pytest.approx(1 - math.exp(start + RATE * fmean(products)))


def test_sampling_weights_go_down_with_a_power_of_the_evidence() -> None:
    tracker = ValueTracker()
    tracker.initialize("a", [1.0, 0.0, 0.0])
    tracker.initialize("b", [1.0])
    found = tracker.weights(["a", "b"], 0.1, 0.5)
    wanted = []
    for task in ("a", "b"):
        alpha, beta = tracker.evidence(task)
        n = alpha + beta
        wanted.append(math.sqrt(alpha * beta) / n / max(n, 1.0) ** 0.5 + 0.1)
    assert found == pytest.approx(wanted)


# SPO with its options.


def _batch(rewards: list[float], values: list[float], event: int) -> list:
    probabilities = [(0.9, 0.8, 0.3, 0.95), (0.2, 0.6, 0.5, 0.7), (0.99, 0.4, 0.9, 0.85)]
    return [
        trajectory(f"t{i}", r, value=v, event=event + i, source="xyz"[i], logprobs=[math.log(p) for p in ps])
        for i, (r, v, ps) in enumerate(zip(rewards, values, probabilities, strict=True))
    ]


def test_options_of_spo_work_on_what_earlier_batches_said() -> None:
    tracker = ValueTracker(rho_min=0.5, rho_max=0.98, pooled=True, shared_drift=0.5)
    spo = SPO(tracker, "energy", divergence="calibrated", baseline="energy", slope="fitted", scale="none")
    ratio, slope = EnergyRatio(), FittedSlope()
    forgetting = CalibratedForgetting(ValueTracker(rho_min=0.5, rho_max=0.98))
    for event, rewards, values in ((0, [1.0, 0.0, 0.75], [0.6, 0.3, 0.55]), (3, [1.0, 0.25, 0.0], [0.7, 0.2, 0.35])):
        batch = _batch(rewards, values, event)
        baselines = [ratio.baseline(v) for v in values]
        raw = [r - slope.value * b for r, b in zip(rewards, baselines, strict=True)]
        kept = [True, False, True]
        now = [tracker.value(t.task_id) for t in batch]
        found = spo(Batch(batch, kept))
        assert one_each(found) == pytest.approx(raw)
        assert found.metrics["advantage/mean"] == pytest.approx((raw[0] + raw[2]) / 2)
        assert found.metrics["reward/variance"] == pytest.approx(((rewards[0] - rewards[2]) / 2) ** 2)
        assert found.metrics["tracker/slope"] == pytest.approx(slope.value)
        assert found.metrics["tracker/energy_ratio"] == pytest.approx(ratio.value)
        assert found.metrics["tracker/rho"] == pytest.approx(forgetting.rho)
        energies = [energy(t) for t in batch]
        slope.update(rewards, baselines, [e if keep else 0.0 for e, keep in zip(energies, kept, strict=True)])
        ratio.update([rewards[0], rewards[2]], [energies[0], energies[2]])
        forgetting.update([t.task_id for t in batch], rewards, now)
    assert slope.value > 0
    assert ratio.value != 1
    saved = spo.state_dict()
    assert {name: saved[name] for name in ("slope", "ratio", "forgetting")} == {
        "slope": slope.state_dict(),
        "ratio": ratio.state_dict(),
        "forgetting": forgetting.state_dict(),
    }
    assert saved["scale"] == spo.scale.state_dict()
    assert tracker.state_dict()["sources"] == {"t0": "x", "t1": "y", "t2": "z"}
    assert set(tracker.state_dict()["shared"]["sums"]) == {"", "x", "y", "z"}


def test_a_tasks_first_evidence_is_that_of_its_source() -> None:
    tracker = ValueTracker(pooled=True)
    tracker.place("seen", "x")
    for event, reward in enumerate((1.0, 0.75, 1.0)):
        tracker.observe("seen", reward, 0.0, event=event)
    tracker.place("new", "x")
    pool = Pool(8.0)
    for before, reward in ((None, 1.0), (1.0, 0.75), (0.75, 1.0)):
        pool.observe("x", reward, before)
    assert tracker.evidence("new") == pytest.approx(pool.prior("x"))
    assert tracker.evidence("elsewhere") == pytest.approx(pool.prior(""))
    assert pool.prior("x") != pytest.approx(pool.prior(""))


def test_members_of_a_group_are_found_wherever_they_lie() -> None:
    rewards = [1.0, 0.5, 0.0, 0.25, 0.75]
    numbers = [4, 7, 4, 7, 4]
    batch = [trajectory("t", r, group=g, event=i) for i, (r, g) in enumerate(zip(rewards, numbers, strict=True))]
    wanted = [1.0 - 1.75 / 3, 0.125, -1.75 / 3, -0.125, 0.75 - 1.75 / 3]
    assert one_each(GRPO(divide=False)(Batch(batch))) == pytest.approx(wanted)


def test_a_turn_has_one_baseline_under_the_energy_of_all_of_it() -> None:
    probabilities = ((0.9, 0.5, 0.7, 0.2), (0.6, 0.95, 0.3, 0.8))
    batch = [
        trajectory("t", r, group=1, event=i, logprobs=[math.log(p) for p in ps])
        for i, (r, ps) in enumerate(zip((1.0, 0.25), probabilities, strict=True))
    ]
    own, other = (sum((1 - p) ** 2 for p in ps) for ps in probabilities)
    mean = (own + 0.25 * other) / (own + other)
    found = OptimalToken(by="turn")(Batch(batch)).values
    assert found[0] == pytest.approx(np.full(4, 1.0 - mean), rel=1e-6)
    assert found[1] == pytest.approx(np.full(4, 0.25 - mean), rel=1e-6)


def test_drifts_add_up_and_a_start_survives_its_checkpoint() -> None:
    tracker = ValueTracker(shared_drift=0.5)
    tracker.place("a", "x")
    tracker.record_drift(1, 0.02)
    tracker.record_drift(2, 0.03)
    assert tracker.state_dict()["drift"] == [[1, 2], [0.02, pytest.approx(0.05)]]
    tracker.initialize("a", [1.0, 0.75, 0.0], version=0)
    tracker.learn_shared(1, [("a", 1.0), ("b", 0.75)])
    tracker.observe("a", 1.0, None, event=5, version=2)
    again = ValueTracker(shared_drift=0.5)
    again.load_state_dict(tracker.state_dict())
    for one in (tracker, again):
        one.observe("a", 0.25, None, event=3, version=1)  # late: told from the start again
    assert again.evidence("a") == pytest.approx(tracker.evidence("a"))
    assert again.state_dict() == tracker.state_dict()
    in_order = ValueTracker(shared_drift=0.5)
    in_order.place("a", "x")
    in_order.record_drift(1, 0.02)
    in_order.record_drift(2, 0.03)
    in_order.initialize("a", [1.0, 0.75, 0.0], version=0)
    in_order.learn_shared(1, [("a", 1.0), ("b", 0.75)])
    for event, reward, version in ((3, 0.25, 1), (5, 1.0, 2)):
        in_order.observe("a", reward, None, event=event, version=version)
    assert again.evidence("a") == pytest.approx(in_order.evidence("a"))
