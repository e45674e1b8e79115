"""What a loss sees: the action tokens of some whole trajectories, flat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from solostream.errors import UserError

Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
LOG_RATIO_LIMIT = 20.0  # e^20: beyond it a ratio says only "far", and e^x would overflow


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Tensors of n action tokens.

    logprob: under the policy that learns, carries the gradient. old: under π_old, a constant. advantage: the
    token's. segment: int64, the trajectory's place in 0..sequences−1. picked: bool, what the loss `select`ed.
    """

    logprob: Tensor
    old: Tensor
    advantage: Tensor
    segment: Tensor
    sequences: int
    picked: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """log π/π_old [n], limited to ±20."""
        return (self.logprob - self.old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    def sequence_mean(self, x: Tensor) -> Tensor:
        """The mean of x [n] over each trajectory's tokens, back on every token [n]."""
        totals = x.new_zeros(self.sequences).index_add(0, self.segment, x)
        counts = x.new_zeros(self.sequences).index_add(0, self.segment, x.new_ones(len(x)))
        return (totals / counts.clamp(min=1))[self.segment]


def clip_counts(ratio: Tensor, advantage: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """Tokens whose gradient a two-sided clip takes away, by side."""
    return {
        "clip/low": ((ratio < 1 - low) & (advantage < 0)).sum(),
        "clip/high": ((ratio > 1 + high) & (advantage > 0)).sum(),
    }


def check_dual_clip(dual_clip: float) -> None:
    """Raises UserError for a bound that would cut tokens of the policy itself; 0 is none."""
    if dual_clip and dual_clip <= 1:
        raise UserError(f"dual_clip = {dual_clip:g} would cut on-policy tokens: above 1, or 0 for none")


def dual_clipped(loss: Tensor, advantage: Tensor, dual_clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each token [n], at most dual_clip·|A| where A < 0 (0: as it is), and how many that cut."""
    if not dual_clip:
        return loss, {}
    bound = -dual_clip * advantage
    cut = ((advantage < 0) & (loss.detach() > bound)).sum()
    return torch.where(advantage < 0, torch.minimum(loss, bound), loss), {"clip/dual": cut}
