"""What an update minimises, of one micro-batch: the loss of each of its n action tokens.

    loss = correction · policy loss − entropy bonus · H + KL coefficient · KL

Nothing here is averaged or weighed by trajectory: that is the learner's, which sees the whole optimizer batch.
"""

from __future__ import annotations

from torch import Tensor

from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.corrections import token_corrections
from solostream.training.learner.terms.entropy_band import EntropyBand
from solostream.training.losses import Loss
from solostream.training.losses.kl import kl_penalty
from solostream.training.losses.tokens import Tokens


def objective(
    tokens: Tokens,
    sampler: Tensor,
    entropy: Tensor,
    reference: Tensor | None,
    *,
    loss: Loss,
    config: LearnerConfig,
    band: EntropyBand | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(losses [n], carrying the gradient; metrics by name, as sums over the tokens).

    sampler, reference: float32 [n], log-probabilities under the policy that sampled, and under the KL penalty's
    reference where there is one. entropy: float32 [n], in nats. band: where the entropy is held, if anywhere.
    """
    # The policy's own loss, with the ratio to π_old.
    losses, sums = loss(tokens)

    # The tokens are the sampler's and not π_old's. That weighs the policy's loss alone, before other terms are added.
    correction, of_correction = token_corrections(tokens, sampler, config)
    if correction is not None:
        losses = losses * correction
    sums = {**sums, **of_correction}

    # A bonus for a policy that stays undecided, and a charge where it is more or less so than it has been.
    if config.entropy_coef:
        losses = losses - config.entropy_coef * entropy
    if band is not None:
        outside = band.outside(entropy)
        losses = losses + config.entropy_coef * config.entropy_band_weight * outside
        sums = {**sums, "entropy/outside": outside.detach().sum()}

    # A pull towards the weights that the run began with.
    if reference is not None:
        ratio = tokens.log_ratio.exp()
        penalty = kl_penalty(config.kl_estimator, tokens.logprob, reference, ratio)
        losses = losses + config.kl_coef * penalty
        sums = {**sums, "kl/reference": penalty.sum()}
    return losses, sums
