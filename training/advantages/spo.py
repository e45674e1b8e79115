"""SPO: A = r − v₋₁(x), standardized over the whole batch, never per prompt (arXiv 2509.13232, Eq. 8 and 9).

v₋₁ is the tracker's value frozen when the trajectory was dispatched, so it depends neither on the answer nor on what
arrived meanwhile; the evidence then enters the tracker in order of dispatch (SPO++, arXiv 2608.24870); of a tree of
episodes one observation a trunk (`tree.evidence`). The measure of
the standardization is SPO++'s action tokens, or the paper's trajectories.

Divergence D of the forgetting: by default the drift between policy versions that `tracker.record_drift` was told. With
"rescore" the learner's `logprobs` measure it on each task's last trajectory, as the authors' code does
(`stream.rescoring`).

The options baseline, slope, scale, and the values "energy" and "calibrated" are this project's (`advantages.stream`, a
file each). The published estimator has what stands here as their default, measure = "trajectory" and divergence =
"rescore"; what else a run needs to be as published is in docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pvariance
from typing import Any, Literal

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantages, per_token
from solostream.training.advantages.stream.energy_ratio import EnergyRatio
from solostream.training.advantages.stream.forgetting import CalibratedForgetting
from solostream.training.advantages.stream.measure import Measure, energy, weights
from solostream.training.advantages.stream.rescoring import Logprobs, Rescoring
from solostream.training.advantages.stream.scale import Kind, Scale
from solostream.training.advantages.stream.slope import FittedSlope
from solostream.training.advantages.tree.evidence import observations
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch, kept_of

Divergence = Literal["drift", "rescore", "calibrated"]
Baseline = Literal["value", "energy"]
Slope = Literal["one", "fitted"]


class SPO:
    """Estimator and keeper of the tracker's evidence. Raises UserError for trajectories without a frozen value.

    measure, scale: of the standardization. baseline: the value, or the one of least gradient variance that follows
    from it. slope: how far it is believed, 1 or fitted. logprobs: the learner's, of each trajectory's action tokens;
    divergence = "rescore" needs them.
    """

    def __init__(
        self,
        tracker: ValueTracker,
        measure: Measure = "token",
        *,
        divergence: Divergence = "drift",
        baseline: Baseline = "value",
        slope: Slope = "one",
        scale: Kind = "deviation",
        logprobs: Logprobs | None = None,
    ) -> None:
        # Its passes and its state would be paid for a D that nothing reads.
        if divergence != "drift" and tracker.forgetting == "snapshot":
            raise UserError(
                f"divergence '{divergence}' says how far evidence has aged, and forgetting = 'snapshot' counts policy "
                "versions instead: leave [algorithm.spo] divergence away, or [algorithm.tracker] forgetting"
            )
        self.tracker, self.measure = tracker, measure
        self.rescoring: Rescoring | None = None
        if divergence == "rescore":
            if logprobs is None:
                raise UserError("divergence 'rescore' scores trajectories again: give SPO the learner's logprobs")
            self.rescoring = Rescoring(logprobs)
        self.ratio = EnergyRatio() if baseline == "energy" else None
        self.slope = FittedSlope() if slope == "fitted" else None
        self.forgetting = CalibratedForgetting(tracker) if divergence == "calibrated" else None
        self.scale = Scale(scale)
        # In parts nothing may be taken over the batch, and nothing learnt from it but the evidence of the tracker.
        by_itself = scale == "none" and baseline == "value" and slope == "one" and divergence == "drift"
        self.in_parts = by_itself and tracker.shared is None and tracker.pool is None

    def __call__(self, batch: Batch) -> Advantages:
        """r − v, standardized; then the tracker learns the rewards. Raises UserError for a missing v."""
        outcomes = [t.reward for t in batch]
        frozen = [_frozen_value(t) for t in batch]
        used = weights(batch, self.measure)
        baselines = frozen if self.ratio is None else [self.ratio.baseline(v) for v in frozen]
        s = 1.0 if self.slope is None else self.slope.value
        raw = [r - s * b for r, b in zip(outcomes, baselines, strict=True)]
        centred, values = self.scale(raw, used)
        metrics = {**spread(raw, outcomes, kept_of(batch), centred), **self._state()}
        if self.slope is not None:
            self.slope.update(outcomes, baselines, used)
        if self.ratio is not None:
            trained = [t for t, keep in zip(batch, kept_of(batch), strict=True) if keep]
            self.ratio.update([t.reward for t in trained], [energy(t) for t in trained])
        self._learn(batch, outcomes)
        if len(batch):
            metrics["tracker/brier"] = fmean((r - v) ** 2 for r, v in zip(outcomes, frozen, strict=True))
            metrics["tracker/n_eff"] = fmean(sum(self.tracker.evidence(t.task_id)) for t in batch)
        return Advantages(per_token(values, batch), metrics)

    def _state(self) -> dict[str, float]:
        """What the options have learnt from earlier batches, as it is used on this one."""
        found = {}
        if self.slope is not None:
            found["tracker/slope"] = self.slope.value
        if self.ratio is not None:
            found["tracker/energy_ratio"] = self.ratio.value
        if self.forgetting is not None:
            found["tracker/rho"] = self.forgetting.rho
        return found

    def _learn(self, batch: Batch, outcomes: Sequence[float]) -> None:
        seen = observations(batch, outcomes)
        order, earned = [i for i, _ in seen], [outcome for _, outcome in seen]
        for trajectory in batch:
            self.tracker.place(trajectory.task_id, trajectory.source)
        values = [self.tracker.value(batch[i].task_id) for i in order]  # with what came in since the dispatch
        if order:
            newest = max(t.dispatch.version for t in batch)
            self.tracker.learn_shared(newest, [(batch[i].task_id, r) for i, r in seen])
        # None leaves it to the tracker's drift.
        divergences: Sequence[float | None] = [None] * len(order)
        if self.rescoring is not None:
            divergences = self.rescoring.divergences([batch[i] for i in order])
        if self.forgetting is not None:
            divergences = [self.forgetting.divergence] * len(order)
            self.forgetting.update([batch[i].task_id for i in order], earned, values)
        for i, outcome, divergence in zip(order, earned, divergences, strict=True):
            dispatch = batch[i].dispatch
            self.tracker.observe(batch[i].task_id, outcome, divergence, event=dispatch.event, version=dispatch.version)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types. The tracker keeps its own state."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own."""
        parts = {
            "scale": self.scale,
            "slope": self.slope,
            "ratio": self.ratio,
            "forgetting": self.forgetting,
            "rescoring": self.rescoring,
        }
        return {name: part for name, part in parts.items() if part is not None}


def spread(
    raw: Sequence[float],
    outcomes: Sequence[float],
    kept: Sequence[bool] | None = None,
    centred: Sequence[float] | None = None,
) -> dict[str, float]:
    """How much signal a batch carries, before it is scaled: the paper's Fig. 3. kept: which count; None: all.

    centred: what the loss sees but for its scale, where that is not `raw`: under a slope of 0 `raw` is the reward, and
    a wrong answer is no near-zero one.
    """
    centred = raw if centred is None else centred
    rows = [row for row, keep in enumerate(kept or [True] * len(raw)) if keep]
    if not rows:
        return {}
    raw, outcomes, centred = ([numbers[row] for row in rows] for numbers in (raw, outcomes, centred))
    return {
        "advantage/mean": fmean(raw),
        "advantage/variance": pvariance(raw),
        "advantage/near_zero": sum(abs(a) <= 0.02 for a in centred) / len(rows),
        "reward/variance": pvariance(outcomes),
    }


def _frozen_value(trajectory: Trajectory) -> float:
    value = trajectory.dispatch.value
    if value is None:
        raise UserError(
            f"the trajectory of task {trajectory.task_id} was dispatched without a value; "
            "put tracker.value(task_id) into its Dispatch, or use an estimator without a tracker"
        )
    return value
