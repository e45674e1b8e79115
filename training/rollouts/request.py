"""What a collector asks for: one episode to run, and where such requests come from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from solostream.agent.exploration.tree import Tree
from solostream.agent.trajectory import Dispatch, Trajectory


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One episode to run, or one tree. `dispatch` is frozen here; `seed` makes the episode's sampling repeatable.

    Leaf i of a tree has the event `dispatch.event` + i.
    """

    task_id: str
    seed: int
    dispatch: Dispatch  # when it was asked for, by which policy, and what was expected of it

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> RolloutRequest:
        """The inverse of `to_dict`."""
        return cls(record["task_id"], record["seed"], Dispatch(**record["dispatch"]))


# What a request brings: an episode, or several that share their beginnings.
Finished = Trajectory | Tree
# What runs one: an environment, an engine and a strategy, behind a single call.
Play = Callable[[RolloutRequest], Awaitable[Finished]]


@dataclass(frozen=True, slots=True)
class PromptSource:
    """What a pipeline is made of.

    draw: new requests, one or a whole group, with fresh events, values and the current version.
    again: a fresh request for the task of an old one.
    play: runs an episode. Raises SandboxError or EngineError, or ends it as "infra", when the infrastructure failed.
    discarded: told of every group that dynamic sampling leaves out.
    leaves: trajectories that a request brings; more than one where episodes branch.
    """

    # Where requests come from.
    draw: Callable[[], Sequence[RolloutRequest]]
    again: Callable[[RolloutRequest], RolloutRequest]

    # What becomes of them.
    play: Play
    retries: int  # of one episode, when the infrastructure failed
    discarded: Callable[[Sequence[Trajectory]], None] = lambda group: None
    leaves: int = 1
