"""The parts of a single stream, each by numbers worked out by hand and by what it is for."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from tiny_ledgers import one_each, trajectory

from solostream.agent.trajectory import Trajectory
from solostream.training.advantages.base import standardize
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.stream.energy_ratio import EnergyRatio
from solostream.training.advantages.stream.forgetting import CalibratedForgetting
from solostream.training.advantages.stream.measure import energy, weights
from solostream.training.advantages.stream.pooling import Pool
from solostream.training.advantages.stream.scale import Scale
from solostream.training.advantages.stream.shared_drift import SharedDrift
from solostream.training.advantages.stream.slope import FittedSlope
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch


def answer(task: str, reward: float, *probabilities: float, **fields) -> Trajectory:
    """One whose tokens the sampler gave these probabilities."""
    logprobs = [math.log(p) for p in probabilities]
    return trajectory(task, reward, response=range(len(probabilities)), logprobs=logprobs, **fields)


def test_measures_by_hand() -> None:
    """(1 − .9)² + (1 − .5)² = .26, and (1 − .2)² = .64; what a filter takes out weighs nothing."""
    batch = [answer("a", 1, 0.9, 0.5), answer("b", 0, 0.2)]
    assert [energy(t) for t in batch] == pytest.approx([0.26, 0.64])
    assert weights(batch, "token") == [2, 1]
    assert weights(batch, "trajectory") == [1, 1]
    assert weights(Batch(batch, [False, True]), "energy") == pytest.approx([0, 0.64])


def test_the_energy_measure_centres_where_the_gradient_is_least_noisy() -> None:
    """Of all constants b the weighted mean of r minimises Σ w (r − b)², w the energies."""
    batch = [answer("a", 1, 0.9, 0.8), answer("b", 0, 0.3), answer("c", 0.4, 0.6, 0.1), answer("d", 1, 0.95)]
    w = [energy(t) for t in batch]
    raw = one_each(SPO(ValueTracker(), "energy", scale="centred")(batch))  # all were dispatched at 0.5
    centre = batch[0].reward - raw[0]
    noise = lambda b: sum(x * (t.reward - b) ** 2 for x, t in zip(w, batch, strict=True))
    assert all(noise(centre) < noise(centre + step) for step in (-0.01, 0.01))
    assert centre == pytest.approx((0.05 + 0.4 * 0.97 + 0.0025) / (0.05 + 0.49 + 0.97 + 0.0025))


def test_energy_ratio_by_hand() -> None:
    """Right answers .2 and .4, wrong ones 1.2 and 1.8: κ = 1.5/.3 = 5, and .8 becomes .8/(.8 + .2·5) = 4/9."""
    ratio = EnergyRatio()
    assert ratio.baseline(0.8) == 0.8
    ratio.update([1, 1, 0, 0], [0.2, 0.4, 1.2, 1.8])
    assert ratio.value == pytest.approx(5)
    assert ratio.baseline(0.8) == pytest.approx(4 / 9)
    assert (ratio.baseline(0.0), ratio.baseline(1.0)) == (0, 1)
    ratio.update([0.25], [0.6])  # wrong: (.9·3 + .45)/(.9·2 + .75), right: (.9·.6 + .15)/(.9·2 + .25)
    assert ratio.value == pytest.approx((3.15 / 2.55) / (0.69 / 2.05))


def test_energy_baseline_is_the_one_of_least_variance_for_each_task() -> None:
    """b = E[W r]/E[W] of a task with v = .3 and κ = 4, against its neighbours, by enumeration of its two outcomes."""
    ratio, v, right, wrong = EnergyRatio(), 0.3, 0.7, 2.8
    ratio.update([1, 0], [right, wrong])
    b = ratio.baseline(v)
    noise = lambda x: v * right * (1 - x) ** 2 + (1 - v) * wrong * x**2
    assert noise(b) < min(noise(b - 0.01), noise(b + 0.01))
    assert b == pytest.approx(0.3 / (0.3 + 0.7 * 4))


def test_fitted_slope_by_hand() -> None:
    """Rewards 1, 0, 1 on baselines .8, .2, .5 under weights 1, 2, 1: Cov = .1125, Var = .061875; clipped to 1."""
    slope = FittedSlope()
    assert slope.value == 0
    slope.update([1, 0, 1], [0.8, 0.2, 0.5], [1, 2, 1])
    assert slope.value == 1
    slope.update([1, 0, 1, 0], [0.9, 0.9, 0.1, 0.1], [1, 1, 1, 1])  # no covariance: variance .16
    assert slope.value == pytest.approx(0.8 * 0.1125 / (0.8 * 0.061875 + 0.16))
    slope.update([0, 1], [1, 0], [5, 5])
    assert slope.value == 0


def test_values_that_explain_nothing_do_not_add_noise() -> None:
    """Values drawn at random: the fitted slope goes to 0, and the advantage to that of the batch mean."""
    rng = random.Random(2)
    spo = SPO(ValueTracker(), "trajectory", slope="fitted", scale="centred")

    def variance(one: SPO) -> float:
        batch = [trajectory(f"t{i}", rng.randint(0, 1), value=rng.random(), event=i) for i in range(256)]
        plain = np.var([t.reward for t in batch])
        return float(np.var(one_each(one(batch))) / plain)

    for _ in range(12):
        ratio = variance(spo)
    assert ratio < 1.01 < 1.25 < variance(SPO(ValueTracker(), "trajectory", scale="centred"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("deviation", [3.0, -1 / 3]), ("centred", [0.9, -0.1]), ("fixed", [1.8, -0.2]), ("running", [3.0, -1 / 3])],
)
def test_scales_by_hand(kind, expected: list[float]) -> None:
    """0 and -1 under weights 1 and 9: mean -.9, deviation .3."""
    centred, divided = Scale(kind)([0.0, -1.0], [1, 9])
    assert centred == pytest.approx([0.9, -0.1])
    assert divided == pytest.approx(expected)


def test_a_batch_of_right_answers_is_not_blown_up() -> None:
    """After batches of deviation .5, one with r − v in {0, .02}: 1 under `deviation`, a fiftieth under the others."""
    running = Scale("running")
    for _ in range(40):
        running([0.5, -0.5], [1, 1])
    quiet = [0.02, 0.0]
    assert Scale()(quiet, [1, 1])[1] == pytest.approx([1, -1])
    last = 0.01 / math.sqrt(0.9 * 0.25 + 0.1 * 0.0001)
    assert running(quiet, [1, 1])[1] == pytest.approx([last, -last], rel=1e-2)
    assert Scale("fixed")(quiet, [1, 1])[1] == pytest.approx([0.02, -0.02])
    assert Scale("centred")(quiet, [1, 1])[1] == pytest.approx([0.01, -0.01])


def test_the_first_wrong_answer_after_many_right_ones_is_not_blown_up_either() -> None:
    """Forty batches all right, then one of 32 wrong: as under `deviation`, by hand −√31; small after mixed ones."""
    ones, one_wrong = [1.0] * 32, [0.0] + [1.0] * 31
    rested, busy = Scale("running"), Scale("running")
    for _ in range(40):
        rested(ones, ones)
        busy([0.0, 1.0] * 16, ones)
    assert rested(one_wrong, ones)[1][0] == pytest.approx(-math.sqrt(31))
    assert busy(one_wrong, ones)[1][0] == pytest.approx(-31 / 32 / 0.5, rel=0.06)  # its own square is a tenth of it


def test_forgetting_follows_the_errors_of_successive_visits() -> None:
    """A tracker that lags behind a rising rate forgets faster, one of a constant rate slower than it began."""

    def final(rate, seed: int) -> float:
        rng, tracker = random.Random(seed), ValueTracker(0.5, 0.98)
        forgetting = CalibratedForgetting(tracker)
        for step in range(60):
            values = [tracker.value(f"t{i}") for i in range(32)]
            rewards = [float(rng.random() < rate(step)) for _ in values]
            forgetting.update([f"t{i}" for i in range(32)], rewards, values)
            for i, r in enumerate(rewards):
                tracker.observe(f"t{i}", r, forgetting.divergence)
        return forgetting.rho

    start = CalibratedForgetting(ValueTracker(0.5, 0.98)).rho
    assert start == pytest.approx(0.9)  # √(.5·.02) = .1
    assert final(lambda step: 0.3, 1) > 0.93
    assert final(lambda step: 0.1 if step % 20 < 10 else 0.9, 2) < 0.8


def test_the_divergence_of_calibrated_forgetting_gives_its_rho() -> None:
    tracker = ValueTracker(0.5, 0.98)
    forgetting = CalibratedForgetting(tracker)
    tracker.observe("x", 1, 0.0)
    before = tracker.evidence("x")
    tracker.observe("x", 0, forgetting.divergence)
    assert tracker.evidence("x")[0] == pytest.approx(forgetting.rho * before[0])


def test_shared_drift_by_hand() -> None:
    """Rate .5: half a Newton step of all four on all, half of what is left within a source on its own."""
    drift = SharedDrift(0.5)
    drift.update(3, [("s", 1.0, 0.5), ("s", 0.7, 0.5), ("o", 0.6, 0.5), ("", 0.2, 0.5 - math.sqrt(0.15))])
    errors = 0.5 + 0.2 + 0.1 + 0.2 - (0.5 - math.sqrt(0.15))
    common = 0.5 * errors / 2  # the variances add up to .85, which is less than the least
    own = common + 0.5 * (0.7 - common / 0.5 * 0.5) / (0.5 + 2)
    logit = lambda p: math.log(p / (1 - p))
    assert logit(drift.moved(0.4, "s", 2, None)) == pytest.approx(logit(0.4) + own)
    assert logit(drift.moved(0.4, "unknown", 2, 3)) == pytest.approx(logit(0.4) + common)
    assert drift.moved(0.4, "s", 3, None) == 0.4  # as of version 3 it is in the value already
    assert drift.moved(0.4, "s", 1, 2) == 0.4
    assert drift.moved(0.4, "s", None, None) == 0.4  # a value of nobody knows which version
    again = SharedDrift(0.5)
    again.load_state_dict(json.loads(json.dumps(drift.state_dict())))
    assert again.moved(0.4, "s", 0, 9) == drift.moved(0.4, "s", 0, 9)


def test_a_stretch_without_any_success_does_not_wind_the_drift_up() -> None:
    """100 batches of 32 all wrong, then rate .4: twelve batches later the values of 2,000 tasks are there."""
    rng, tracker = random.Random(5), ValueTracker(shared_drift=0.5)
    tasks, spo = [f"t{i}" for i in range(2000)], SPO(tracker)
    for task in tasks:
        tracker.initialize(task, [1.0, 0.0], version=0)

    def batch(step: int, rate: float) -> None:
        drawn = enumerate(rng.sample(tasks, 32))
        where = [(task, {"value": tracker.value(task), "event": 32 * step + i, "version": step}) for i, task in drawn]
        spo(Batch([trajectory(task, float(rng.random() < rate), **rest) for task, rest in where]))

    for step in range(100):
        batch(step, 0.0)
    assert max(map(tracker.value, tasks)) < 0.02
    for step in range(100, 112):
        batch(step, 0.4)
    values = [tracker.value(task) for task in tasks]
    assert 0.3 < sum(values) / len(values) < 0.5


def test_no_shift_takes_a_value_out_of_its_range() -> None:
    """All that a run can add up, either way: 4,000 batches at the largest change."""
    drift = SharedDrift(1.0)
    for version in range(4000):
        drift.update(version, 16 * [("", 1.0, 0.5), ("", 0.97, 0.31)])
    assert drift.moved(0.4, "", 0, None) == pytest.approx(0.999)
    assert drift.moved(0.4, "", 3999, 0) == pytest.approx(0.001)


def test_a_value_is_fresh_without_a_visit() -> None:
    """400 tasks of rates .1 to .7, all logits rising; 40 visited a batch: the shared drift halves the error of all."""

    def error(shared: float) -> float:
        rng, tracker = random.Random(4), ValueTracker(shared_drift=shared)
        base = {f"t{i}": 0.1 + 0.6 * i / 400 for i in range(400)}
        rate = lambda task, step: 1 / (1 + math.exp(-(math.log(base[task] / (1 - base[task])) + 0.06 * step)))
        for task in base:
            tracker.initialize(task, [float(rng.random() < base[task]) for _ in range(8)], version=0)
        for step in range(40):
            tasks = rng.sample(sorted(base), 40)
            batch = []
            for i, task in enumerate(tasks):
                where = {"value": tracker.value(task), "event": 40 * step + i, "version": step}
                batch.append(trajectory(task, float(rng.random() < rate(task, step)), **where))
            SPO(tracker)(batch)
        return math.sqrt(sum((tracker.value(t) - rate(t, 40)) ** 2 for t in base) / len(base))

    assert error(0.5) < 0.6 * error(0.0)


def test_shared_drift_moves_the_belief_before_the_evidence_enters() -> None:
    tracker = ValueTracker(0.9, 0.9, shared_drift=1.0)
    tracker.observe("x", 1, 0.0, event=0, version=0)  # (1.45, .45)
    tracker.learn_shared(1, 3 * [("y", 0.0), ("y", 0.5), ("y", 0.1)])  # against .5: Δb = −2.7/2.25, at most 1
    moved = 1 / (1 + math.exp(-(math.log(1.45 / 0.45) - 1)))
    assert tracker.value("x") == pytest.approx(moved)
    tracker.observe("x", 0, 0.0, event=1, version=1)
    assert tracker.evidence("x") == pytest.approx((0.9 * 1.9 * moved, 0.9 * 1.9 * (1 - moved) + 1))
    copy = ValueTracker(0.9, 0.9, shared_drift=1.0)
    copy.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
    assert copy.evidence("x") == tracker.evidence("x")


def test_pooled_moments_find_the_beta_that_rates_were_drawn_from() -> None:
    """Beta(1.2, 2.8): m = .3, c = 4; three visits a task; a source of its own at .9."""
    rng, pool = random.Random(7), Pool(8.0)
    for i in range(4000):
        p, source = (rng.betavariate(1.2, 2.8), "s") if i % 4 else (0.9, "easy")
        last = None
        for _ in range(3):
            r = float(rng.random() < p)
            pool.observe(source, r, last)
            last = r
    alpha, beta = pool.prior("s")
    assert alpha / (alpha + beta) == pytest.approx(0.3, abs=0.07)
    assert 2.0 < alpha + beta < 8
    easy = pool.prior("easy")
    assert easy[0] / sum(easy) == pytest.approx(0.9, abs=0.06)
    assert sum(easy) > sum((alpha, beta))  # rates alike are believed further
    assert pool.prior("never seen") == pool.prior("")


def test_a_pooled_task_starts_from_its_source_and_keeps_its_own_evidence() -> None:
    tracker = ValueTracker(pooled=True)
    for i in range(60):
        tracker.place(f"t{i}", "hard" if i % 2 else "easy")
    assert tracker.value("t0") == 0.5
    for i in range(50):
        tracker.observe(f"t{i}", float(i % 2 == 0), event=i)
    assert tracker.value("t51") < 0.2 < 0.8 < tracker.value("t50")
    assert tracker.value("nobody's") == pytest.approx(0.5, abs=0.02)
    a, b = tracker.evidence("t51")
    tracker.observe("t51", 1.0, 0.0, event=99)
    assert tracker.evidence("t51") == pytest.approx((0.96 * a + 1, 0.96 * b))
    copy = ValueTracker(pooled=True)
    copy.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
    assert copy.value("t53") == tracker.value("t53")


def test_a_level_is_pulled_to_its_source_and_that_to_the_population() -> None:
    """Means .598039, .706583, .475190; Var(p) .06, .0566667, .0531481: c = 3.692251 at the level, 2.658652 above."""
    pool = Pool(8.0)
    moments = {"": [30.0, 50.0, 2.4, 40.0], "s": [15.0, 20.0, 0.8, 16.0], "s (level 2)": [1.0, 6.0, 0.1, 4.0]}
    pool.load_state_dict(moments)
    assert pool.prior("s", "2") == pytest.approx((1.754521, 1.937730), rel=1e-6)
    assert pool.prior("s") == pool.prior("s", "7") == pytest.approx((1.878557, 0.780095), rel=1e-6)
    assert pool.prior("o", "2") == pool.prior("", "2") == pool.prior("")
    pool.observe("s", 1.0, None, "7")
    state = pool.state_dict()
    assert state.pop("s (level 7)") == [1.0, 1.0, 0.0, 0.0]
    assert {name for name in moments if state[name] != moments[name]} == {"", "s"}


def test_levels_are_the_pools_alone() -> None:
    """What moves together stays the source; a batch, which tells no level, and an older checkpoint lose none."""
    tracker = ValueTracker(pooled=True, shared_drift=0.5)
    for i in range(40):
        tracker.place(f"t{i}", "s", "12"[i % 2])
    for i in range(30):
        batch = [trajectory(f"t{i}", float(i % 2 == 0), source="s", event=i, value=tracker.value(f"t{i}"), version=i)]
        SPO(tracker)(batch)
    assert tracker.value("t39") < 0.35 < 0.65 < tracker.value("t38")
    state = json.loads(json.dumps(tracker.state_dict()))
    assert state["shared"]["versions"].keys() == {"", "s"}
    assert set(state["sources"].values()) == {"s"}
    old = ValueTracker(pooled=True, shared_drift=0.5)
    old.place("t38", "s", "1")
    pool = {name: moments for name, moments in state["pool"].items() if "level" not in name}
    old.load_state_dict({**{k: v for k, v in state.items() if k != "levels"}, "pool": pool})
    assert old.value("t38") == old.value("t39") == pytest.approx(0.5, abs=0.1)
    old.observe("t38", 1.0, event=0)
    assert "s (level 1)" in old.state_dict()["pool"]
    same = ValueTracker(pooled=True, shared_drift=0.5)
    same.load_state_dict(state)
    assert (same.value("t38"), same.value("t39")) == (tracker.value("t38"), tracker.value("t39"))


def test_snapshot_retention_counts_versions_not_visits() -> None:
    """SPO++: ρ once a version between two dispatches; two streams of one version add up."""
    tracker = ValueTracker(0.875, 0.96, forgetting="snapshot")
    tracker.initialize("x", [1] * 8, version=0)
    a, b = tracker.evidence("x")
    tracker.observe("x", 0, event=0, version=2)
    tracker.observe("x", 1, event=1, version=2)
    assert tracker.evidence("x") == pytest.approx((0.875**2 * a + 1, 0.875**2 * b + 1))
    tracker.observe("x", 0, 9.9, event=2, version=3)  # D says nothing here
    assert tracker.evidence("x") == pytest.approx((0.875 * (0.875**2 * a + 1), 0.875 * (0.875**2 * b + 1) + 1))


def test_the_default_is_r_less_v_under_the_token_measure_and_learns_nothing_else() -> None:
    """Options of this project are off. The published method has the trajectory measure, and a start of eight."""
    batch = [answer("a", 1, 0.9, 0.5, 0.1, value=0.25), answer("b", 0, 0.2, value=0.4), answer("c", 1, 0.3, value=0.9)]
    got = SPO(ValueTracker())(batch)
    assert one_each(got) == pytest.approx(standardize([0.75, -0.4, 0.1], [3, 1, 1]))
    assert not {"tracker/slope", "tracker/energy_ratio", "tracker/rho"} & got.metrics.keys()
    published = one_each(SPO(ValueTracker(), "trajectory")(batch))
    assert published == pytest.approx(standardize([0.75, -0.4, 0.1]))
    assert published != pytest.approx(one_each(got), abs=0.01)


def test_what_a_filter_takes_out_is_evidence_and_no_part_of_the_centre() -> None:
    """Four overlong wrong answers beside four others: Σ w A over what is trained on is 0, and the tracker saw all."""
    long = [trajectory(f"l{i}", 0.0, response=range(180), event=i) for i in range(4)]
    short = [trajectory(f"s{i}", float(i < 3), response=range(20 + 7 * i), event=9 + i) for i in range(4)]
    tracker = ValueTracker()
    got = one_each(SPO(tracker)(Batch([*long, *short], [False] * 4 + [True] * 4)))
    assert sum(t.n_action_tokens * a for t, a in zip(short, got[4:], strict=True)) == pytest.approx(0, abs=1e-9)
    assert got[7] < 0 < min(got[4:7])
    assert tracker.value("l0") < 0.5


OURS = {"baseline": "energy", "slope": "fitted", "scale": "running", "divergence": "calibrated"}


def test_every_option_survives_a_checkpoint() -> None:
    def batch(step: int) -> list[Trajectory]:
        made = []
        for i in range(8):
            where = {"event": 8 * step + i, "value": 0.1 * (i + 1), "version": step}
            reward = float((i * 7 + step) % 3 == 0)
            made.append(answer(f"t{i % 5}", reward, 0.3 + 0.05 * i, 0.9 - 0.1 * (i % 4), **where))
        return made

    one, two = (SPO(ValueTracker(0.5, 0.98), "energy", **OURS) for _ in range(2))
    for step in range(3):
        one(batch(step))
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    two.tracker.load_state_dict(json.loads(json.dumps(one.tracker.state_dict())))
    third, again = one(batch(3)), two(batch(3))
    assert one_each(third) == one_each(again)
    assert third.metrics == again.metrics
    assert 0 < third.metrics["tracker/energy_ratio"] != 1
