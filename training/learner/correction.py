"""What is taken out of an update, or weighed down, because it is not what the policy under training would have done.

Filters of whole trajectories, each counted: `void` (a turn with neither a complete call nor an
answer: SimpleTIR, arXiv 2509.02479), `overlong` (ended by the token limit: arXiv 2503.14476). Truncated importance
sampling weighs a token by min(π_learner/π_sampler, C) (fengyao.notion.site/off-policy-rl, 2025). Sequence rejection
gives weight 0 to a trajectory whose geometric-mean ratio leaves given bounds.
Denominators are fixed before any of this (`solostream.training.losses.aggregation`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from solostream.agent.trajectory import Trajectory
from solostream.training.config.learner import LearnerConfig

FILTERS = ("void", "overlong", "empty")


def kept(batch: Sequence[Trajectory], config: LearnerConfig) -> tuple[list[bool], dict[str, float]]:
    """Which trajectories are trained on, and how many each filter took (the first that applies)."""
    causes = [_cause(t, config) for t in batch]
    count = Counter(causes)
    return [c is None for c in causes], {f"dropped/{name}": float(count[name]) for name in FILTERS}


def _cause(trajectory: Trajectory, config: LearnerConfig) -> str | None:
    if config.drop_void and trajectory.void:
        return "void"
    if config.drop_overlong and trajectory.ending == "token_limit":
        return "overlong"
    return "empty" if trajectory.n_action_tokens == 0 else None


def importance_weights(
    old: Tensor, sampler: Tensor, segment: Tensor, sequences: int, config: LearnerConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weight of each token [n], from log-probabilities at the start of the update and the sampler's; sums as metrics.

    segment: int64 [n], the trajectory of each token, in 0..sequences−1.
    """
    log_ratio = (old - sampler).clamp(-20, 20)
    weight = log_ratio.exp().clamp(max=config.tis_cap) if config.tis_cap else torch.ones_like(log_ratio)
    metrics = {"tis/weight": weight.sum()}
    if config.tis_cap:
        metrics["tis/clipped"] = (log_ratio.exp() > config.tis_cap).sum()
    if config.reject_outside is not None:
        low, high = config.reject_outside
        totals = log_ratio.new_zeros(sequences).index_add(0, segment, log_ratio)
        counts = log_ratio.new_zeros(sequences).index_add(0, segment, torch.ones_like(log_ratio))
        ratio = (totals / counts.clamp(min=1)).exp()
        inside = ((ratio >= low) & (ratio <= high))[segment]
        weight = weight * inside
        metrics["tis/rejected"] = (~inside).sum()
    return weight, metrics
