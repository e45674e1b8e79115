"""SAPO (arXiv 2511.20347): a soft gate in place of the clip.

    L = −(4/τ)·σ(τ(ρ − 1))·A,   τ = τ_pos where A > 0, else τ_neg

At ρ = 1 its gradient is the policy gradient; away from it the gradient fades as 4σ(1 − σ), and sooner for A ≤ 0, whose
tokens raise many improbable ones at once. τ = 1 and 1.05 are the authors'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from solostream.training.losses.tokens import Tokens

Temperature = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class SAPO:
    """tau_positive, tau_negative: how fast the gate closes, by the sign of the advantage."""

    tau_positive: Temperature = 1.0
    tau_negative: Temperature = 1.05

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """The gated loss of each token [n]; the sum of `clip/gate`, the share of the gradient that is left."""
        ratio, a = tokens.log_ratio.exp(), tokens.advantage  # [n], [n]
        tau = torch.full_like(ratio, self.tau_negative).masked_fill(a > 0, self.tau_positive)
        gate = (tau * (ratio - 1)).sigmoid()
        return -4 / tau * gate * a, {"clip/gate": (4 * gate * (1 - gate)).detach().sum()}
