"""Metrics of one update, summed over micro-batches and divided once by the global number of tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from solostream.training.losses.kl import estimates


class UpdateMetrics:
    """`entropy`, `kl/k1..k3` (of KL(π_old ‖ π)), `clip/...` are means over the action tokens of all passes.

    `mismatch/...` compare the learner with the sampler on the first optimizer step's tokens, before any step was taken:
    `kl` is k3 of KL(sampler ‖ learner), `mean` and `max` are of |Δ log p|, `on_policy_max` the same over tokens of the
    current policy version; `ess` is the effective share of the tokens under the weights π_learner/π_sampler, in (0, 1].
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._tokens = 0
        self._first: list[tuple[Tensor, np.ndarray]] = []  # Δ log p and the versions of the first step's tokens

    def tokens(self, sums: Mapping[str, Tensor], logprob: Tensor, old: Tensor, entropy: Tensor) -> None:
        """Add one micro-batch: n tokens, and `sums` over them."""
        d = (old - logprob.detach()).clamp(-20, 20)
        every = {**sums, **{f"kl/{name}": x.sum() for name, x in estimates(d).items()}, "entropy": entropy.sum()}
        for name, value in every.items():
            self._sums[name] = self._sums[name] + value.detach()
        self._tokens += len(logprob)

    def mismatch(self, difference: Tensor, versions: np.ndarray) -> None:
        """difference: learner − sampler log-probabilities of n tokens; versions: which policy sampled each."""
        self._first.append((difference.detach(), versions))

    def result(self, version: int | None) -> dict[str, float]:
        """The means, by name. version: the learner's policy, for `mismatch/on_policy_max`; None: without it."""
        out = {name: float(value) / max(self._tokens, 1) for name, value in self._sums.items()}
        if self._first:
            d = torch.cat([x for x, _ in self._first]).double().clamp(-20, 20).cpu().numpy()
            weight = np.exp(d)
            out["mismatch/kl"] = float((weight - 1 - d).mean())
            out["mismatch/mean"] = float(np.abs(d).mean())
            out["mismatch/max"] = float(np.abs(d).max())
            out["mismatch/ess"] = float(weight.sum() ** 2 / (len(d) * (weight**2).sum()))
            current = np.concatenate([v for _, v in self._first]) == version
            if current.any():
                out["mismatch/on_policy_max"] = float(np.abs(d[current]).max())
        return out
