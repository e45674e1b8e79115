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
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from solostream.training.cluster.rank_group import RankGroup
from solostream.training.config.learner import ImitationConfig
from solostream.training.learner.logprobs import LogprobComputer
from solostream.training.learner.packing import MaskedTokens, PackedBatch


def weight_at(config: ImitationConfig, step: int) -> float:
    """μ at optimizer step `step`: `weight`, or from there along a cosine to 0 after `decay_steps`."""
    # Without a decay demonstrations weigh as much in the last step as in the first.
    if not config.decay_steps:
        return config.weight
    done = min(step / config.decay_steps, 1.0)
    return config.weight * 0.5 * (1 + math.cos(math.pi * done))


def losses(config: ImitationConfig, logprob: Tensor, rng: np.random.Generator) -> Tensor:
    """−w(p)·log p of each demonstrated token [n]; logprob [n] carries the gradient."""
    # Detached: the weight says how much a token matters, and is not to be learnt itself.
    p = logprob.detach().exp().clamp(max=1.0)  # [n]
    if config.loss == "sft":
        weight = torch.ones_like(p)
    elif config.loss == "dft":
        weight = p
    elif config.loss == "chord":
        weight = p * (1 - p)
    else:
        # How many of K drawn tokens would have been the demonstrated one, without drawing tokens.
        hits = rng.binomial(config.samples, p.double().cpu().numpy())  # int [n]
        share = hits / config.samples
        weight = torch.from_numpy(share).to(p)
    return -weight * logprob


def beside(config: ImitationConfig | None, sequences: Sequence[MaskedTokens], step: int) -> Imitation | None:
    """What the update at optimizer step `step` imitates; None where nothing is."""
    # A run may have asked for imitation and have no demonstrations left over for this step.
    if config is None or not sequences:
        return None
    return Imitation(config, sequences, weight_at(config, step))


@dataclass(slots=True)
class Imitation:
    """share: μ. said: the loss of each optimizer step, in nats a token, this rank's part of it."""

    config: ImitationConfig
    sequences: Sequence[MaskedTokens]
    share: float
    said: list[float] = field(default_factory=list)

    def backward(self, packs: Sequence[PackedBatch], scorer: LogprobComputer, rng: np.random.Generator) -> None:
        """Add the gradient of μ·(mean loss over the tokens of all sequences); packs: those that are this rank's."""
        # One denominator for all packs and all ranks: their gradients only add up.
        masked = sum(int(mask.sum()) for _, mask in self.sequences)
        total = max(masked, 1)
        said = torch.zeros((), device=scorer.device)
        for packed in packs:
            logprob, _ = scorer(packed)  # [n]
            # A rank that has no more packs takes part, and adds nothing.
            part = losses(self.config, logprob, rng).sum() / total if packed.members else 0 * logprob.sum()
            (self.share * part).backward()
            # On the device: reading it here would wait for the micro-batch.
            said += part.detach()
        self.said.append(float(said))

    def metrics(self, group: RankGroup) -> dict[str, float]:
        """The mean over the steps."""
        if not self.said:
            return {}
        # Each rank has said its part of every step's loss.
        everything = math.fsum(sum(of_rank) for of_rank in group.gather(self.said))
        n_steps = len(self.said)
        return {"imitation/loss": everything / n_steps, "imitation/weight": self.share}
