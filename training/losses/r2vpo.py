"""R²VPO (arXiv 2601.03320): no clip; what holds the policy is a penalty on the variance of the ratio.

    L = −ρA + λ/2·(ρ − 1)²

E[ρ] = 1 under π_old, so E[(ρ − 1)²] is the ratio's variance, twice the KL for small steps. Every token keeps a
gradient, and one that went far is drawn back, where a clip would only let go of it.
Departure: the paper finds λ by primal-dual steps towards a variance that is allowed; here it is fixed. Its λ could not
be confirmed, so 1 is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solostream.training.losses.tokens import Rate, Tokens


@dataclass(frozen=True, slots=True)
class R2VPO:
    """penalty: λ."""

    penalty: Rate = 1.0

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """−ρA and the penalty of each token [n]; the sum of `clip/variance`, (ρ − 1)²."""
        ratio = tokens.log_ratio.exp()  # [n]
        square = (ratio - 1).square()
        return self.penalty / 2 * square - ratio * tokens.advantage, {"clip/variance": square.detach().sum()}
