"""One update while it is under way: what it works on, what each of its steps covers, and its metrics.

Metrics are summed over micro-batches and divided once by the global number of tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from solostream.training.batch import Batch
from solostream.training.cluster.rank_group import ALONE, RankGroup
from solostream.training.learner.guards import NotFinite
from solostream.training.learner.packing import Piece
from solostream.training.learner.terms.imitation import Imitation
from solostream.training.losses import Loss, SelectsTokens
from solostream.training.losses.clip_cov import covariance
from solostream.training.losses.kl import estimates


class UpdateMetrics:
    """`entropy`, `kl/k1..k3` (of KL(π_old ‖ π)), `clip/...` are means over the action tokens of all passes, `loss` over
    the optimizer steps: what each minimised, under its aggregation.

    `mismatch/...` compare the learner with the sampler on the first optimizer step's tokens, before any step was taken:
    `kl` is k3 of KL(sampler ‖ learner), `mean` and `max` are of |Δ log p|, `on_policy_max` the same over tokens of the
    current policy version; `ess` is the effective share of the tokens under the weights π_learner/π_sampler, in (0, 1].
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._tokens = 0
        self._first: list[tuple[Tensor, np.ndarray]] = []  # Δ log p and the versions of the first step's tokens

    def tokens(self, loss: Tensor, sums: Mapping[str, Tensor], logprob: Tensor, old: Tensor, entropy: Tensor) -> None:
        """Add one micro-batch: its share of a step's loss, n tokens, and `sums` over them."""
        # How far the policy of now is from π_old. e^20 is the largest ratio that is told: one token far away would hide
        # all others in a mean.
        log_ratio = (old - logprob.detach()).clamp(-20, 20)  # float32 [n]
        divergences = {}
        for estimator, of_token in estimates(log_ratio).items():
            divergences[f"kl/{estimator}"] = of_token.sum()

        every = {**sums, **divergences, "entropy": entropy.sum(), "loss": loss}
        # The sums stay on the device: reading one would wait for the micro-batch that is being computed.
        for name, value in every.items():
            self._sums[name] = self._sums[name] + value.detach()
        self._tokens += len(logprob)

    def mismatch(self, difference: Tensor, versions: np.ndarray) -> None:
        """difference: learner − sampler log-probabilities of n tokens; versions: which policy sampled each."""
        self._first.append((difference.detach(), versions))

    def result(self, version: int | None, steps: int, group: RankGroup = ALONE) -> dict[str, float]:
        """All of them, by name, over what all ranks of `group` added in so many optimizer steps.

        version: of the policy that was trained.
        """
        # Sums of all ranks over the tokens of all ranks; the tokens go along under a name of their own.
        own = {name: float(value) for name, value in self._sums.items()}
        totals = group.sums({**own, "": self._tokens})
        n_tokens = totals.pop("")
        divisor = max(n_tokens, 1)
        found = {name: value / (max(steps, 1) if name == "loss" else divisor) for name, value in totals.items()}

        # Of the first step's tokens alone. Where everything was filtered there are none.
        own_sums, largest = self._of_mismatch(version)
        sums = group.sums(own_sums)
        if not sums:
            return found
        n_first = sums["tokens"]
        found["mismatch/kl"] = sums["kl"] / n_first
        found["mismatch/mean"] = sums["mean"] / n_first
        # Kish's effective sample size, as a share of the tokens: 1 where all weights are equal.
        effective = sums["weight"] ** 2 / sums["weight²"]
        found["mismatch/ess"] = effective / n_first

        # Largest values do not add up: of those of the ranks the largest counts.
        for of_rank in group.gather(largest):
            for name, value in of_rank.items():
                found[name] = max(value, found.get(name, value))
        return found

    def _of_mismatch(self, version: int | None) -> tuple[dict[str, float], dict[str, float]]:
        """(sums over the first step's tokens, largest values), of what was added here; empty where nothing was."""
        if not self._first:
            return {}, {}
        # In float64: the differences are near 0, and k3 is a difference of numbers near 1.
        parts = [of_part for of_part, _ in self._first]
        exact = torch.cat(parts).double()
        difference = exact.clamp(-20, 20).cpu().numpy()  # float64 [n]

        # Everything that adds up over the ranks, as sums: whoever needs a mean divides in the end.
        weight = np.exp(difference)  # π_learner/π_sampler, [n]
        distance = np.abs(difference)  # [n]
        every = {
            "tokens": np.ones_like(weight),
            "kl": weight - 1 - difference,
            "mean": distance,
            "weight": weight,
            "weight²": weight**2,
        }
        sums = {name: float(values.sum()) for name, values in every.items()}

        # And what does not add up.
        largest = {"mismatch/max": float(distance.max())}
        # On tokens of the policy of now nothing but numerics can differ: what is left there is an error of ours.
        versions = np.concatenate([of_part for _, of_part in self._first])  # int [n]
        current = versions == version  # bool [n]
        if current.any():
            largest["mismatch/on_policy_max"] = float(distance[current].max())
        return sums, largest


@dataclass(slots=True)
class Update:
    """What one update works on, and what it has seen so far. A list has one row a trajectory of the batch.

    The arrays of a row have one value an action token of its trajectory (n of them), in order.
    """

    batch: Batch
    advantages: Sequence[np.ndarray]  # float [n]
    keep: Sequence[bool]  # False: a filter took the trajectory out of the loss
    sampler: list[np.ndarray]  # float32 [n]: log-probabilities under the policy that sampled
    old: list[np.ndarray]  # float32 [n]: log-probabilities under π_old
    rng: np.random.Generator
    imitation: Imitation | None = None  # of demonstrations, beside the batch
    metrics: UpdateMetrics = field(default_factory=UpdateMetrics)
    norms: list[float] = field(default_factory=list)  # of the gradient, one an optimizer step
    first: list[Piece] = field(default_factory=list)  # of the first step
    start: dict[int, Tensor] = field(default_factory=dict)  # place in `first` -> log-probabilities before that step

    @property
    def imitated(self) -> float:
        """μ: what imitation takes of the policy's loss."""
        return 0.0 if self.imitation is None else self.imitation.share

    def drift(self, after: Mapping[int, np.ndarray], group: RankGroup) -> float:
        """Mean |log π after − log π before| over the action tokens that the first step was made of, nats a token.

        That is every action token of the batch, or of its first mini-batch, which is a random share of it. The measure
        is the one of SPO's code (`_get_spo_rho`), which D_half = 0.06 belongs to; a KL would be about half its square.
        after: as `start`, after the last step; the same packs, so this rank has both. Raises NotFinite.
        """
        nats = 0.0
        n_tokens = 0
        for place, values in after.items():
            # In float64: small numbers are added up over a whole batch.
            before = self.start[place].cpu().numpy()  # float32 [n]
            moved = values.astype(np.float64) - before
            nats += float(np.abs(moved).sum())
            n_tokens += len(moved)
        found = group.sums({"nats": nats, "tokens": n_tokens})

        # The gradient was finite, and the step along it need not be: nothing is sampled with such weights.
        if not np.isfinite(found["nats"]):
            raise NotFinite("the update left log-probabilities that are not finite: lower learner.lr, then --resume")
        return found["nats"] / max(found["tokens"], 1)  # 0 where everything was filtered: the policy has not moved


@dataclass(slots=True)
class OptimizerStep:
    """One optimizer step's share of an update: its sequences, and what their tokens weigh."""

    pieces: list[Piece]  # of the trajectories that were kept
    weights: dict[int, float]  # row -> the weight of each of its tokens
    picked: dict[int, np.ndarray]  # row -> bool [n], the tokens that the loss treats apart; empty for most losses


def picks(loss: Loss, update: Update, rows: Sequence[int]) -> dict[int, np.ndarray]:
    """Row -> the tokens that the loss treats apart, chosen over the whole optimizer batch; empty for most losses."""
    if not isinstance(loss, SelectsTokens):
        return {}
    # A share of the batch's tokens is meant: chosen here, because a micro-batch would see too few of them.
    logprobs = np.concatenate([update.sampler[row] for row in rows]).astype(np.float64)  # [tokens]
    advantages = np.concatenate([update.advantages[row] for row in rows])  # [tokens]
    selected = loss.select(covariance(logprobs, advantages), update.rng)  # bool, all rows end to end

    # Cut into rows again, where each one ends.
    ends = np.cumsum([len(update.sampler[row]) for row in rows])
    parts = np.split(selected, ends[:-1])
    return dict(zip(rows, parts, strict=True))
