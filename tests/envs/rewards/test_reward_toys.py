"""Rewards that grade right answers, on a policy over a few whole behaviours: the exact gradient of what is paid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from test_rewards import DONE, episode, total

from solostream.envs.rewards import Episode


def learnt(reward: str, behaviours: Sequence[Episode], steps: int) -> np.ndarray:
    """Probabilities [behaviours] after `steps` of θ ← θ + π(r − E r), from all alike."""
    paid = np.array([total(reward, one) for one in behaviours])
    theta = np.zeros(len(paid))
    for _ in range(steps):
        p = np.exp(theta) / np.exp(theta).sum()
        theta += p * (paid - p @ paid)
    return np.exp(theta) / np.exp(theta).sum()


BROKEN, WRONG, SILENT = episode("5", status="malformed"), episode("6"), episode(None, ending="turn_limit")
RIGHT, BUSY = episode("5", executions=()), episode("5", executions=(DONE,) * 6)


def test_tapo_teaches_the_form_before_anything_is_right_and_leaves_calls_alone() -> None:
    form = learnt("tapo", [WRONG, BROKEN, SILENT], 100)
    assert form[0] > 0.9
    assert learnt("correct", [WRONG, SILENT], 100).tolist() == pytest.approx([0.5, 0.5])  # nothing to learn from
    assert learnt("correct", [WRONG, BROKEN, SILENT], 100)[1] > 0.9
    wrong, broken, right, busy = learnt("tapo", [WRONG, BROKEN, RIGHT, BUSY], 100)
    assert right == pytest.approx(busy)
    assert right + busy > 0.9
    assert broken < wrong
    priced = learnt("otc", [WRONG, BROKEN, RIGHT, BUSY], 100)
    assert priced[2] > 20 * priced[3]


def test_tiers_reach_the_sweet_spot_sooner_and_do_not_tell_what_is_in_it_apart() -> None:
    """0, 1, 2, 4 and 8 calls earn 1, .87, .71, .5 and .31 of otc: zones 4, 4, 3, 3, 2."""
    behaviours = [episode("5", executions=(DONE,) * n) for n in (0, 1, 2, 4, 8)]
    tiers, plain = (learnt(name, behaviours, 20) for name in ("tiers", "otc"))
    assert tiers[0] == pytest.approx(tiers[1])
    assert tiers[2] == pytest.approx(tiers[3])
    assert plain[0] > 2 * plain[1]
    assert tiers[:2].sum() > plain[:2].sum() + 0.02
    assert tiers[1] > tiers[2] > tiers[4]
