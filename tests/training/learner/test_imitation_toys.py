"""Imitation on the smallest problem where each weight does what its paper says: one place, few tokens, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from solostream.training.config.learner import ImitationConfig
from solostream.training.learner.terms.imitation import losses

# What is demonstrated at one place: mostly one token, and a tenth of the time a slip that nobody would make.
SHOWN = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
BEFORE = torch.tensor([0.5, 0.499, 0.001], dtype=torch.float64)


def step(kind: Any, policy: Tensor, shown: Tensor, rng: np.random.Generator, lr: float = 1.0, **options: Any) -> Tensor:
    """π after one step on the expected loss of what is shown."""
    logits = policy.log().requires_grad_()
    loss = losses(ImitationConfig(loss=kind, **options), logits.log_softmax(0), rng)
    (grad,) = torch.autograd.grad((shown * loss).sum(), logits)
    return (logits.detach() - lr * grad).softmax(0)


def taught(kind: Any, **options: Any) -> list[float]:
    rng, policy = np.random.default_rng(2), BEFORE
    for _ in range(120):
        policy = step(kind, policy, SHOWN, rng, lr=2.0, **options)
    return policy.tolist()


def test_sft_copies_the_slip_and_what_weighs_by_its_own_probability_does_not() -> None:
    """SFT ends at what is shown; DFT and one-token rollouts at its mode; CHORD-φ keeps the mixture without the slip."""
    assert taught("sft") == pytest.approx(SHOWN.tolist(), abs=1e-3)
    for kind in ("dft", "one_token"):
        mode, second, slip = taught(kind)
        assert mode > 0.95
        assert slip < second < 0.05
        assert slip < BEFORE[2]
    both = taught("chord")
    assert both[0] / both[1] == pytest.approx(2, rel=0.05)
    assert both[2] < 0.002


def moved(kind: Any, p: float) -> float:
    """How far the logit of the only token that is shown goes in one step."""
    before = torch.tensor([p, 1 - p], dtype=torch.float64)
    after = step(kind, before, torch.tensor([1.0, 0.0], dtype=torch.float64), np.random.default_rng(0))
    return float(after.logit()[0] - before.logit()[0])


def test_the_gradient_of_what_is_improbable_is_bounded_by_its_probability() -> None:
    """SFT moves most what the policy would never say; CHORD-φ what it is unsure of, not what it knows either."""
    for p in (1e-3, 1e-6):
        assert moved("sft", p) > 1.99
        assert 0 < moved("dft", p) <= 2 * p * (1 + 1e-6)
        assert 0 < moved("chord", p) <= 2 * p * (1 + 1e-6)
    assert moved("one_token", 1e-6) == 0  # eight draws of it: never
    assert moved("dft", 0.5) > 20 * moved("dft", 0.99)
    assert moved("chord", 0.5) > 1000 * moved("chord", 0.99)
