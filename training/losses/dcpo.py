"""DCPO (arXiv 2509.02333, Sec. 3.1): PPO-clip whose bounds on the ratio follow the old probability q of the token.

    L = −min(ρA, clip(ρ, low(q), high(q))·A)
    low = ½ + ½·√max(1 − 4·ε_low/q, 0),   high = ½ + ½·√(1 + 4·ε_high/q)        from |(ρ − 1)·ρ·q| ≤ ε

So a rare token may grow much further than a frequent one: fivefold at q = .01, by a fifth at q = .9. For A < 0 at most
−c·A (their dual clip, c = 10). Their mean over the tokens of each response alone is `aggregation =
"seq_mean_token_mean"`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solostream.training.losses.tokens import Rate, Tokens, check_dual_clip, dual_clipped


@dataclass(frozen=True, slots=True)
class DCPO:
    """clip_low, clip_high: ε. dual_clip: bound on ratio x |A| for A < 0; 0: none. Raises UserError for one up to 1."""

    clip_low: Rate = 0.16
    clip_high: Rate = 0.2
    dual_clip: Rate = 10.0

    def __post_init__(self) -> None:
        check_dual_clip(self.dual_clip)

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped loss of each token [n]; sums of `clip/*`."""
        ratio, a = tokens.log_ratio.exp(), tokens.advantage  # [n], [n]
        low, high = self.bounds(tokens.old.exp())
        loss = -torch.minimum(ratio * a, torch.clamp(ratio, low, high) * a)
        metrics = {
            "clip/low": ((ratio < low) & (a < 0)).sum(),
            "clip/high": ((ratio > high) & (a > 0)).sum(),
        }
        loss, cut = dual_clipped(loss, a, self.dual_clip)
        return loss, {**metrics, **cut}

    def bounds(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Old probabilities [n] -> (least, largest ratio) [n]."""
        q = q.clamp(min=torch.finfo(q.dtype).tiny * 1e6)  # below it the bound is infinite
        low = 0.5 + 0.5 * (1 - 4 * self.clip_low / q).clamp(min=0).sqrt()
        return low, 0.5 + 0.5 * (1 + 4 * self.clip_high / q).sqrt()
