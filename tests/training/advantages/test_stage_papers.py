"""Stages and token baselines against the equations of their sources, on random batches that sit on no symmetry.

Each expectation is a loop over trajectories and tokens, in the paper's own terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_ledgers import trajectory

from solostream.training.advantages.aspo import ASPO
from solostream.training.advantages.base import Advantages
from solostream.training.advantages.optimal_token import OptimalToken
from solostream.training.advantages.stages.improbable_tokens import ImprobableTokens
from solostream.training.advantages.stages.inclusion_weights import InclusionWeights
from solostream.training.advantages.stages.negative_tokens import NegativeTokens
from solostream.training.advantages.stages.negative_weight import NegativeWeight
from solostream.training.advantages.stages.tool_cost import ToolCost
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch
from solostream.training.rollouts.task_sampler import Prioritized

TOKEN = st.tuples(st.floats(0.001, 0.999), st.floats(-2, 2))  # π of the sampler, A that comes in
# reward, frozen value, place of the first call (beyond the response: none), whether a filter leaves it in, tokens
ANSWER = st.tuples(
    st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
    st.floats(0.03, 0.97),
    st.integers(0, 11),
    st.booleans(),
    st.lists(TOKEN, min_size=1, max_size=8),
)
GROUPS = st.lists(st.lists(ANSWER, min_size=1, max_size=5), min_size=1, max_size=4)
few = settings(deadline=None, max_examples=60)


class Given:
    """An estimator that gives what it was made with."""

    def __init__(self, values: Sequence[Sequence[float]]) -> None:
        self.values = values

    def __call__(self, batch: Batch) -> Advantages:
        return Advantages([np.array(v, np.float64) for v in self.values])

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...


def made(sets: Sequence) -> tuple[Batch, list[list[float]], list[list[float]]]:
    """(batch, π of each trajectory's tokens, A of each trajectory's tokens)."""
    trajectories, kept, pi, a = [], [], [], []
    for g, answers in enumerate(sets):
        for reward, value, call, keep, tokens in answers:
            fields = {"group": g, "event": len(trajectories), "value": value}
            fields |= {"call_at": call if call < len(tokens) else None, "response": range(len(tokens))}
            logprobs = [math.log(p) for p, _ in tokens]
            trajectories.append(trajectory(f"t{g}", reward, logprobs=logprobs, **fields))
            kept.append(keep)
            pi.append(np.exp(trajectories[-1].logprobs[trajectories[-1].action_mask].astype(float)).tolist())
            a.append([x for _, x in tokens])
    return Batch(trajectories, kept), pi, a


def flat(values: Sequence[Sequence[float]]) -> list[float]:
    return [float(x) for one in values for x in one]


@given(GROUPS, st.floats(-3, 3), st.floats(0.05, 0.95), st.sampled_from(["batch", "group"]))
@few
def test_aspo(sets: Sequence, delta: float, k: float, compare: str) -> None:
    """arXiv 2508.19201, Eq. 2: A + clip(δ·(p − mean p)/mean L, −kA, kA) of right answers with code.

    The means are over those of the comparison set; p is the place of the first call, L the length of the response.
    """
    batch, _, a = made(sets)

    def eligible(i: int) -> bool:
        return batch.kept[i] and batch[i].reward >= 0.5 and batch[i].first_call_token is not None

    expected = [list(one) for one in a]
    for i, t in enumerate(batch):
        with_it = [
            other
            for j, other in enumerate(batch)
            if eligible(j) and (compare == "batch" or other.dispatch.group == t.dispatch.group)
        ]
        if not eligible(i) or len(with_it) < 2:
            continue
        mean_p = sum(o.first_call_token for o in with_it) / len(with_it)
        mean_length = sum(len(o.action_mask) - 3 for o in with_it) / len(with_it)  # less the prompt's three
        term = delta * (t.first_call_token - mean_p) / mean_length
        for place, x in enumerate(a[i]):
            if x > 0:
                expected[i][place] = x + max(-k * x, min(k * x, term))
    got = ASPO(Given(a), delta, k, compare=compare)(batch).values
    assert flat(got) == pytest.approx(flat(expected), rel=1e-9, abs=1e-12)
    assert np.sign(flat(got)).tolist() == np.sign(flat(a)).tolist()  # k < 1: none changes its sign


@given(GROUPS, st.floats(0, 1))
@few
def test_negative_advantages_weigh_less(sets: Sequence, s: float) -> None:
    """A + (s − 1)·min(A, 0)."""
    batch, _, a = made(sets)
    expected = [x + (s - 1) * min(x, 0.0) for x in flat(a)]
    assert flat(NegativeWeight(Given(a), s)(batch).values) == pytest.approx(expected, abs=1e-12)


@given(GROUPS, st.floats(0.01, 1))
@few
def test_of_negative_tokens_only_the_least_likely_are_left(sets: Sequence, share: float) -> None:
    """arXiv 2606.17250: of the n negative tokens of a trajectory, the ⌈share·n⌉ of the lowest π."""
    batch, pi, a = made(sets)
    for got, p, before in zip(NegativeTokens(Given(a), share)(batch).values, pi, a, strict=True):
        negative = [j for j, x in enumerate(before) if x < 0]
        left = [j for j in negative if got[j] != 0]
        assert len(left) == math.ceil(share * len(negative))
        assert all(got[j] == before[j] for j in range(len(before)) if j in left or j not in negative)
        assert all(p[j] <= p[i] for j in left for i in set(negative) - set(left))


@given(GROUPS, st.floats(0.01, 1))
@few
def test_improbable_tokens_of_wrong_answers_are_capped(sets: Sequence, floor: float) -> None:
    """A·∇log π = (A/π)·∇π: below the floor the factor of ∇π is A/floor, above it A/π; positive ones are left alone."""
    batch, pi, a = made(sets)
    got = flat(ImprobableTokens(Given(a), floor)(batch).values)
    for x, before, p in zip(got, flat(a), flat(pi), strict=True):
        assert x / p == pytest.approx(before / (max(p, floor) if before < 0 else p), rel=1e-6)


@given(GROUPS, st.floats(0.01, 0.5), st.floats(0, 2))
@few
def test_inclusion_weights_are_horvitz_thompsons(sets: Sequence, epsilon: float, gamma: float) -> None:
    """Σ w·A over the draws is the sum that uniform draws would give, times one constant: u_i/u_j = w_j/w_i, mean 1.

    The mean is over what the filters leave.
    """
    batch, _, a = made(sets)
    tracker = ValueTracker()
    for g in range(len(sets)):
        tracker.initialize(f"t{g}", [1.0, 0.0, 1.0][: g % 4])
    sampler = Prioritized([f"t{g}" for g in range(len(sets))], tracker, epsilon=epsilon, gamma=gamma)
    n = [max(min(float(t.dispatch.group % 4), 8.0), 1.0) for t in batch]  # outcomes of the start
    v = [t.dispatch.value for t in batch]
    u = [1 / (math.sqrt(x * (1 - x)) / m**gamma + epsilon) for x, m in zip(v, n, strict=True)]
    left = [x for x, keep in zip(u, batch.kept, strict=True) if keep]
    mean = sum(left) / len(left) if left else 1.0
    expected = [x * (u[i] / mean) for i, one in enumerate(a) for x in one]
    assert flat(InclusionWeights(Given(a), sampler)(batch).values) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(GROUPS, st.floats(0.5, 3), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=4, max_size=4))
@few
def test_calls_cost_by_the_value_without_them(sets: Sequence, power: float, known: float, alone: list[float]) -> None:
    """After arXiv 2510.12838: r·(1 − v₀^α) of an answer with calls where v₀ > τ, v₀ the direct form's tracked value."""
    batch, _, _ = made(sets)
    tracker = ValueTracker()
    for g, value in enumerate(alone):
        tracker.observe(f"t{g}~direct", value)

    class Rewards(Given):
        def __call__(self, batch: Batch) -> Advantages:
            return Advantages([np.full(t.n_action_tokens, t.reward) for t in batch])

    before = {f"t{g}": (0.48 + value) / 1.96 for g, value in enumerate(alone)}  # Beta(½, ½), ρ = .96, one outcome
    got = ToolCost(Rewards([]), tracker, power=power, known=known)(batch).values
    for t, x in zip(batch, got, strict=True):
        v0 = before[t.task_id]
        if abs(v0 - known) > 1e-9:
            dear = t.first_call_token is not None and v0 > known
            assert x == pytest.approx(t.reward * (1 - v0**power) if dear else t.reward)


@given(GROUPS)
@few
def test_optimal_token_baseline(sets: Sequence) -> None:
    """arXiv 2602.07078: b_t = Σ_i G_i W_{i,t}/Σ_i W_{i,t} over answers of t tokens or more, W a sum of (1 − π)² to t.

    (1 − π)² is the departure: of 1 − 2π + Σ_v π_v² the part of the sampled token. With one answer left b_t = 0.
    """
    batch, pi, _ = made(sets)
    got = OptimalToken()(batch).values
    for i, t in enumerate(batch):
        if not batch.kept[i]:
            assert not got[i].any()
            continue
        for place in range(len(pi[i])):
            compared = [
                (batch[j].reward, sum((1 - p) ** 2 for p in pi[j][: place + 1]))
                for j in range(len(batch))
                if batch.kept[j] and batch[j].dispatch.group == t.dispatch.group and len(pi[j]) > place
            ]
            b = sum(r * w for r, w in compared) / sum(w for _, w in compared) if len(compared) > 1 else 0.0
            assert got[i][place] == pytest.approx(t.reward - b, rel=1e-6, abs=1e-9)


@given(GROUPS)
@few
def test_the_optimal_baseline_has_the_least_variance_of_all_constants_at_a_place(sets: Sequence) -> None:
    """What it is for: Σ_i W_i (G_i − b)², the noise of Σ A·score at one token, grows whichever way b moves."""
    batch, pi, _ = made(sets)
    got = OptimalToken()(batch).values
    for g in range(len(sets)):
        members = [i for i, t in enumerate(batch) if batch.kept[i] and t.dispatch.group == g]
        if len(members) < 2:
            continue
        w = [(1 - pi[i][0]) ** 2 for i in members]
        noise = [sum(x * (got[i][0] + shift) ** 2 for i, x in zip(members, w, strict=True)) for shift in (-0.1, 0, 0.1)]
        assert noise[1] < min(noise[0], noise[2])
