"""One update whose batch comes in parts: a part is learnt while the rest of the batch is still being sampled.

Seed: AsyncFlow (arXiv 2507.01663). The gradient is the one of the whole batch. What a trajectory counts in the end is
known before the batch is complete: means over trajectories divide by the size that the batch will have, and a mean over
tokens, whose number is not known, is taken once, of the sum of all gradients, before they are clipped. So an estimator
must be able to judge a part by itself (`in_parts`); one that centres or scales over the batch is refused.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import torch

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantage, Advantages
from solostream.training.batch import Batch
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.corrections import FILTERS, kept
from solostream.training.learner.guards import check_advantages, memory_advice, refuse
from solostream.training.learner.learner import Learner
from solostream.training.learner.mfu import peak_of, throughput
from solostream.training.learner.packing import pieces_of
from solostream.training.learner.update import OptimizerStep, Update
from solostream.training.losses import Loss, SelectsTokens
from solostream.training.losses.aggregation import token_weights


def check_in_parts(advantage: Advantage, config: LearnerConfig, loss: Loss) -> None:
    """Raises UserError for what has to see a whole batch at once: an estimator, a stage, or a loss."""
    # A stage wraps the estimator that it corrects: every one in the chain must be able to.
    one: Advantage | None = advantage
    while one is not None:
        if not getattr(one, "in_parts", False):
            raise UserError(
                f"{type(one).__name__} as it is set judges whole batches, and rollout.learn_in_parts cuts them: use "
                '[algorithm.spo] scale = "none", maxrl_stream, grpo, dr_grpo, rloo, maxrl, dcpo or none; as stages '
                'negative_weight, salt, gigpo, seed or [algorithm.aspo] compare = "group", if any'
            )
        one = getattr(one, "inner", None)
    if config.imitation is not None or config.entropy_band is not None:
        raise UserError(
            "learner.imitation and learner.entropy_band belong to whole batches: set rollout.learn_in_parts = 1"
        )
    if isinstance(loss, SelectsTokens):
        raise UserError(f"loss {config.loss} selects among the tokens of a whole batch: set rollout.learn_in_parts = 1")


class StreamedUpdate:
    """`add` each part, then `finish`; `size` trajectories in all. Takes one optimizer step."""

    def __init__(self, learner: Learner, advantage: Advantage, size: int) -> None:
        self._learner = learner
        self._advantage = advantage
        self._size = size

        # One row a trajectory, in the order of the parts.
        self._batch: list[Trajectory] = []
        self._values: list[np.ndarray] = []
        self._keep: list[bool] = []
        self._dropped = dict.fromkeys((f"dropped/{name}" for name in FILTERS), 0.0)
        self._found: list[dict[str, float]] = []  # the estimator's metrics of each part
        self._busy_s = 0.0

        # The lists grow with the parts; π_old is the sampler's, or the policy of now (`Learner.update`, one step).
        sampler: list[np.ndarray] = []
        rng = np.random.default_rng((learner.seed, learner.step))
        batch: Sequence[Trajectory] = self._batch
        self._update = Update(batch, self._values, self._keep, sampler, sampler, rng)  # type: ignore[arg-type]
        learner.optimizer.zero()  # of a step that an error or an interruption cut short

    def add(self, part: Batch) -> None:
        """Its advantages, and its share of the gradient. Raises UserError as `Learner.update` does."""
        started = time.perf_counter()
        learner = self._learner

        # What is wrong with its advantages is found before anything of the part is kept.
        found = self._advantage(part)
        check_advantages(part, found.values, learner.dump_dir, learner.step)
        self._found.append(found.metrics)

        # The part behind those before it; `first` is where it begins.
        first = len(self._batch)
        keep, dropped = kept(part, learner.config)
        for name, number in dropped.items():
            self._dropped[name] += number
        self._batch += part
        self._values += found.values
        self._keep += keep
        self._update.sampler += [trajectory.logprobs[trajectory.action_mask] for trajectory in part]

        # All parts are one optimizer step: a pack names its members by their place among the pieces of all of them.
        rows = [first + place for place, wanted in enumerate(keep) if wanted]
        pieces = pieces_of(self._batch, rows)
        before = len(self._update.first)
        self._update.first += pieces
        weights = dict(enumerate(self._weights(part), first))
        step = OptimizerStep(self._update.first, weights, {})

        # The gradient stays where it is and grows; the step along it is taken in `finish`.
        with memory_advice(learner.config), learner.scorer.active():
            for packed in learner.packs([piece.sequence for piece in pieces]):
                placed = replace(packed, members=[before + place for place in packed.members])
                learner.gradient.add(self._update, step, placed)
        self._busy_s += time.perf_counter() - started

    def _weights(self, part: Batch) -> list[float]:
        """What each token of a trajectory weighs; under `token_mean` 1, divided in the end."""
        config = self._learner.config
        lengths = [trajectory.n_action_tokens for trajectory in part]
        # How many tokens there will be nobody knows yet.
        if config.aggregation == "token_mean":
            return [1.0] * len(part)
        # A mean over the part's trajectories, brought to one over those of the whole batch.
        share = len(part) / self._size
        of_part = token_weights(config.aggregation, lengths, config.length_norm)
        return [share * weight for weight in of_part]

    def finish(self, version: int | None, *, drift: bool) -> tuple[Batch, Advantages, dict[str, float]]:
        """The step. The whole batch in the order of its parts, its advantages, and the metrics of `Learner.update`.

        Metrics of the estimator are means over the parts. Raises NotFinite, UserError.
        """
        started = time.perf_counter()
        learner = self._learner
        update = self._update
        update.batch = Batch(self._batch, self._keep)

        # Now the number of tokens is known that a mean over tokens divides by.
        tokens = sum(map(len, update.sampler))
        scale = 1 / max(tokens, 1) if learner.config.aggregation == "token_mean" else 1.0
        # Where the filters took everything there is no gradient, and no step.
        if any(self._keep):
            self._take_step(scale)

        # How far the policy went is what the tracker forgets by.
        with learner.scorer.active():
            moved = {"drift": update.drift(learner._scored(update.first), learner.group)} if drift else {}
        numbers = update.metrics.result(version, 1)
        if "loss" in numbers:
            numbers["loss"] *= scale

        used = [trajectory for trajectory, wanted in zip(update.batch, self._keep, strict=True) if wanted]
        # Of the parts and of the step, without the waiting in between.
        seconds = self._busy_s + time.perf_counter() - started
        peak = peak_of(learner.scorer.device, 1)
        return (
            update.batch,
            Advantages(self._values, self._means()),
            {
                **throughput(used, 1, seconds, learner.shape, peak),
                **self._dropped,
                **numbers,
                **moved,
                "grad_norm": float(np.mean(update.norms)) if update.norms else 0.0,
                "lr": learner.optimizer.lr,
                "optimizer_steps": float(len(update.norms)),
            },
        )

    def _take_step(self, scale: float) -> None:
        """Along `scale` times the gradient that the parts have added up. Raises NotFinite."""
        learner = self._learner
        with torch.no_grad():
            for parameter in learner.optimizer.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)

        # The last look before the weights change. Whose gradient it was cannot be told any more: all are named.
        norm = learner.optimizer.clip()
        if not torch.isfinite(norm):
            learner.optimizer.zero()
            tasks = [trajectory.task_id for trajectory in self._batch]
            refuse("gradients", tasks, self._update.batch, learner.dump_dir, learner.step)
        with learner._live.writing():
            learner.optimizer.apply()
        self._update.norms.append(float(norm))

    def _means(self) -> dict[str, float]:
        """Of each metric of the estimator, over the parts that have it."""
        names = sorted({name for metrics in self._found for name in metrics})
        found = {}
        for name in names:
            values = [metrics[name] for metrics in self._found if name in metrics]
            found[name] = fmean(values)
        return found
