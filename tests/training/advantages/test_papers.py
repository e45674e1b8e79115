"""Estimators and losses against the formulas of their papers, on random batches that sit on no symmetry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_ledgers import one_each, trajectory

from solostream import registry
from solostream.training.advantages.grpo import GRPO, DrGRPO
from solostream.training.advantages.maxrl import MaxRL
from solostream.training.advantages.reinforce import OPO, ReinforcePlusPlus
from solostream.training.advantages.rloo import RLOO
from solostream.training.advantages.shrinkage import Shrinkage
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch
from solostream.training.losses.tokens import Tokens

ANSWER = st.tuples(st.floats(0, 1, width=16), st.integers(1, 9), st.floats(0.03, 0.97), st.booleans())
GROUPS = st.lists(st.lists(ANSWER, min_size=2, max_size=6), min_size=1, max_size=5)
few = settings(deadline=None, max_examples=40)


def made(sets: Sequence) -> tuple[Batch, list[np.ndarray], np.ndarray]:
    """(batch, kept places of each group, rewards [n])."""
    trajectories, kept, groups = [], [], []
    for g, answers in enumerate(sets):
        places = []
        for reward, tokens, value, keep in answers:
            if keep:
                places.append(len(trajectories))
            kept.append(keep)
            where = {"response": range(tokens), "value": value, "group": g, "event": len(trajectories)}
            trajectories.append(trajectory(f"t{g}", reward, **where))
        groups.append(np.array(places, int))
    return Batch(trajectories, kept), groups, np.array([t.reward for t in trajectories])


@given(GROUPS)
@few
def test_estimators_that_compare_within_groups(sets: Sequence) -> None:
    batch, groups, r = made(sets)
    expected = {name: np.zeros(len(r)) for name in ("grpo", "dr_grpo", "rloo", "opo", "maxrl")}
    length = np.array([t.n_action_tokens for t in batch])
    for members in groups:
        if len(members) == 0:
            continue
        x, w = r[members], length[members]
        expected["dr_grpo"][members] = x - x.mean()
        if len(x) > 1:
            expected["grpo"][members] = (x - x.mean()) / (x.std(ddof=1) + 1e-6)
            expected["rloo"][members] = (x - x.mean()) * len(x) / (len(x) - 1)
        expected["opo"][members] = x - (w * x).sum() / w.sum()
        expected["maxrl"][members] = x / x.mean() - 1 if x.mean() > 0 else 0
    for name, estimator in (
        ("grpo", GRPO()),
        ("dr_grpo", DrGRPO()),
        ("rloo", RLOO()),
        ("opo", OPO()),
        ("maxrl", MaxRL()),
    ):
        assert one_each(estimator(batch)) == pytest.approx(expected[name].tolist(), rel=1e-6, abs=1e-9), name


@given(GROUPS)
@few
def test_estimators_that_centre_the_batch(sets: Sequence) -> None:
    """Over what is kept; SPO subtracts the value first, and SPO++ weighs by action tokens."""
    batch, _, r = made(sets)
    kept, v = np.array(batch.kept), np.array([t.dispatch.value for t in batch])
    tokens = np.array([float(t.n_action_tokens) for t in batch])

    def standard(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        if w.sum() == 0:
            return np.zeros_like(x)
        mean = (w * x).sum() / w.sum()
        deviation = math.sqrt((w * (x - mean) ** 2).sum() / w.sum())
        return (x - mean) / deviation if deviation > 1e-9 else np.zeros_like(x)

    for name, got, expected in (
        ("REINFORCE++", ReinforcePlusPlus(), standard(r, kept * 1.0)),
        ("SPO", SPO(ValueTracker(), "trajectory"), standard(r - v, kept * 1.0)),
        ("SPO++", SPO(ValueTracker()), standard(r - v, kept * tokens)),
    ):
        assert np.array(one_each(got(batch)))[kept] == pytest.approx(expected[kept], rel=1e-6, abs=1e-6), name


@given(GROUPS)
@few
def test_a_shrunken_baseline_does_not_depend_on_its_own_answer(sets: Sequence) -> None:
    """Changing one reward moves its own advantage by exactly as much: the baseline was made of the others."""
    batch, groups, _ = made(sets)
    if not len(groups[0]):
        return
    place = int(groups[0][0])
    answers = [list(answers) for answers in sets]
    reward, *rest = answers[0][place]
    answers[0][place] = ((reward + 0.375) % 1, *rest)
    changed = made(answers)[0]
    moved = one_each(Shrinkage()(changed))[place] - one_each(Shrinkage()(batch))[place]
    assert moved == pytest.approx(changed[place].reward - batch[place].reward, abs=1e-9)


@given(st.lists(st.tuples(st.floats(-3, -0.05), st.floats(-1, 1), st.floats(-2, 2)), min_size=1, max_size=12))
@few
def test_losses_have_the_gradient_of_their_formula(rows: Sequence[tuple[float, float, float]]) -> None:
    """d loss/d log π of each token: (log π, log π_old, A) at random, two tokens a sequence."""
    logprob = torch.tensor([x for x, _, _ in rows], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([min(x - d, -1e-3) for x, d, _ in rows], dtype=torch.float64)
    a = torch.tensor([a for _, _, a in rows], dtype=torch.float64)
    segment = torch.arange(len(rows)) // 2
    tokens = Tokens(logprob, old, a, segment, int(segment[-1]) + 1, torch.zeros(len(rows)) > 0)
    x, ratio, weigh = logprob.detach().numpy(), (logprob.detach() - old).exp().numpy(), a.numpy()
    inside = np.where(weigh > 0, ratio <= 1.28, ratio >= 0.8) & ~((weigh < 0) & (ratio > 10))
    moved = np.exp(x) - np.exp(old.numpy())
    expected = {
        "ppo_clip": -weigh * ratio * inside,
        "cispo": -weigh * np.minimum(ratio, 1.28),
        "dppo": -weigh * np.minimum(ratio, 20) * np.where(weigh > 0, moved <= 0.2, moved >= -0.2),
    }
    near = np.abs(ratio - 1.28) + np.abs(ratio - 0.8) < 1e-9
    for name, gradient in expected.items():
        logprob.grad = None
        registry.make("loss", name)(tokens)[0].sum().backward()
        got = logprob.grad.numpy()
        assert got[~near] == pytest.approx(gradient[~near], rel=1e-9, abs=1e-12), name
