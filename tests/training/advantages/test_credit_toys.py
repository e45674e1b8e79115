"""Credit methods on the smallest problem where each does what its paper says; exact where it can be."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from tiny_ledgers import one_each, trajectory

from solostream.training.advantages.base import Advantage
from solostream.training.advantages.credit.aepo import AEPO
from solostream.training.advantages.credit.bnpo import BNPO, BNPOStream, density, shape
from solostream.training.advantages.credit.d3s import D3S
from solostream.training.advantages.credit.seed import SEED
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch

SURE, UNSURE = 0.97, 0.4  # probability of option 1 at a token that is a formality, and at the one that decides


def entropy_of(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


# ---- AEPO ----


def of_two_tokens(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of A·∇log π, by all four pairs of options and their probabilities: [token's logit] each."""
    entropies = np.array([entropy_of(SURE), entropy_of(UNSURE)])
    pairs = list(product((0, 1), (0, 1)))
    batch = Batch(
        trajectory(f"t{i}", float(right), response=[4, 5], value=UNSURE, event=i) for i, (_, right) in enumerate(pairs)
    )
    stage = AEPO(
        SPO(ValueTracker(), scale="none"), alpha=alpha, entropy="exact", entropies=lambda b: [entropies] * len(b)
    )
    chances = [(SURE if f else 1 - SURE) * (UNSURE if r else 1 - UNSURE) for f, r in pairs]
    scores = np.array(pairs) - np.array([SURE, UNSURE])
    steps = np.stack(stage(batch).values) * scores
    mean = np.average(steps, axis=0, weights=chances)
    return mean, np.average(steps**2, axis=0, weights=chances) - mean**2


def test_aepo_learns_more_where_the_policy_hesitates_and_hears_less_noise_elsewhere() -> None:
    """z = ∓1 for the two tokens: 1 + α of the decisive one's gradient, 1 − α of the formality's, which is all noise."""
    (plain, noise), (weighed, less) = of_two_tokens(0.0), of_two_tokens(0.5)
    assert plain == pytest.approx([0, UNSURE * (1 - UNSURE)], abs=1e-12)
    assert weighed == pytest.approx([0, 1.5 * plain[1]], abs=1e-12)
    assert noise[0] > 1e-3
    assert less[0] == pytest.approx(0.25 * noise[0])


# ---- BNPO ----


def pool(a: float, b: float) -> np.ndarray:
    """Success rates of 400 prompts: quantiles of Beta(a, b)."""
    x = (np.arange(20_000) + 0.5) / 20_000
    below = np.cumsum(x ** (a - 1) * (1 - x) ** (b - 1))
    return np.interp((np.arange(400) + 0.5) / 400, below / below[-1], x)


def by_rate(rates: np.ndarray, method: Advantage) -> np.ndarray:
    """A of a wrong and of a right answer to each prompt: [prompts, 2]."""
    batch = Batch(
        trajectory(f"t{i}/{r}", float(r), value=float(p), event=2 * i + r) for i, p in enumerate(rates) for r in (0, 1)
    )
    return np.array(one_each(method(batch))).reshape(-1, 2)


def squares(rates: np.ndarray, a: np.ndarray) -> float:
    """E[A²] over all answers: the gradient's variance if scores know nothing of rewards (the paper's premise)."""
    return float(np.mean(rates * a[:, 1] ** 2 + (1 - rates) * a[:, 0] ** 2))


@pytest.mark.parametrize("population", [(1.0, 5.0), (2.0, 6.0), (1.0, 1.0), (0.5, 0.5)])
def test_bnpo_has_the_least_variance_of_all_beta_densities_and_less_than_none(population: tuple[float, float]) -> None:
    """The paper's theorem, on a sample of prompts: f = 1 is REINFORCE with the mean as its baseline (here SPO's v)."""
    rates = pool(*population)
    ours = squares(rates, by_rate(rates, BNPOStream(ValueTracker(), floor=1e-9)))
    assert ours < 0.97 * squares(rates, by_rate(rates, SPO(ValueTracker(), scale="none")))
    alpha, beta = shape(rates.tolist())
    for da, db in ((0.3, 0.0), (-0.3, 0.0), (0.0, 0.3), (0.0, -0.3)):
        if min(alpha + da, beta + db) >= 1:
            f = np.array([density(p, alpha + da, beta + db) for p in rates])
            assert ours < squares(rates, np.stack([-rates / f, (1 - rates) / f], axis=1))


def heard(rates: np.ndarray, a: np.ndarray) -> float:
    """Signal over noise of ∇J where each prompt has a logit of its own, whose score is r − p: it does know of r."""
    p, true = rates, rates * (1 - rates)
    right, wrong = a[:, 1] * (1 - p), a[:, 0] * -p
    mean = p * right + (1 - p) * wrong
    variance = p * right**2 + (1 - p) * wrong**2 - mean**2
    return float((mean * true).mean() / np.sqrt(variance.mean()))


@pytest.mark.parametrize(
    ("population", "gain"), [((1.0, 5.0), 1.078), ((2.0, 6.0), 0.959), ((1.0, 1.0), 0.813), ((0.5, 0.5), 0.880)]
)
def test_bnpo_is_heard_better_only_where_nearly_all_prompts_are_hard(
    population: tuple[float, float], gain: float
) -> None:
    """Less variance is not more signal: what divides by f takes signal, too (docs/algorithms.md)."""
    rates = pool(*population)
    plain, ours = (by_rate(rates, m) for m in (SPO(ValueTracker(), scale="none"), BNPOStream(ValueTracker())))
    assert heard(rates, ours) / heard(rates, plain) == pytest.approx(gain, abs=0.004)
    edge = np.minimum(rates, 1 - rates) < 0.1
    assert (squares(rates[edge], ours[edge]) > squares(rates[edge], plain[edge])) == (population[0] == population[1])


def test_bnpo_of_groups_hears_the_one_prompt_that_is_unlike_the_others() -> None:
    """Nine prompts solved 1 time in 8, one solved 4 times: its share of Σ A² is larger than without f."""
    rights = [1] * 9 + [4]
    batch = Batch(
        trajectory(f"t{g}", float(i < n), group=g, event=8 * g + i) for g, n in enumerate(rights) for i in range(8)
    )
    plain, ours = (np.array(one_each(m(batch))).reshape(10, 8) ** 2 for m in (GRPO(divide=False), BNPO()))
    assert plain[9].sum() / plain.sum() == pytest.approx(2 / (2 + 9 * 0.875))
    assert ours[9].sum() / ours.sum() > 0.5


# ---- SEED ----

ANSWERS = 6


def taught(method: Advantage, steps: int = 120) -> tuple[float, float]:
    """After training with groups of 8 on two prompts: P(right) of one whose answer lies between two, and how far the
    logits went of another on which the policy knows nothing and right is what luck says."""
    rng = np.random.default_rng(4)
    known, guess = np.array([0.0, 0.0, -5, -5, -5, -5]), np.zeros(ANSWERS)
    for step in range(steps):
        batch, scores = [], []
        for group, logits, right in ((0, known, 1), (1, guess, int(rng.integers(ANSWERS)))):
            p = np.exp(logits) / np.exp(logits).sum()
            for answer in rng.choice(ANSWERS, 8, p=p):
                event = 16 * step + len(batch)
                batch.append(
                    trajectory(f"t{group}", float(answer == right), group=group, event=event, answer=str(answer))
                )
                scores.append(np.eye(ANSWERS)[answer] - p)
        for i, a in enumerate(one_each(method(Batch(batch)))):
            logits = known if i < 8 else guess
            logits += 0.02 * a * scores[i]
    return float(np.exp(known[1]) / np.exp(known).sum()), float((guess**2).sum())


def test_seed_learns_what_is_within_reach_and_follows_luck_less() -> None:
    plain, careful = taught(GRPO()), taught(SEED(GRPO(), alpha=0.9))
    assert plain[0] > careful[0] > 0.9
    assert careful[1] < 0.25 * plain[1]


# ---- D3S ----


def shares(p: float, tokens: float) -> tuple[float, float]:
    """Of all groups of 8, each by its probability: the share of the signal Σ A·(r − p) that half of the trajectories
    keeps, and the share of the action tokens that it is in. Each begins with a token that is nearly certain."""
    kept = whole = used = 0.0
    for right in range(9):
        chance = math.comb(8, right) * p**right * (1 - p) ** (8 - right)
        batch = Batch(
            trajectory(
                "t", float(i < right), response=[4, 5], group=0, event=i,
                logprobs=[math.log(SURE), math.log(p if i < right else 1 - p)],
            )
            for i in range(8)
        )  # fmt: skip
        scores = np.array([[0.0, (i < right) - p] for i in range(8)])
        before = np.stack(GRPO(divide=False)(batch).values)
        after = np.stack(D3S(GRPO(divide=False), trajectories=0.5, tokens=tokens)(batch).values)
        kept += chance * float((after * scores).sum())
        whole += chance * float((before * scores).sum())
        used += chance * float((after != 0).mean())
    return kept / whole, used


def test_d3s_half_of_the_answers_and_a_quarter_of_the_tokens_hold_most_of_the_signal() -> None:
    """A random half would hold a half, and a random quarter of the tokens a quarter."""
    for p, least in ((0.1, 0.89), (0.5, 0.55), (0.8, 0.77)):
        (signal, _), (same, used) = shares(p, 1.0), shares(p, 0.5)
        assert signal > least
        assert same > signal - 0.01
        assert used <= 0.25
