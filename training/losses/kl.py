"""Estimators of KL(π ‖ π_ref) from tokens that π_old sampled (joschu.net/blog/kl-approx), made into losses.

    k1 = d        k2 = d²/2        k3 = e^−d − 1 + d,        d = log π − log π_ref

As a plain mean, k1's gradient is zero in expectation and k3's is that of another divergence. Weighted by the ratio
ρ = π/π_old (k2: by its value only) the gradient of each is ρ·d·∇log π in expectation: that of the KL itself.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def estimates(d: Tensor) -> dict[Estimator, Tensor]:
    """d = log p − log q on tokens of p -> the three estimates of KL(p ‖ q) of each token."""
    return {"k1": d, "k2": d.square() / 2, "k3": (-d).exp() - 1 + d}


def kl_penalty(estimator: Estimator, logprob: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
    """Loss of each token [n]; `ratio` = π/π_old carries a gradient."""
    weight = ratio.detach() if estimator == "k2" else ratio
    return weight * estimates((logprob - reference).clamp(-20, 20))[estimator]
