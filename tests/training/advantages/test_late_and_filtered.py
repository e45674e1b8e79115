"""What a tracker and a single stream learn from batches that come late, or of which a part is filtered out."""

from __future__ import annotations

import math
import random

import pytest
from tiny_ledgers import trajectory

from solostream.training.advantages.spo import SPO
from solostream.training.advantages.stream.shared_drift import SharedDrift
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch


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
    for task in "xyz":
        tracker.initialize(task, [1, 1, 0], version=0)
    spo = SPO(tracker)
    spo(Batch([trajectory("y", 0.9, value=0.625, version=1)]))
    first = 0.5 * (0.9 - 0.625) / (0.625 * 0.375)
    assert logit(tracker.value("x")) == pytest.approx(logit(0.625) + first)
    now = tracker.value("z")
    got = spo(Batch([trajectory("z", 0.9, value=0.625, version=2, event=1)]))
    second = 0.5 * (0.9 - now) / (now * (1 - now))
    assert logit(tracker.value("x")) == pytest.approx(logit(0.625) + first + second)
    assert second < 0.7 * first
    assert got.metrics["advantage/mean"] == pytest.approx(0.9 - 0.625)  # the advantage keeps what was frozen
