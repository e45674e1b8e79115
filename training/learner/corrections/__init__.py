"""What is taken out of an update, or weighed down, because it is not what the policy under training would have done.

Whole trajectories are dropped by the filters here, each counted: `void` (a turn with neither a complete call nor an
answer: SimpleTIR, arXiv 2509.02479), `overlong` (ended by the token limit: arXiv 2503.14476). Tokens are weighed by the
files beside this one; their weights multiply. Denominators are fixed before any of it (`losses.aggregation`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from solostream.agent.trajectory import Trajectory
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.corrections.off_policy_negatives import off_policy_negatives
from solostream.training.learner.corrections.sampler_mask import sampler_mask
from solostream.training.learner.corrections.sequence_rejection import sequence_rejection
from solostream.training.learner.corrections.truncation import truncation
from solostream.training.losses.tokens import LOG_RATIO_LIMIT, Tokens

FILTERS = ("void", "overlong", "empty")


def kept(batch: Sequence[Trajectory], config: LearnerConfig) -> tuple[list[bool], dict[str, float]]:
    """Which trajectories are trained on, and how many each filter took (the first that applies)."""
    causes = [_cause(trajectory, config) for trajectory in batch]
    wanted = [cause is None for cause in causes]
    # Filters that took nothing are told too: a metric that is sometimes missing cannot be plotted.
    count = Counter(causes)
    dropped = {f"dropped/{name}": float(count[name]) for name in FILTERS}
    return wanted, dropped


def _cause(trajectory: Trajectory, config: LearnerConfig) -> str | None:
    """The filter that takes `trajectory` out; None: it is trained on."""
    if config.drop_void and trajectory.void:
        return "void"
    if config.drop_overlong and trajectory.ending == "token_limit":
        return "overlong"
    # Not a setting: where the policy said nothing there is nothing to learn.
    if trajectory.n_action_tokens == 0:
        return "empty"
    return None


def token_corrections(
    tokens: Tokens,
    sampler: Tensor,
    config: LearnerConfig,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The weight of each token's loss [n], None where nothing is set; metrics as sums over the tokens.

    sampler [n]: its own log-probabilities. `tokens.old` is the learner's policy at the start of the update where a
    correction by weights is set (`config.decoupled`).
    """
    weight: Tensor | None = None
    metrics: dict[str, Tensor] = {}

    # The tokens are the sampler's, the ratio of the loss is to the learner's policy: this is what lies between the two.
    if config.decoupled:
        log_ratio = (tokens.old - sampler).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)  # [n]
        ratio = log_ratio.exp()  # [n]
        weight = torch.ones_like(ratio)  # [n]

        # Token by token: nothing outside the bounds, at most the cap above.
        if config.mask_outside is not None:
            weight, metrics["mask/sampler"] = sampler_mask(ratio, config.mask_outside)
        if config.tis_cap:
            weight, metrics["tis/clipped"] = truncation(ratio, weight, config)

        # Whole trajectories, by their geometric mean.
        if config.reject_outside is not None:
            mean_ratio = tokens.sequence_mean(log_ratio).exp()  # [n]
            inside = sequence_rejection(mean_ratio, config.reject_outside)  # bool [n]
            weight = weight * inside
            metrics["tis/rejected"] = (~inside).sum()
        metrics["tis/weight"] = weight.sum()

    # By the policy of this very step, so it needs no π_old.
    if config.drop_negatives_beyond:
        stay = off_policy_negatives(tokens, sampler, config.drop_negatives_beyond)  # bool [n]
        weight = stay.to(sampler.dtype) if weight is None else weight * stay
        metrics["mask/negatives"] = (~stay).sum()
    return weight, metrics
