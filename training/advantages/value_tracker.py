"""The value tracker of SPO (arXiv 2509.13232, Sec. 4.1): what the acting policy is expected to earn on each task.

Per task a Beta(α, β) with value v = α/(α+β). One observation r ∈ [0, 1] after the acting policy moved by D, the mean
|Δ log π| of an action token (the authors' code; D_half = 0.06 belongs to it and not to a KL):

    ρ = clip(2^(−D/D_half), ρ_min, ρ_max)        α ← ρ·α + r        β ← ρ·β + (1 − r)                          (Eq. 5)

which is v ← v + η·(r − v) with η = 1/(ρ·(α+β) + 1) (Eq. 7), so a fractional reward is tracked by the same line.

Evidence counts in the order of the events that produced it, never in order of arrival (SPO++, arXiv 2608.24870): the
last `window` observations of a task are kept, and a late one is put in its place and the state replayed. An
observation more than `window` events late for its own task enters before all that are kept.

Options, none of them SPO's:
`forgetting = "snapshot"`: SPO++'s retention. ρ_min once for every policy version between two dispatches, whatever D is;
    streams dispatched under one version add up. (Evidence decays with the versions that pass, visited or not: that
    scales α and β alike, so no value changes by it and `evidence` counts up to the last visit.)
`shared_drift`, `pooled`: values move, and begin, with what tasks have in common (`stream.shared_drift`, `.pooling`).
    These two learn from whole batches and from what has arrived: for them the order of arrival counts.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from solostream.errors import UserError
from solostream.evaluation.training_curves import sampling_weight
from solostream.training.advantages.stream.pooling import Pool
from solostream.training.advantages.stream.shared_drift import SharedDrift

Forgetting = Literal["divergence", "snapshot"]


@dataclass(frozen=True, slots=True, order=True)
class _Evidence:
    """One outcome of a task, in the order of dispatches."""

    event: int
    reward: float  # on [0, 1]
    divergence: float | None  # nats a token, since the policy that acted before; None: as `record_drift` measured
    version: int | None  # of the policy that acted


@dataclass(slots=True)
class _Belief:
    """`start` is (α, β, version) before the kept events; `now` is (α, β) after them.

    One assignment moves `now`: the loop that dispatches reads it while the learner's thread adds evidence.
    """

    start: tuple[float, float, int | None] = (0.5, 0.5, None)  # Jeffreys
    events: list[_Evidence] = field(default_factory=list)
    now: tuple[float, float] = (0.5, 0.5)


class ValueTracker:
    """Keyed by task id, never by prompt text.

    rho_min, rho_max: bounds of the forgetting factor (windows of 8 and 25 observations); equal bounds make it constant.
    d_half: the D, in nats a token, that halves the weight of old evidence. shared_drift: its rate; 0: none.
    Raises UserError on impossible settings and on rewards outside [0, 1].
    """

    def __init__(
        self,
        rho_min: float = 0.875,
        rho_max: float = 0.96,
        d_half: float = 0.06,
        *,
        window: int = 64,
        forgetting: Forgetting = "divergence",
        shared_drift: float = 0.0,
        pooled: bool = False,
    ) -> None:
        # With ρ = 1 evidence of a policy long gone would count for ever, with ρ = 0 the last outcome alone.
        most = rho_min if forgetting == "snapshot" else rho_max  # a snapshot reads no rho_max
        if not 0 < rho_min <= most < 1 or d_half <= 0 or window < 1:
            raise UserError(
                "the tracker needs 0 < rho_min <= rho_max < 1, d_half > 0 and window >= 1; "
                f"got rho_min={rho_min}, rho_max={rho_max}, d_half={d_half}, window={window}"
            )
        # How evidence ages.
        self.rho_min = rho_min
        self.rho_max = rho_max
        self.d_half = d_half
        self.window = window
        self.forgetting = forgetting

        # What tasks have in common: how their values move together, and where they begin.
        self.shared = SharedDrift(shared_drift) if shared_drift else None
        self.pool = Pool(1 / (1 - rho_min)) if pooled else None
        self._sources: dict[str, str] = {}  # task -> what it shares values with
        self._levels: dict[str, str] = {}  # task -> its level within the source, for the pool alone
        self._beliefs: dict[str, _Belief] = {}

        # How far the policy has travelled, by version.
        self._drift_versions: list[int] = []
        self._drift_sums: list[float] = []  # D travelled up to and including that version

    def initialize(self, task_id: str, outcomes: Sequence[float], *, version: int | None = None) -> None:
        """Start `task_id` from rewards of the initial policy (App. A), smoothed by half a success and half a failure.

        v0 = (Σr + 0.5)/(n + 1) with the strength min(n, N0), N0 = 1/(1 − ρ_min): n outcomes are believed as n (the
        paper has n = N0 = 8). No outcomes: Beta(0.5, 0.5). version: of the policy that earned them, from which the
        travel to the first observation counts; None: it counts as 0.
        """
        # Nothing to start from: the task is as one never seen.
        if not outcomes:
            self._beliefs.pop(task_id, None)
            return
        # What is known before them. First of all: the pool is about to learn these outcomes, and they count once.
        alpha, beta = self._first(task_id)

        # What the pool learns of its tasks' beginnings: each outcome, and the one before it.
        for before, reward in pairwise([None, *outcomes]):
            self._pool(task_id, _unit(reward, task_id), before)  # type: ignore[arg-type]

        # The mean of the outcomes and the prior. Jeffreys' half a success and half a failure keep v0 off 0 and 1, where
        # no later outcome could surprise.
        n = len(outcomes)
        v0 = (math.fsum(outcomes) + alpha) / (n + alpha + beta)

        # How firmly it is believed. Jeffreys' prior is no observation, what a pool knows is some.
        # 1/(1 − ρ) observations is what evidence settles at under a forgetting factor ρ.
        most = 1 / (1 - self.rho_min)
        pooled = alpha + beta if self.pool else 0
        strength = min(n + pooled, most)
        alpha = strength * v0
        beta = strength * (1 - v0)
        self._beliefs[task_id] = _Belief((alpha, beta, version), now=(alpha, beta))

    def place(self, task_id: str, source: str, level: str = "") -> None:
        """Say which tasks share what `shared_drift` and `pooled` learn; untold, a task goes with the population.

        level: of difficulty, within the source; only `pooled` asks. "": none, or the one that was told before.
        """
        # Not kept for those without one: a checkpoint of a million tasks would name each for nothing.
        if source:
            self._sources[task_id] = source
        if level and self.pool is not None:
            self._levels[task_id] = level

    def value(self, task_id: str) -> float:
        """v = α/(α+β); 0.5, or what the pool says, for a task never seen."""
        alpha, beta = self.evidence(task_id)
        return alpha / (alpha + beta)

    def evidence(self, task_id: str) -> tuple[float, float]:
        """(α, β) under the newest policy; their sum is the effective number of observations."""
        belief = self._beliefs.get(task_id)
        if belief is None:
            return self._first(task_id)

        # The belief is of the version that acted last: what all tasks have learnt since then moves it to now.
        last = belief.events[-1].version if belief.events else belief.start[2]
        source = self._sources.get(task_id, "")
        return self._moved(*belief.now, source, last, None)

    def learn_shared(self, version: int, outcomes: Iterable[tuple[str, float]]) -> None:
        """One batch dispatched up to `version`: (task, r) of each trajectory. Before its evidence enters.

        The residuals are against the values of now. Those that were frozen at dispatch lack what the batches in between
        have moved already: each would count the same lag again, and values swing ever further the later batches come.
        """
        if self.shared is None:
            return
        # What is shared is shared by the tasks of one source; which task it was does not matter there.
        residuals = [(self._sources.get(task, ""), r, self.value(task)) for task, r in outcomes]
        self.shared.update(version, residuals)

    def observe(
        self,
        task_id: str,
        reward: float,
        divergence: float | None = None,
        *,
        event: int | None = None,
        version: int | None = None,
    ) -> None:
        """Add one outcome.

        divergence: D, in nats a token, between the policy that acted now and the one that last acted on the task. None
            takes the travel between the two `version`s that `record_drift` measured, 0 where none was.
        event: the place in the order of dispatches; None: after everything seen for the task.
        """
        reward = _unit(reward, task_id)
        if divergence is not None and not 0 <= divergence < math.inf:
            raise UserError(f"the divergence of task {task_id} is {divergence}; give a finite D >= 0, in nats a token")

        # The first outcome of a task meets the belief that every task begins with.
        belief = self._beliefs.get(task_id)
        if belief is None:
            first = self._first(task_id)
            belief = _Belief((*first, None), now=first)
            self._beliefs[task_id] = belief
        last = belief.events[-1] if belief.events else None

        # What tasks of one source have in common is learnt from each outcome and the one before it.
        reward_before = last.reward if last else None
        self._pool(task_id, reward, reward_before)

        # Its place among the task's events: where it was dispatched, or the end.
        source = self._sources.get(task_id, "")
        if event is None:
            event = last.event + 1 if last else 0
        new = _Evidence(event, reward, divergence, version)

        late = last is not None and event <= last.event
        if not late:
            # In order, one line of arithmetic is enough: nearly all evidence comes so.
            last_version = last.version if last else belief.start[2]
            belief.now = self._apply(*belief.now, source, last_version, new)
            belief.events.append(new)
        else:
            # It finished after episodes that were sent out later: all that followed it is applied again on top of it.
            # Then the value is what it would have been had all of them arrived in order.
            insort(belief.events, new, key=_order)
            belief.now = self._replay(belief, source)

        # What falls out of the window is part of the start from now on: it can no longer be overtaken.
        if len(belief.events) > self.window:
            oldest = belief.events.pop(0)
            alpha, beta, last_version = belief.start
            alpha, beta = self._apply(alpha, beta, source, last_version, oldest)
            # `now` stays: it has seen this outcome already.
            belief.start = (alpha, beta, oldest.version)

    def record_drift(self, version: int, distance: float) -> None:
        """Policy `version` is D = `distance` away from the one before it. Call once a version, in order.

        Travel between two versions is the sum of the steps between them: exact while all steps point the same way, and
        too large where they turn back, which forgets sooner.
        """
        # Versions are found by bisection, so they have to be in order.
        if self._drift_versions and version <= self._drift_versions[-1]:
            raise ValueError(f"drift of version {version} after that of version {self._drift_versions[-1]}")

        # A running sum, so that the travel between any two versions is one difference however many lie between.
        travelled = self._drift_sums[-1] if self._drift_sums else 0.0
        self._drift_versions.append(version)
        self._drift_sums.append(travelled + max(distance, 0.0))

    def weights(self, task_ids: Iterable[str], epsilon: float = 0.05, gamma: float = 0.0) -> list[float]:
        """The tasks' `sampling_weight`s, unnormalised (Eq. 11), by evidence: √(v(1 − v))/N^γ + ε, N = max(α + β, 1).

        γ = 0 is Eq. 11; the paper's conference version has γ > 0.
        """
        weights = []
        for task_id in task_ids:
            alpha, beta = self.evidence(task_id)
            n = alpha + beta  # the effective number of observations
            # Tasks that are neither solved nor hopeless teach most, and those of which little is known yet; with ε no
            # task is forgotten, for the policy moves, and so do values of 0 and of 1.
            weights.append(sampling_weight(alpha / n, epsilon, gamma, n))
        return weights

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        # `now` is kept, though it follows from the rest: a run that goes on need not replay what it knew.
        beliefs = {}
        for task_id, belief in self._beliefs.items():
            events = [[one.event, one.reward, one.divergence, one.version] for one in belief.events]
            beliefs[task_id] = {
                "start": list(belief.start),
                "now": list(belief.now),
                "events": events,
            }
        state: dict[str, Any] = {
            "beliefs": beliefs,
            "drift": [list(self._drift_versions), list(self._drift_sums)],
            "sources": dict(self._sources),
        }
        # Options that a run does not use leave nothing in its checkpoints.
        if self.shared is not None:
            state["shared"] = self.shared.state_dict()
        if self.pool is not None:
            state["pool"] = self.pool.state_dict()
            state["levels"] = dict(self._levels)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._beliefs = {
            task_id: _Belief(
                start=tuple(saved["start"]),
                events=[_Evidence(*fields) for fields in saved["events"]],
                now=tuple(saved["now"]),
            )
            for task_id, saved in state["beliefs"].items()
        }
        versions, sums = state["drift"]
        self._drift_versions = list(versions)
        self._drift_sums = list(sums)
        self._sources = dict(state["sources"])
        # A run goes on with the options that it had: others are refused before anything is loaded.
        if self.shared is not None:
            self.shared.load_state_dict(state["shared"])
        if self.pool is not None:
            self.pool.load_state_dict(state["pool"])
            self._levels |= state.get("levels", {})

    def _first(self, task_id: str) -> tuple[float, float]:
        """(α, β) of a task that was never seen: Jeffreys' prior, or what the pool knows of its like."""
        if self.pool is None:
            return 0.5, 0.5
        return self.pool.prior(self._sources.get(task_id, ""), self._levels.get(task_id, ""))

    def _pool(self, task_id: str, reward: float, before: float | None) -> None:
        if self.pool is not None:
            self.pool.observe(self._sources.get(task_id, ""), reward, before, self._levels.get(task_id, ""))

    def _replay(self, belief: _Belief, source: str) -> tuple[float, float]:
        """(α, β) after all kept events, from the start."""
        # At most `window` of them: a late outcome costs no more however long the run has been.
        alpha, beta, last_version = belief.start
        for evidence in belief.events:
            alpha, beta = self._apply(alpha, beta, source, last_version, evidence)
            last_version = evidence.version
        return alpha, beta

    def _apply(
        self,
        alpha: float,
        beta: float,
        source: str,
        last: int | None,
        new: _Evidence,
    ) -> tuple[float, float]:
        """(α, β) after one more outcome (Eq. 5)."""
        # First to the version that acted: with `shared_drift` the other tasks say how values moved until then.
        alpha, beta = self._moved(alpha, beta, source, last, new.version)
        # What the policy earned before it moved says less about the policy of now: old evidence shrinks by ρ.
        rho = self._rho(last, new)
        alpha = rho * alpha + new.reward
        beta = rho * beta + 1 - new.reward
        return alpha, beta

    def _rho(self, last: int | None, new: _Evidence) -> float:
        """What old evidence shrinks by before `new` is added: by the updates in between, or by how far they went."""
        # SPO++: once for each version, however far it went. Streams of one version forget nothing of each other.
        if self.forgetting == "snapshot":
            passed = 0
            if last is not None and new.version is not None:
                passed = max(new.version - last, 0)
            return math.pow(self.rho_min, passed)
        # SPO: by the distance, within bounds, so that evidence never counts for ever and never for nothing.
        divergence = new.divergence
        if divergence is None:
            divergence = self._travel(last, new.version)
        halved = math.exp2(-divergence / self.d_half)
        return min(max(halved, self.rho_min), self.rho_max)

    def _moved(
        self,
        alpha: float,
        beta: float,
        source: str,
        last: int | None,
        now: int | None,
    ) -> tuple[float, float]:
        """The belief of version `last`, as of version `now` (None: the newest), by what all tasks have in common."""
        if self.shared is None:
            return alpha, beta
        # The value moves; how much is known stays.
        n = alpha + beta
        value = self.shared.moved(alpha / n, source, last, now)
        return n * value, n * (1 - value)

    def _travel(self, last: int | None, now: int | None) -> float:
        """D between two policy versions, in nats a token; 0 where one of them is not known."""
        if last is None or now is None:
            return 0.0
        # A version's sum is that of the last recorded version up to it. The order of the two does not matter: a late
        # outcome may be of an older policy than the one before it.
        sums = [0.0, *self._drift_sums]
        travelled_now = sums[bisect_right(self._drift_versions, now)]
        travelled_last = sums[bisect_right(self._drift_versions, last)]
        return abs(travelled_now - travelled_last)


def _order(evidence: _Evidence) -> tuple[int, float, float, int]:
    """Total, so that equal events (a task answered twice under one number) have one order too."""
    divergence = -1.0 if evidence.divergence is None else evidence.divergence
    version = -1 if evidence.version is None else evidence.version
    return evidence.event, evidence.reward, divergence, version


def _unit(reward: float, task_id: str) -> float:
    if not 0 <= reward <= 1:  # also refuses NaN
        raise UserError(
            f"the reward of task {task_id} is {reward}, outside [0, 1]; declare its range (reward_range) to map it"
        )
    return float(reward)
