"""Episodes in other processes: k actors, each with its environments, sandboxes and ways to the replicas.

What an episode costs beside sampling (rendering, parsing, sandboxes, JSON) is the players'; the driver hands out
requests and takes trajectories back, each with its line for the log. An episode of a player that is lost is played
again by another one, as after any failure of the infrastructure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from solostream.agent.answer_watch import AnswerWatch
from solostream.agent.engine import Engine, EngineError, Sampling
from solostream.agent.exploration.tree import Tree
from solostream.agent.replicas import Replicas
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.envs.data import Tasks
from solostream.training.cluster.lifeline import Handle, Lifeline, present
from solostream.training.cluster.samplers import reach_remote
from solostream.training.config import Config
from solostream.training.rollouts.env_pool import Episodes, turn_sampling
from solostream.training.rollouts.validation import DirectAnswer
from solostream.training.run.setup import Components


class PlayerLost(EngineError):
    """Its process or its machine is gone, and with it the episodes that it was playing."""


class EpisodePlayer:
    """Plays episodes; lives in a process of its own. samplers: the replicas, which the owner of the run opens."""

    def __init__(
        self,
        config: Config,
        parts: Components,
        tasks: Tasks,
        samplers: Sequence[Handle],
        rollout: Callable[..., Any] | None = None,
    ) -> None:
        """parts: without the model. rollout: instead of what the configuration names."""
        self._episodes = Episodes(config, parts, tasks, play=rollout)
        self._engine = Replicas([partial(reach_remote, sampler) for sampler in samplers])

    async def play(
        self, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int, opening: Sequence[int] = ()
    ) -> Trajectory:
        """As `Episodes.play`; opening: tokens with which every turn begins (`DirectAnswer`)."""
        engine: Engine = DirectAnswer(self._engine, opening) if opening else self._engine
        return await self._episodes.play(engine, task_id, sampling, dispatch, seed)

    async def grow(self, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int) -> Trajectory | Tree:
        """As `Episodes.grow`, with every line for the log."""
        grown = await self._episodes.grow(self._engine, task_id, sampling, dispatch, seed)
        for trajectory in grown.leaves if isinstance(grown, Tree) else (grown,):
            trajectory.with_line()
        return grown

    async def ready(self) -> None:
        """Returns where there is somebody."""

    async def watch(self) -> None:
        """Never returns: whoever waits for it notices that this process has ended."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Close the environments and their sandboxes; the replicas go on."""
        await self._engine.close()
        await self._episodes.close()


@dataclass(eq=False, slots=True)
class _Seat:
    """A player as the driver sees it. line: to its process; None while that is away. coming: what waits for it."""

    handle: Handle
    playing: int = 0
    line: Lifeline | None = None
    coming: asyncio.Task[None] | None = None


class Players:
    """`Episodes` for the trainer, each played by that `EpisodePlayer` of `handles` that has the fewest in hand."""

    def __init__(self, config: Config, handles: Sequence[Handle], leaves: int = 1) -> None:
        """leaves: of the strategy, see `Episodes.leaves`."""
        self._config, self.leaves = config, leaves
        self._seats = [_Seat(handle) for handle in handles]
        self._watch = AnswerWatch(str(config.env.options.get("answer", "boxed")))

    async def play(self, engine: Engine, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int) -> Trajectory:
        """As `Episodes.play`; `engine` is the run's, or one that opens its turns for it. Raises EngineError."""
        opening = getattr(engine, "opening", ())
        played: Trajectory = await self._ask("play", task_id, sampling, dispatch, seed, opening)
        return played

    async def grow(
        self, engine: Engine, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int
    ) -> Trajectory | Tree:
        """As `Episodes.grow`; `engine` is the run's. Raises EngineError."""
        grown: Trajectory | Tree = await self._ask("grow", task_id, sampling, dispatch, seed)
        return grown

    async def _ask(self, method: str, *given: Any) -> Any:
        seat, line = await self._free()
        seat.playing += 1
        try:
            played = await line.call(method, *given)
        except PlayerLost:
            if seat.line is line:
                seat.line = None
            raise
        finally:
            seat.playing -= 1
        for trajectory in played.leaves if isinstance(played, Tree) else (played,):
            self._watch.see(trajectory)
        return played

    def sampling(self, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Sampling:
        """See `turn_sampling`."""
        return turn_sampling(self._config, temperature, top_p, top_k)

    async def close(self) -> None:
        """Close the environments of every player that is there."""
        coming = [seat.coming for seat in self._seats if seat.coming is not None]
        for task in coming:
            task.cancel()
        lines = [seat.line for seat in self._seats if seat.line is not None]
        await asyncio.gather(*coming, *(line.call("close") for line in lines), return_exceptions=True)
        await asyncio.gather(*(line.close() for line in lines))

    async def _free(self) -> tuple[_Seat, Lifeline]:
        """The player with the fewest episodes; where all are away, the first that comes."""
        while True:
            for seat in self._seats:
                if seat.line is not None and seat.line.over:
                    seat.line = None
                if seat.line is None and (seat.coming is None or (seat.coming.done() and not seat.coming.exception())):
                    seat.coming = asyncio.ensure_future(self._come(seat))
            here = [(seat.playing, i) for i, seat in enumerate(self._seats) if seat.line is not None]
            if here:
                seat = self._seats[min(here)[1]]
                assert seat.line is not None
                return seat, seat.line
            coming = [seat.coming for seat in self._seats if seat.coming is not None and not seat.coming.done()]
            if not coming:  # each of them dead for good
                await asyncio.gather(*(seat.coming for seat in self._seats if seat.coming is not None))
            await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)

    async def _come(self, seat: _Seat) -> None:
        """Ray starts it, or starts it again, where there is room; until then others play."""
        await present(seat.handle)
        seat.line = Lifeline(seat.handle)
