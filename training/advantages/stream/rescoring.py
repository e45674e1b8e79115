"""Divergence "rescore": how far the policy moved, measured on each task's last trajectory.

    D = mean over its action tokens of |log π_now − log π_then|

That is D of SPO's authors' code (`_get_spo_rho`), for which D_half = 0.06 was set; a KL in nats is about half its
square. As there both sides are the learner's, "then" and "now" each before the update of a batch: a sampler's numbers
are off by its precision on every token, and the mean of |·| would count that as movement of a policy that stays.

So a trajectory is scored when it is learnt from, together with those before it: one forward pass of each, once a task
and batch. Whatever tasks have in one batch lies 0 apart; the first of them by another policy has the whole travel.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from solostream.agent.trajectory import Trajectory, Turn

Logprobs = Callable[[Sequence[Trajectory]], Sequence[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What it takes to score a trajectory again, and its score of then. Runs keep one a task: so no turn, and no text.

    token_ids: int32 [t]; mask: uint8 [⌈t/8⌉], the action mask in bits; folded: its segments but the first; version: of
    the policy that acted last on its task; logprobs: float32, one an action token.
    """

    token_ids: np.ndarray
    mask: np.ndarray
    folded: tuple[tuple[int, int], ...]
    version: int
    logprobs: np.ndarray

    @classmethod
    def of(cls, trajectory: Trajectory, version: int, logprobs: np.ndarray) -> Scored:
        """Copies: an array may lie in a buffer that many trajectories share."""
        token_ids = np.array(trajectory.token_ids, np.int32)
        return cls(token_ids, np.packbits(trajectory.action_mask), trajectory.segments[1:], version, logprobs)

    def trajectory(self, task_id: str) -> Trajectory:
        """As the learner scores it: tokens, mask and segments; the sampler's columns say nothing."""
        n = len(self.token_ids)
        mask = np.unpackbits(self.mask, count=n).astype(bool)
        nothing = np.zeros(n, np.float32), np.zeros(n, np.int32)
        turns = tuple(Turn("context", start, end, "") for start, end in self.folded)
        return Trajectory(task_id, self.token_ids, mask, *nothing, turns, 0.0, "answered")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: under 11 bytes a token, where lists of numbers took 33."""
        return {
            "token_ids": b64encode(self.token_ids.astype("<i4").tobytes()).decode(),
            "mask": b64encode(self.mask.tobytes()).decode(),
            "folded": [list(segment) for segment in self.folded],
            "version": self.version,
            "logprobs": b64encode(self.logprobs.astype("<f4").tobytes()).decode(),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Scored:
        """The inverse of `to_dict`, to the last bit."""
        return cls(
            np.frombuffer(b64decode(record["token_ids"]), "<i4"),
            np.frombuffer(b64decode(record["mask"]), np.uint8),
            tuple((start, end) for start, end in record["folded"]),
            record["version"],
            np.frombuffer(b64decode(record["logprobs"]), "<f4"),
        )


class Rescoring:
    """logprobs: the learner's, of each trajectory's action tokens under the weights of now."""

    def __init__(self, logprobs: Logprobs) -> None:
        self._logprobs = logprobs
        self._last: dict[str, Scored] = {}  # by task

    def divergences(self, ordered: Sequence[Trajectory]) -> list[float]:
        """D of each trajectory of a batch, in the order of dispatch, from the one before it on the same task.

        0 for the first on a task, and where the same policy acted. Call once a batch: they are the last ones then.
        """
        moved: dict[str, int] = {}  # task -> the place that its travel counts at
        versions: dict[str, int] = {}
        newest: dict[str, Trajectory] = {}
        for place, one in enumerate(ordered):
            last = self._last.get(one.task_id)
            # The same policy, arriving in a later batch: what was scored nearer to it stays.
            if last is not None and last.version == one.dispatch.version:
                continue
            if last is not None:
                moved.setdefault(one.task_id, place)
            versions[one.task_id] = one.dispatch.version
            if one.n_action_tokens:
                newest[one.task_id] = one

        asked = [*(self._last[task_id].trajectory(task_id) for task_id in moved), *newest.values()]
        scored = [np.array(values, np.float32) for values in (self._logprobs(asked) if asked else ())]
        now = dict(zip(moved, scored[: len(moved)], strict=True))
        first = dict(zip(newest, scored[len(moved) :], strict=True))

        found = [0.0] * len(ordered)
        for task_id, place in moved.items():
            step = now[task_id].astype(np.float64) - self._last[task_id].logprobs
            found[place] = float(np.abs(step).mean())
        for task_id, version in versions.items():
            if task_id in newest:
                self._last[task_id] = Scored.of(newest[task_id], version, first[task_id])
            elif task_id in moved:  # nothing was said that could be scored: the one before it is, from now on
                self._last[task_id] = replace(self._last[task_id], version=version, logprobs=now[task_id])
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types: what was scored last, by task."""
        return {task_id: last.to_dict() for task_id, last in self._last.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._last = {task_id: Scored.from_dict(last) for task_id, last in state.items()}
