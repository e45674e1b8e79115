"""What verl's processes share: the tracker, the advantages and the log, in one object that lives in one process.

Agent loops run in several workers and the trainer computes advantages in another process. A loop asks for the frozen
value of its task before it plays (`dispatch`) and hands the trajectory in (`finish`); the trainer's estimator asks for
the advantages of a batch by verl's `uid` (`advantages`). Needs neither verl nor Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.agent.trajectory_file import TrajectoryLog
from solostream.errors import UserError
from solostream.training.advantages import ValueTracker, estimator, grouped
from solostream.training.batch import Batch

KEPT = 64  # batches after which a trajectory that no update asked for (validation, dropped by verl) is forgotten


class Book:
    """folder: gets `trajectories.jsonl`, which `solostream view` shows, and `advantages.json`, from which it goes on.

    advantage, stages, options: as `algorithm.advantage`, `stages` and `[algorithm.NAME]` have them. forget: of the
    tracker, a constant retention: verl tells nobody how far an update moved the policy. Raises UserError for an
    estimator that compares within groups, or that needs the learner's log-probabilities.
    """

    def __init__(
        self,
        folder: str,
        advantage: str = "spo",
        stages: Sequence[str] = ("aspo",),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        forget: float = 0.9,
    ) -> None:
        self.tracker = ValueTracker(forget, forget)
        self._advantage = estimator(advantage, tuple(stages), options or {}, self.tracker, _no_logprobs)[-1]
        if grouped(self._advantage, 1):
            raise UserError("an estimator that compares within groups is verl's own business: algorithm.adv_estimator")
        self._batches = self._event = 0
        self._played: dict[str, tuple[int, Trajectory]] = {}  # verl's uid -> batches before it, what was played
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = TrajectoryLog(self._folder / "trajectories.jsonl")
        self._state = self._folder / "advantages.json"
        if self._state.exists():
            self._resume(json.loads(self._state.read_text(encoding="utf-8")))

    async def dispatch(self, task_id: str, version: int | None = None) -> Dispatch:
        """What is frozen before an episode begins. version: verl's `global_steps`; None: batches until now."""
        event, self._event = self._event, self._event + 1
        return Dispatch(event, self.tracker.value(task_id), self._batches if version is None else version)

    async def finish(self, uid: str, trajectory: Trajectory) -> None:
        """Keep it for the batch that will ask for `uid`. Raises UserError for a second one of the same uid."""
        if uid in self._played:
            raise UserError("several episodes of one prompt: set actor_rollout_ref.rollout.n=1, streams are single")
        self._played[uid] = self._batches, trajectory
        await self._log.append(trajectory)

    async def advantages(self, uids: Sequence[str], rewards: Sequence[float]) -> list[np.ndarray]:
        """float64 [action tokens] of each row, and the tracker learns. rewards: verl's, summed over a row's tokens.

        Raises UserError for a row that no agent loop of ours has played, and for a reward outside [0, 1].
        """
        missing = [uid for uid in uids if uid not in self._played]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(uids)} rows were not played by solostream's agent loop: set "
                "actor_rollout_ref.rollout.agent.default_agent_loop=solostream"
            )
        taken = [self._played.pop(uid)[1] for uid in uids]
        batch = Batch(replace(t, reward=float(reward)) for t, reward in zip(taken, rewards, strict=True))
        found = self._advantage(batch)
        self._batches += 1
        await self._log.update(self._batches, batch, found.values)
        self._played = {uid: one for uid, one in self._played.items() if self._batches - one[0] < KEPT}
        self._save()
        return found.values

    def _save(self) -> None:
        state = {
            "batches": self._batches,
            "event": self._event,
            "advantage": self._advantage.state_dict(),
            "tracker": self.tracker.state_dict(),
        }
        draft = self._state.with_suffix(".draft")
        draft.write_text(json.dumps(state), encoding="utf-8")
        draft.replace(self._state)

    def _resume(self, state: Mapping[str, Any]) -> None:
        self._batches, self._event = state["batches"], state["event"]
        self._advantage.load_state_dict(state["advantage"])
        self.tracker.load_state_dict(state["tracker"])


def _no_logprobs(trajectories: Sequence[Trajectory]) -> Sequence[Any]:
    raise UserError("this estimator scores trajectories again with the learner, which verl keeps to itself")
