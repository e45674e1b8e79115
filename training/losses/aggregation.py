"""From losses of tokens to the loss of an optimizer step: one weight a trajectory, from global counts.

The counts are those of the whole optimizer batch before any filter. So the gradient is a plain sum over micro-batches,
however the batch is cut, and a dropped trajectory does not make the others weigh more.
"""

from __future__ import annotations

from collections.abc import Sequence

from solostream.training.config.learner import Aggregation


def token_weights(aggregation: Aggregation, lengths: Sequence[int], length_norm: int = 1) -> list[float]:
    """What each action token of trajectory i weighs; lengths: action tokens of every trajectory of the step."""
    n = max(len(lengths), 1)
    if aggregation == "token_mean":
        return [1 / max(sum(lengths), 1)] * len(lengths)
    if aggregation == "seq_mean_token_mean":
        return [1 / (n * max(length, 1)) for length in lengths]
    return [1 / (n * length_norm)] * len(lengths)
