"""How unsure the policy is at the head of a turn: Ĥ = mean of −log p over its first k sampled tokens, over log V.

−log p of a sampled token is an unbiased estimate of the entropy that it was drawn from, and costs nothing. Divided by
log V, the entropy of a uniform choice among V tokens, it lies on [0, 1] in the mean, as in the authors' code of ARPO
(arXiv 2507.19849), which sums over the engine's ten likeliest tokens instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def first_entropy(logprobs: Sequence[float], window: int, vocabulary: int) -> float:
    """Of the first `window` tokens of a turn; 0 for an empty one, and for a sampler that tells no probabilities."""
    known = [-x for x in logprobs[:window] if not math.isnan(x)]
    return math.fsum(known) / len(known) / math.log(vocabulary) if known else 0.0
