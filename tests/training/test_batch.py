"""What makes trajectories a batch, and what keeps them out of one."""

from __future__ import annotations

import math

import pytest
from tiny_ledgers import trajectory

from solostream.training.batch import Batch, UnfitBatch


def test_a_batch_is_its_trajectories_in_order() -> None:
    given = [trajectory("a", 0.0), trajectory("b", 0.25), trajectory("c", 1.0)]
    batch = Batch(iter(given))
    assert list(batch) == given
    assert batch[1] is given[1]
    assert batch[1:] == tuple(given[1:])
    assert len(batch) == 3


@pytest.mark.parametrize(
    ("reward", "ending", "why"),
    [
        (math.nan, "answered", "not finite, mend the environment's scoring: tasks odd (nan)"),
        (-math.inf, "answered", "not finite, mend the environment's scoring: tasks odd (-inf)"),
        (
            1.0000001,
            "answered",
            "outside [0, 1], set algorithm.reward_range to what the environment pays: tasks odd (1)",
        ),
        (-0.5, "token_limit", "algorithm.reward_range to what the environment pays: tasks odd (-0.5)"),
        (0.0, "infra", "an infrastructure failure is no outcome, drop it: tasks odd (0)"),
    ],
)
def test_what_is_no_outcome_is_named(reward: float, ending: str, why: str) -> None:
    with pytest.raises(UnfitBatch) as error:
        Batch([trajectory("fine"), trajectory("odd", reward, ending=ending)])
    assert str(error.value).endswith(why)


def test_every_fault_is_told_at_once() -> None:
    odd = [trajectory("a", 3.0), trajectory("b", math.nan), trajectory("c", -1.0)]
    with pytest.raises(UnfitBatch, match=r"tasks a \(3\), c \(-1\); rewards that are not finite.*tasks b \(nan\)"):
        Batch(odd)
