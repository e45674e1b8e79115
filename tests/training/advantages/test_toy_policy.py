"""A policy of two actions, π(1) = σ(θ): autograd against closed forms, and unbiasedness by Monte Carlo.

J(θ) = p·r(1) + (1 − p)·r(0), so dJ/dθ = p(1 − p)(r(1) − r(0)); and ∇log π(a) = a − p.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_ledgers import one_each, trajectory
from torch import Tensor

from solostream import registry
from solostream.training.advantages.base import Advantage
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.rloo import RLOO
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.losses.kl import kl_penalty
from solostream.training.losses.tokens import Tokens

P = 0.3  # of the rewarded action
TRUE = P * (1 - P)


def bernoulli(theta: Tensor, actions: Tensor) -> Tensor:
    return torch.where(actions == 1, torch.nn.functional.logsigmoid(theta), torch.nn.functional.logsigmoid(-theta))


def gradient(loss: Callable, theta: float, old_theta: float, actions: list[int], advantages: list[float]) -> float:
    """d/dθ of the mean loss, by autograd; every action is a trajectory of one token."""
    parameter = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(actions)
    n = len(actions)
    tokens = Tokens(
        bernoulli(parameter, a),
        bernoulli(torch.tensor(old_theta, dtype=torch.float64), a),
        torch.tensor(advantages, dtype=torch.float64),
        torch.arange(n),
        n,
        torch.zeros(n, dtype=torch.bool),
    )
    loss(tokens).mean().backward()
    return float(parameter.grad)


ACTIONS, ADVANTAGES = [1, 0, 0, 1, 0], [0.7, -0.3, 0.2, -1.1, 0.5]


@pytest.mark.parametrize("name", registry.names("loss"))
def test_on_policy_every_loss_has_the_policy_gradient(name: str) -> None:
    p = 1 / (1 + math.exp(-0.4))
    expected = -np.mean([a * (x - p) for x, a in zip(ACTIONS, ADVANTAGES, strict=True)])
    got = gradient(lambda t: registry.make("loss", name)(t)[0], 0.4, 0.4, ACTIONS, ADVANTAGES)
    assert got == pytest.approx(expected, abs=1e-12)


def test_ppo_clip_off_policy() -> None:
    """θ: 0.5 -> 1.2. ρ(1) = 1.2344, below 1.28; ρ(0) = 0.6132, below 0.8: only A < 0 on action 0 is cut."""
    p, p_old = (1 / (1 + math.exp(-x)) for x in (1.2, 0.5))
    terms = []
    for x, a in zip(ACTIONS, ADVANTAGES, strict=True):
        ratio = p / p_old if x else (1 - p) / (1 - p_old)
        cut = (ratio > 1.28 and a > 0) or (ratio < 0.8 and a < 0)
        terms.append(0.0 if cut else -a * ratio * (x - p))
    got = gradient(lambda t: registry.make("loss", "ppo_clip")(t)[0], 1.2, 0.5, ACTIONS, ADVANTAGES)
    assert got == pytest.approx(np.mean(terms), abs=1e-12)
    assert terms.count(0.0) == 1


def test_dual_clip_cuts_the_far_negative() -> None:
    """ρ(1) = σ(3)/σ(-3) = 20.1 > 10 with A < 0: the loss stops at 10, the gradient is 0; without it -Aρ(1 - p)."""
    dual, plain = (registry.make("loss", "ppo_clip", {"dual_clip": c}) for c in (10.0, 0.0))
    assert gradient(lambda t: dual(t)[0], 3, -3, [1], [-1.0]) == 0
    p = 1 / (1 + math.exp(-3))
    got = gradient(lambda t: plain(t)[0], 3, -3, [1], [-1.0])
    assert got == pytest.approx(p / (1 - p) * (1 - p), rel=1e-9)


def test_cispo_keeps_the_gradient_that_ppo_cuts() -> None:
    p, p_old = (1 / (1 + math.exp(-x)) for x in (2.0, 0.0))
    assert p / p_old > 1.28
    assert gradient(lambda t: registry.make("loss", "ppo_clip")(t)[0], 2, 0, [1], [1.0]) == 0
    for a in (1.0, -1.0):
        counts: dict = {}
        got = gradient(lambda t, c=counts: _counted("cispo", t, c), 2, 0, [1], [a])
        assert got == pytest.approx(-1.28 * a * (1 - p), abs=1e-12)
        assert (int(counts["clip/high"]), int(counts["clip/low"])) == (1, 0)  # whatever the sign of A


def _counted(name: str, tokens: Tokens, counts: dict) -> Tensor:
    loss, found = registry.make("loss", name)(tokens)
    counts.update(found)
    return loss


def test_gspo_ratio_is_the_geometric_mean() -> None:
    """Two tokens with ratios 2 and 0.5: s = 1, nothing is clipped though each token is far out."""
    logprob = torch.tensor([math.log(2.0), math.log(0.5)], requires_grad=True)
    tokens = Tokens(logprob, torch.zeros(2), torch.ones(2), torch.zeros(2, dtype=torch.int64), 1, torch.zeros(2) > 0)
    loss, metrics = registry.make("loss", "gspo")(tokens)
    loss.mean().backward()
    assert loss.tolist() == pytest.approx([-1, -1])
    assert logprob.grad.tolist() == pytest.approx([-0.5, -0.5])
    assert metrics["clip/high"] == metrics["clip/low"] == 0


def test_covariance_losses_change_only_what_was_picked() -> None:
    def grads(name: str, old: float) -> list[float]:
        logprob = torch.tensor([-1.0, -2.0], requires_grad=True)
        picked = torch.tensor([True, False])
        tokens = Tokens(logprob, logprob.detach() - old, torch.ones(2), torch.arange(2), 2, picked)
        registry.make("loss", name)(tokens)[0].sum().backward()
        return logprob.grad.tolist()

    assert grads("clip_cov", 0.0) == [0.0, -1.0]
    ratio = math.exp(0.1)
    assert grads("kl_cov", 0.1) == pytest.approx([1 - ratio, -ratio])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_penalties_have_the_gradient_of_the_kl(estimator) -> None:
    """Expectation over both actions, exactly: dKL(π‖ref)/dθ = p(1 − p)(θ − θ_ref), also off-policy."""
    for theta, old, reference in ((0.8, 0.8, -0.3), (0.8, 0.2, -0.3)):
        parameter = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        actions = torch.tensor([1, 0])
        lp, lo, lr = (
            bernoulli(x, actions)
            for x in (
                parameter,
                torch.tensor(old, dtype=torch.float64),
                torch.tensor(reference, dtype=torch.float64),
            )
        )
        (lo.exp() * kl_penalty(estimator, lp, lr, (lp - lo).exp())).sum().backward()
        p = 1 / (1 + math.exp(-theta))
        assert float(parameter.grad) == pytest.approx(p * (1 - p) * (theta - reference), abs=1e-12)


def monte_carlo(estimate: Callable[[np.ndarray], tuple[Advantage, list, float]], rounds: int, n: int) -> tuple:
    """Mean of Σ A_i (a_i − p)/n over `rounds` batches of n, and four standard errors (p < 1e-4)."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(rounds):
        actions = (rng.random(n) < P).astype(float)
        estimator, batch, scale = estimate(actions)
        got = estimator(batch)
        values = np.array(one_each(got)) * (math.sqrt(got.metrics["advantage/variance"]) if scale else 1.0)
        found.append(np.mean(values * (actions - P)))
    return np.mean(found), 4 * np.std(found) / math.sqrt(rounds)


def streams(actions: np.ndarray, group: int | None = None, value: float = 0.6) -> list:
    return [trajectory(f"t{i}", a, response=[4], value=value, group=group, event=i) for i, a in enumerate(actions)]


def test_spo_is_unbiased_whatever_the_baseline() -> None:
    """Standardisation scales by 1/σ and centring by (1 − 1/N) exactly; both are undone here."""
    n = 8
    for value in (0.05, 0.6):
        got, bound = monte_carlo(
            lambda a, v=value: (SPO(ValueTracker(), "trajectory"), streams(a, value=v), 1.0), 1500, n
        )
        assert abs(got * n / (n - 1) - TRUE) < bound * n / (n - 1)
        assert bound < 0.15 * TRUE


def test_a_baseline_that_saw_the_outcome_is_biased() -> None:
    """Control: v after the observation shrinks A by 1 − η, and the gradient with it."""

    def peeking(actions: np.ndarray) -> tuple:
        batch = []
        for i, a in enumerate(actions):
            tracker = ValueTracker()
            tracker.observe("x", a)
            batch.append(trajectory(f"t{i}", a, response=[4], value=tracker.value("x"), event=i))
        return SPO(ValueTracker(), "trajectory"), batch, 1.0

    got, bound = monte_carlo(peeking, 600, 8)
    eta = 1 / (0.96 + 1)
    assert abs(got * 8 / 7 - (1 - eta) * TRUE) < bound * 8 / 7
    assert abs(got * 8 / 7 - TRUE) > bound * 8 / 7


def test_rloo_is_unbiased_and_the_group_mean_is_not() -> None:
    g = 4
    got, bound = monte_carlo(lambda a: (RLOO(), streams(a, 0), 0.0), 2500, g)
    assert abs(got - TRUE) < bound
    got, bound = monte_carlo(lambda a: (GRPO(divide=False), streams(a, 0), 0.0), 2500, g)
    assert abs(got - (1 - 1 / g) * TRUE) < bound  # Dr. GRPO: r_i is in its own baseline
    assert abs(got - TRUE) > bound


def test_grpo_weighs_groups_by_their_deviation() -> None:
    """Its expectation is exact by enumeration: Σ_k C(G,k) p^k (1−p)^(G−k) · √(k(G−k))/G — not the gradient of J."""
    g = 4
    exact = sum(math.comb(g, k) * P**k * (1 - P) ** (g - k) * math.sqrt(k * (g - k)) / g for k in range(g + 1))
    got, bound = monte_carlo(lambda a: (GRPO(epsilon=1e-12, deviation="population"), streams(a, 0), 0.0), 2500, g)
    assert abs(got - exact) < bound
    assert abs(got - TRUE) > bound


def test_dppo_masks_by_probability_and_weighs_by_a_capped_ratio() -> None:
    """π(1): .5 -> .8 moved by .3 > .2: A > 0 on 1 and A ≤ 0 on 0 are out; the others weigh their ratio times ∇log π."""
    new, old = math.log(0.8 / 0.2), 0.0
    p, actions, advantages = 0.8, [1, 1, 0, 0], [1.0, -0.5, -1.0, 2.0]
    expected = np.mean([0.0, 0.5 * (p / 0.5) * (1 - p), 0.0, -2.0 * (0.2 / 0.5) * (0 - p)])
    got = gradient(lambda t: registry.make("loss", "dppo")(t)[0], new, old, actions, advantages)
    assert got == pytest.approx(expected, abs=1e-12)
    capped = gradient(lambda t: registry.make("loss", "dppo", {"ratio_cap": 1.1})(t)[0], new, old, [1], [-0.5])
    assert capped == pytest.approx(0.5 * 1.1 * (1 - p), abs=1e-12)


def test_kl_cov_holds_a_token_by_its_log_ratio() -> None:
    """d|log ρ|/dθ of the picked token is ±(1 − p) whatever the distance; nothing at ρ = 1."""
    parameter = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    logprob = bernoulli(parameter, torch.tensor([1, 1]))
    old, picked = bernoulli(torch.tensor(0.2, dtype=torch.float64), torch.tensor([1, 1])), torch.tensor([True, False])
    tokens = Tokens(logprob, old, torch.zeros(2, dtype=torch.float64), torch.arange(2), 2, picked)
    registry.make("loss", "kl_cov", {"kl": 3.0})(tokens)[0].sum().backward()
    assert float(parameter.grad) == pytest.approx(3 * (1 - 1 / (1 + math.exp(-0.7))), abs=1e-12)
