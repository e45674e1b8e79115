"""Losses and off-policy corrections against the equations of their papers, on random tokens of random sequences.

Each expected gradient, d loss/d log π of a token, is written down from the paper in another form than the code's. A
token within 1e-6 of a bound is left out: there a rounding decides. `ppo_clip`, `cispo` and `dppo`: `test_papers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solostream import registry
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.corrections import token_corrections
from solostream.training.losses.aggregation import token_weights
from solostream.training.losses.clip_cov import ClipCov, covariance
from solostream.training.losses.kl_cov import KLCov
from solostream.training.losses.tokens import Tokens

# log π_old, log ρ, A of a token; sequences of one to six
TOKEN = st.tuples(st.floats(-4, -0.01), st.floats(-3, 3), st.floats(-2, 2))
SEQUENCES = st.lists(st.lists(TOKEN, min_size=1, max_size=6), min_size=1, max_size=5)
few = settings(deadline=None, max_examples=60)


class Columns:
    """Random sequences as arrays [n], one entry a token, and as what a loss sees."""

    def __init__(self, sequences: Sequence[Sequence[tuple[float, float, float]]], picked: np.ndarray | None = None):
        rows = [row for sequence in sequences for row in sequence]
        self.old, change, self.a = (np.array(column) for column in zip(*rows, strict=True))
        self.new = np.minimum(self.old + change, -1e-3)  # a probability below 1
        self.ratio, self.q = np.exp(self.new - self.old), np.exp(self.old)
        self.lengths = [len(sequence) for sequence in sequences]
        self.segment = np.repeat(np.arange(len(sequences)), self.lengths)
        self.picked = np.zeros(len(rows), bool) if picked is None else picked

    def tokens(self) -> Tokens:
        logprob = torch.tensor(self.new, requires_grad=True)
        old, a, segment, picked = map(torch.from_numpy, (self.old, self.a, self.segment, self.picked))
        return Tokens(logprob, old, a, segment, len(self.lengths), picked)

    def gradient(self, loss: object, weights: Sequence[float] | None = None) -> np.ndarray:
        """d Σ(weight·loss)/d log π [n]; weights: of each sequence's tokens."""
        tokens = self.tokens()
        values = loss(tokens)[0]
        each = 1.0 if weights is None else torch.tensor(weights, dtype=torch.float64)[tokens.segment]
        (values * each).sum().backward()
        return tokens.logprob.grad.numpy()


@given(SEQUENCES, st.floats(0.05, 1.0), st.floats(0.05, 1.0))
@few
def test_gspo_is_a_mean_over_sequences_of_a_clipped_ratio_of_geometric_means(
    sequences: list, low: float, high: float
) -> None:
    """arXiv 2507.18071: J = mean_i min(s_i A_i, clip(s_i) A_i) (Eq. 5), s = (π(y)/π_old(y))^(1/|y|) (Eq. 7).

    Its gradient on a token of y_i is s_i A_i/(N |y_i|) where min takes the first.
    """
    whole = [[(old, change, sequence[0][2]) for old, change, _ in sequence] for sequence in sequences]
    columns = Columns(whole)
    expected, objective, clear = [], 0.0, []
    for i, n in enumerate(columns.lengths):
        of = columns.segment == i
        s = math.pow(float(np.prod(columns.ratio[of])), 1 / n)
        a = float(columns.a[of][0])
        stopped = (a > 0 and s > 1 + high) or (a < 0 and s < 1 - low)
        expected += [0.0 if stopped else -s * a / (n * len(whole))] * n
        objective += (a * (1 + high if a > 0 else 1 - low) if stopped else a * s) / len(whole)
        clear += [min(abs(s - 1 - high), abs(s - 1 + low)) > 1e-6] * n
    loss = registry.make("loss", "gspo", {"clip_low": low, "clip_high": high})
    weights = token_weights("seq_mean_token_mean", columns.lengths)
    got = columns.gradient(loss, weights)
    assert got[clear] == pytest.approx(np.array(expected)[clear], rel=1e-9, abs=1e-12)
    value = (loss(columns.tokens())[0].detach().numpy() * np.array(weights)[columns.segment]).sum()
    assert value == pytest.approx(-objective, rel=1e-9, abs=1e-12)


@given(SEQUENCES, st.floats(0.2, 3.0), st.floats(0.2, 3.0))
@few
def test_sapo_fades_as_the_squared_secant(sequences: list, positive: float, negative: float) -> None:
    """arXiv 2511.20347: the gradient is sech²(τ(ρ − 1)/2)·ρ·A·∇log π, which is 4p(1 − p) with p = σ(τ(ρ − 1))."""
    columns = Columns(sequences)
    tau = np.where(columns.a > 0, positive, negative)
    expected = -columns.ratio * columns.a / np.cosh(np.minimum(tau * (columns.ratio - 1) / 2, 300)) ** 2
    loss = registry.make("loss", "sapo", {"tau_positive": positive, "tau_negative": negative})
    assert columns.gradient(loss) == pytest.approx(expected, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.35), (0.16, 0.2), (0.23, 0.07)])
def test_dcpo_lets_go_where_the_change_times_the_ratio_exceeds_epsilon(low: float, high: float) -> None:
    """arXiv 2509.02333, Sec. 3.1: |(ρ − 1)·ρ·q| ≤ ε, of the two lower roots the one above a half; dual clip at 10."""
    rng = np.random.default_rng(3)  # many, for the roots lie close to what a slip in ε would make of them
    rows = zip(rng.uniform(-3, -0.01, 4000), rng.normal(0, 0.6, 4000), rng.normal(size=4000), strict=True)
    columns = Columns([list(rows)])
    ratio, a, moved = columns.ratio, columns.a, (columns.ratio - 1) * columns.ratio * columns.q
    above = (a > 0) & (ratio > 1) & (moved > high)
    below = (a < 0) & ((ratio < 0.5) | ((ratio < 1) & (-moved > low)))
    expected = np.where(above | below | ((a < 0) & (ratio > 10)), 0, -ratio * a)
    clear = np.min([abs(moved - high), abs(moved + low), abs(ratio - 0.5), abs(ratio - 10)], axis=0) > 1e-6
    got = columns.gradient(registry.make("loss", "dcpo", {"clip_low": low, "clip_high": high}))
    assert got[clear] == pytest.approx(expected[clear], rel=1e-9, abs=1e-12)


@given(SEQUENCES, st.floats(0.1, 5.0))
@few
def test_r2vpo_pulls_the_ratio_to_one_plus_the_advantage(sequences: list, penalty: float) -> None:
    """arXiv 2601.03320: max E[ρA] − λ/2·E[(ρ − 1)²], whose derivative on ρ is A − λ(ρ − 1); dρ = ρ·d log π."""
    columns = Columns(sequences)
    expected = (penalty * (columns.ratio - 1) - columns.a) * columns.ratio
    got = columns.gradient(registry.make("loss", "r2vpo", {"penalty": penalty}))
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(SEQUENCES, st.floats(0.05, 0.5), st.floats(0.05, 0.5))
@few
def test_aepo_keeps_the_bounds_own_gradient_above_it(sequences: list, low: float, high: float) -> None:
    """arXiv 2510.14545: for A > 0 the factor of A·∇log π is min(ρ, 1 + ε_high); for A < 0 it is ρ on [1 − ε_low, 3]."""
    columns = Columns(sequences)
    ratio, a = columns.ratio, columns.a
    factor = np.where(a > 0, np.minimum(ratio, 1 + high), np.where((ratio >= 1 - low) & (ratio <= 3), ratio, 0))
    clear = np.min([abs(ratio - 1 + low), abs(ratio - 3), abs(ratio - 1 - high)], axis=0) > 1e-6
    got = columns.gradient(registry.make("loss", "aepo", {"clip_low": low, "clip_high": high}))
    assert got[clear] == pytest.approx((-factor * a)[clear], rel=1e-9, abs=1e-12)


@given(SEQUENCES, st.floats(0.01, 1.0), st.integers(0, 2**16))
@few
def test_clip_cov_takes_a_share_of_high_covariance_out_of_ppo(sequences: list, share: float, seed: int) -> None:
    """arXiv 2505.22617, Eq. 12: ⌊r·N⌋ tokens, at least one, of those whose covariance is between the bounds."""
    columns = Columns(sequences)
    n, x, a = len(columns.a), columns.old.tolist(), columns.a.tolist()
    cov = [(x[i] - sum(x) / n) * (a[i] - sum(a) / n) for i in range(n)]
    assert covariance(columns.old, columns.a) == pytest.approx(cov, abs=1e-12)
    loss = ClipCov(share=share, bounds=(0.1, 1.5))
    picked = loss.select(np.array(cov), np.random.default_rng(seed))
    between = [0.1 < c < 1.5 for c in cov]
    assert not (picked & ~np.array(between)).any()
    assert picked.sum() == min(max(math.floor(share * n), 1), sum(between))
    columns.picked = picked
    plain = Columns(sequences).gradient(registry.make("loss", "ppo_clip"))
    assert columns.gradient(loss).tolist() == np.where(picked, 0, plain).tolist()


def test_clip_cov_draws_each_candidate_alike() -> None:
    cov = np.array([0.2, 3.0, 0.4, -1.0, 0.9, 1.2, 1.4, 0.05, 0.7])
    loss, rng = ClipCov(share=0.25, bounds=(0.1, 1.5)), np.random.default_rng(5)
    found = sum(loss.select(cov, rng).astype(int) for _ in range(6000)) / 6000
    assert found == pytest.approx(np.where((cov > 0.1) & (cov < 1.5), 2 / 6, 0), abs=0.025)


@given(SEQUENCES, st.floats(0.01, 1.0), st.floats(0.1, 3.0))
@few
def test_kl_cov_holds_the_share_of_the_largest_covariance(sequences: list, share: float, kl: float) -> None:
    """arXiv 2505.22617, Eq. 13: those of rank ≤ k·N get the penalty, here |log ρ| as in the authors' code."""
    columns = Columns(sequences)
    cov, loss = covariance(columns.old, columns.a), KLCov(share=share, kl=kl)
    picked = loss.select(cov, np.random.default_rng(0))
    assert picked.sum() == max(math.floor(share * len(cov)), 1)
    assert picked.all() or cov[picked].min() >= cov[~picked].max()
    columns.picked = picked
    change = columns.new - columns.old
    expected = -columns.ratio * columns.a + picked * kl * np.sign(change)
    clear = abs(change) > 1e-6
    assert columns.gradient(loss)[clear] == pytest.approx(expected[clear], rel=1e-9, abs=1e-12)


SHIFTS = st.lists(st.floats(-2, 2), min_size=30, max_size=30)  # log π_learner/π_sampler of each token


@given(SEQUENCES, SHIFTS, st.floats(0.3, 4.0))
@few
def test_truncated_importance_sampling(sequences: list, shifts: list, cap: float) -> None:
    """fengyao.notion.site/off-policy-rl: min(π_learner/π_sampler, C), on every token."""
    columns = Columns(sequences)
    shift = np.array(shifts[: len(columns.a)])
    got, metrics = token_corrections(
        columns.tokens(), torch.from_numpy(columns.old - shift), LearnerConfig(tis_cap=cap)
    )
    ratio = [math.exp(x) for x in shift]
    assert got.tolist() == pytest.approx([min(x, cap) for x in ratio])
    assert int(metrics["tis/clipped"]) == sum(x > cap for x in ratio if abs(x - cap) > 1e-9)


@given(SEQUENCES, SHIFTS, st.floats(0.2, 0.9), st.floats(1.1, 5.0), st.one_of(st.just(0.0), st.floats(0.3, 4.0)))
@few
def test_icepop_masks_on_both_sides(sequences: list, shifts: list, low: float, high: float, cap: float) -> None:
    """Ring-1T, arXiv 2510.18855: M(k) = k where α ≤ k ≤ β, else 0; with a cap as well, what is left is truncated."""
    columns = Columns(sequences)
    shift = np.array(shifts[: len(columns.a)])
    config = LearnerConfig(mask_outside=(low, high), tis_cap=cap)
    got, metrics = token_corrections(columns.tokens(), torch.from_numpy(columns.old - shift), config)
    expected = []
    for k in map(math.exp, shift):
        expected.append(0.0 if k < low or k > high else min(k, cap) if cap else k)
    assert got.tolist() == pytest.approx(expected)
    assert int(metrics["mask/sampler"]) == expected.count(0.0)


@given(SEQUENCES, SHIFTS, st.floats(0.3, 0.95), st.floats(1.05, 3.0))
@few
def test_a_sequence_is_rejected_by_the_root_of_its_product(
    sequences: list, shifts: list, low: float, high: float
) -> None:
    """The geometric rejection of verl's rollout corrections: (Π_t ρ_t)^(1/|y|) outside of [low, high]."""
    columns = Columns(sequences)
    shift = np.array(shifts[: len(columns.a)])
    sampler = torch.from_numpy(columns.old - shift)
    got, metrics = token_corrections(columns.tokens(), sampler, LearnerConfig(reject_outside=(low, high)))
    expected: list[float] = []
    for i, n in enumerate(columns.lengths):
        root = math.prod(math.exp(x) for x in shift[columns.segment == i]) ** (1 / n)
        expected += [float(low <= root <= high)] * n
    assert got.tolist() == expected
    assert int(metrics["tis/rejected"]) == expected.count(0.0)


@given(SEQUENCES, SHIFTS, st.floats(0.05, 1.5))
@few
def test_negative_sequences_that_became_improbable_are_masked(sequences: list, shifts: list, delta: float) -> None:
    """DeepSeek-V3.2, arXiv 2512.02556: M = 0 where Â < 0 and (1/|o|)·Σ_t log(π_old/π) > δ, π of this very step.

    So under another π_old of the loss (`tis_cap`) the mask is the same, and its weight multiplies.
    """
    columns = Columns(sequences)
    sampler = columns.old - np.array(shifts[: len(columns.a)])
    expected = []
    for i, n in enumerate(columns.lengths):
        of = columns.segment == i
        ratio = math.prod(math.exp(x) for x in (sampler - columns.new)[of]) ** (1 / n)  # π_old/π, its geometric mean
        expected += [0.0 if a < 0 and ratio > math.exp(delta) else 1.0 for a in columns.a[of]]
    told = columns.tokens(), torch.from_numpy(sampler)
    alone, metrics = token_corrections(*told, LearnerConfig(drop_negatives_beyond=delta))
    assert alone.tolist() == expected
    assert int(metrics["mask/negatives"]) == expected.count(0.0)
    capped = token_corrections(*told, LearnerConfig(tis_cap=1.7))[0]
    both = token_corrections(*told, LearnerConfig(tis_cap=1.7, drop_negatives_beyond=delta))[0]
    assert both.tolist() == (capped * alone).tolist()
