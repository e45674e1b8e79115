"""Losses on one stale batch of a softmax policy: many steps on it, in expectation over its actions, so exactly.

One action is right. A = r − mean, so that its expectation under π_old is 0.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from solostream import registry
from solostream.training.losses.tokens import Tokens

RARE = torch.tensor([0.02, 0.3, 0.28, 0.4], dtype=torch.float64)  # the first is right
FIFTH = torch.tensor([0.2, 0.8], dtype=torch.float64)
BEYOND = torch.tensor([0.4, 0.6], dtype=torch.float64)  # ratios 2 and 0.75: both outside of PPO's bounds


def advantages(old: Tensor) -> Tensor:
    rewards = torch.zeros_like(old)
    rewards[0] = 1
    return rewards - old[0]


def trained(
    name: str, old: Tensor, steps: int, start: Tensor | None = None, lr: float = 5.0, **options: float
) -> Tensor:
    """π after `steps` of gradient descent on E_old[L] from `start`, or from π_old itself: [actions]."""
    loss, a, n = registry.make("loss", name, options), advantages(old), len(old)
    logits = (old if start is None else start).log().clone().requires_grad_()
    for _ in range(steps):
        tokens = Tokens(logits.log_softmax(0), old.log(), a, torch.arange(n), n, torch.zeros(n, dtype=torch.bool))
        (grad,) = torch.autograd.grad((old * loss(tokens)[0]).sum(), logits)
        logits = (logits - lr * grad).detach().requires_grad_()
    return logits.softmax(0).detach()


def variance_of_ratio(policy: Tensor, old: Tensor) -> float:
    return float((old * (policy / old - 1).square()).sum())


def test_dcpo_lets_a_rare_right_answer_grow_where_ppo_holds_it_and_a_frequent_one_hardly_further() -> None:
    """Their own gradients end at a ratio of 3.7 (PPO 1.28) for q = .02, at 1.26 for q = .6; others push, too."""
    often = torch.tensor([0.6, 0.25, 0.15], dtype=torch.float64)
    ours, ppo = (float(trained(name, RARE, 30)[0] / RARE[0]) for name in ("dcpo", "ppo_clip"))
    assert ours > 2.5 * ppo
    ours, ppo = (float(trained(name, often, 30, lr=1.0)[0] / often[0]) for name in ("dcpo", "ppo_clip"))
    assert ppo < ours < 1.1 * ppo


def test_r2vpo_stops_where_the_ratio_is_one_plus_a_and_without_the_penalty_nothing_stops() -> None:
    """The fixed point of λ(ρ − 1) = A, whose expectation is 1: Var ρ = Var A/λ²."""
    for penalty in (1.0, 2.5):
        policy = trained("r2vpo", RARE, 150, lr=4 / penalty, penalty=penalty)
        assert (policy / RARE).tolist() == pytest.approx((1 + advantages(RARE) / penalty).tolist(), abs=1e-4)
        assert variance_of_ratio(policy, RARE) == pytest.approx(0.02 * 0.98 / penalty**2, abs=1e-5)
    assert variance_of_ratio(trained("r2vpo", RARE, 80, penalty=0.0), RARE) > 40


def test_r2vpo_draws_back_what_a_clip_only_lets_go_of() -> None:
    far = torch.tensor([0.6, 0.12, 0.12, 0.16], dtype=torch.float64)
    assert trained("ppo_clip", RARE, 40, far, dual_clip=0.0).tolist() == pytest.approx(far.tolist())
    assert float(trained("r2vpo", RARE, 40, far, 0.1)[0] / RARE[0]) < 4  # from 30, on the way to 1.98


@pytest.mark.parametrize("name", ["sapo", "aepo"])
def test_beyond_the_clip_there_is_a_gradient_and_it_is_smaller_than_without_any_bound(name: str) -> None:
    """PPO stands still; a soft gate, or a bound that keeps its gradient, go on."""
    still, on, free = (
        float(trained(loss, FIFTH, 10, BEYOND, 0.4, **options)[0])
        for loss, options in (("ppo_clip", {}), (name, {}), ("r2vpo", {"penalty": 0.0}))
    )
    assert still == pytest.approx(0.4)
    assert 0.5 < on < free - 0.01


def test_of_all_bounds_only_the_penalty_holds_for_many_steps_on_one_batch() -> None:
    """What docs/algorithms.md says of the right action's ratio after 100 steps."""
    found = {
        name: float(trained(name, RARE, 100)[0] / RARE[0])
        for name in ("ppo_clip", "dcpo", "sapo", "aepo", "cispo", "r2vpo")
    }
    told = {"ppo_clip": 1.94, "dcpo": 18.9, "sapo": 27.6, "aepo": 45.8, "cispo": 47.5, "r2vpo": 1.98}
    assert found == pytest.approx(told, rel=0.02)
    assert float(trained("ppo_clip", RARE, 250)[0] / RARE[0]) > 3  # it goes on; the penalty's stays
