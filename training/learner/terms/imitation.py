"""Demonstrations beside the batches of reinforcement learning: L = (1 − μ)·L_policy + μ·mean(−w(p)·log p).

The mean is over the demonstrated tokens, p is the policy's own probability of one; w has no gradient.

`sft`        w = 1                                                   CHORD-μ (arXiv 2508.11408, Eq. 3) with a decay
`chord`      w = p(1 − p): neither what it knows nor what is far     CHORD-φ (arXiv 2508.11408, Sec. 3.3)
`dft`        w = p: the reward-rectified gradient, never above 1     DFT (arXiv 2508.05629, Eq. 9)
`one_token`  w = N/K, N ~ Binomial(K, p)                             one-token rollout (arXiv 2509.26313)

A one-token rollout draws K tokens at each place and rewards those that are the demonstrated one: policy gradient with
them is −(N/K)·∇log p, and in expectation DFT. Departures: drawn tokens that miss get 0 (the paper's reward for them
and its temperature could not be confirmed). The equations' numbers are those of public summaries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from solostream.training.config.learner import ImitationConfig
from solostream.training.learner.logprobs import LogprobComputer
from solostream.training.learner.packing import PackedBatch


def weight_at(config: ImitationConfig, step: int) -> float:
    """μ at optimizer step `step`: `weight`, or from there along a cosine to 0 after `decay_steps`."""
    if not config.decay_steps:
        return config.weight
    return config.weight * 0.5 * (1 + math.cos(math.pi * min(step / config.decay_steps, 1.0)))


def losses(config: ImitationConfig, logprob: Tensor, rng: np.random.Generator) -> Tensor:
    """−w(p)·log p of each demonstrated token [n]; logprob [n] carries the gradient."""
    p = logprob.detach().exp().clamp(max=1.0)
    if config.loss == "sft":
        weight = torch.ones_like(p)
    elif config.loss == "dft":
        weight = p
    elif config.loss == "chord":
        weight = p * (1 - p)
    else:
        hits = rng.binomial(config.samples, p.double().cpu().numpy())
        weight = torch.from_numpy(hits / config.samples).to(p)
    return -weight * logprob


def backward(
    config: ImitationConfig, packs: Sequence[PackedBatch], scorer: LogprobComputer, mu: float, rng: np.random.Generator
) -> float:
    """Add the gradient of μ·(mean loss of all tokens of `packs`); returns that mean, in nats a token."""
    total = max(sum(len(packed.targets) for packed in packs), 1)
    said = torch.zeros((), device=scorer.device)
    for packed in packs:
        logprob, _ = scorer(packed)  # [n]
        part = losses(config, logprob, rng).sum() / total
        (mu * part).backward()
        said += part.detach()
    return float(said)
