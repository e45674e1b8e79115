"""Negative trajectories that the policy would hardly sample any more are left alone (DeepSeek-V3.2, arXiv 2512.02556).

    M_t = 0 where A_t < 0 and mean_t log(π_sampler/π) > δ over the trajectory, else 1

π is the policy of this very step. Pushing down what has become improbable already is where an off-policy gradient
does damage; positive trajectories are never masked.
"""

from __future__ import annotations

from torch import Tensor

from solostream.training.losses.tokens import Tokens


def off_policy_negatives(tokens: Tokens, sampler: Tensor, delta: float) -> Tensor:
    """bool [n]: whether a token stays. sampler [n]: its log-probabilities. delta: in nats a token."""
    # How much less probable its trajectory has become, in nats a token; the same number on each of its tokens.
    less_likely = sampler - tokens.logprob.detach()  # [n]
    distance = tokens.sequence_mean(less_likely)  # [n]
    pulls_up = tokens.advantage >= 0
    still_likely = distance <= delta
    return pulls_up | still_likely
