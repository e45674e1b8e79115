"""Episodes for the trainer: a pool of environments, one way to sample, rewards on one scale.

The environment's rewards are mapped from `algorithm.reward_range` onto [0, 1] here, once: tracker, ASPO, metrics,
evaluation and the log see the same number. Whether they lie there is for `training.batch.Batch` to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from solostream import registry
from solostream.agent.answer_watch import AnswerWatch
from solostream.agent.engine import Engine, Sampling
from solostream.agent.exploration.tree import Tree
from solostream.agent.rollout import rollout
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.envs.data import Tasks
from solostream.errors import UserError
from solostream.sandbox.types import Sandbox
from solostream.training.config import Config
from solostream.training.run import setup
from solostream.training.run.setup import Components


class Plays(Protocol):
    """What plays episodes: `Episodes` in this process, or the players of a cluster."""

    @property
    def leaves(self) -> int:
        """See `Episodes.leaves`."""
        ...

    async def play(self, engine: Engine, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int) -> Trajectory:
        """See `Episodes.play`. Raises EngineError and SandboxError."""
        ...

    async def grow(
        self, engine: Engine, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int
    ) -> Trajectory | Tree:
        """See `Episodes.grow`. Raises EngineError and SandboxError."""
        ...

    def sampling(self, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Sampling:
        """See `turn_sampling`."""
        ...

    async def close(self) -> None:
        """Close the environments."""
        ...


class Episodes:
    """Plays any number of episodes at a time; an environment is made when none is idle, and used again after."""

    def __init__(
        self,
        config: Config,
        parts: Components,
        tasks: Tasks,
        sandbox: Callable[..., Sandbox] | None = None,
        play: Callable[..., Any] | None = None,
    ) -> None:
        self._config, self._parts, self._tasks, self._sandbox = config, parts, tasks, sandbox
        self._idle: list[Any] = []
        self._watch = AnswerWatch(str(config.env.options.get("answer", "boxed")))
        name = config.rollout.strategy
        options = (config.rollout.model_extra or {}).get(name)
        self._strategy = play or registry.bind("rollout", name, options, leaves=config.algorithm.group_size)
        if self.leaves not in (1, config.algorithm.group_size):
            raise UserError(f"the strategy grows trees of {self.leaves} leaves: set algorithm.group_size to that")

    @property
    def leaves(self) -> int:
        """Trajectories that the strategy makes of one request: more than one where it branches."""
        return getattr(self._strategy, "leaves", 1)

    async def play(self, engine: Engine, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int) -> Trajectory:
        """One episode to measure the policy by, plain where the strategy branches or `explores`.

        A failed sandbox ends it as `infra`, without another try. Raises EngineError.
        """
        plain = self.leaves > 1 or getattr(self._strategy, "explores", False)
        strategy = rollout if plain else self._strategy
        played: Trajectory = await self._play(strategy, engine, task_id, sampling, dispatch, seed)
        return played

    async def grow(
        self, engine: Engine, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int
    ) -> Trajectory | Tree:
        """What the strategy makes of a request. Raises EngineError, SandboxError."""
        played: Trajectory | Tree = await self._play(self._strategy, engine, task_id, sampling, dispatch, seed)
        return played

    async def _play(
        self, strategy: Any, engine: Engine, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int
    ) -> Any:
        parts = self._parts
        environment = (
            self._idle.pop()
            if self._idle
            else setup.environment(self._config, self._tasks, parts.tokenizer, self._sandbox)
        )
        try:
            played = await strategy(
                environment,
                engine,
                parts.chat,
                sampling=sampling,
                max_tokens=parts.max_tokens,
                task_id=task_id,
                dispatch=dispatch,
                seed=seed,
                retries=0,
            )
        finally:
            self._idle.append(environment)
        if isinstance(played, Tree):
            pairs = zip(played.leaves, played.scored, strict=True)
            return replace(played, leaves=tuple(self._mapped(leaf, scored) for leaf, scored in pairs))
        return self._mapped(played, bool(environment.trace) and environment.trace[-1].ending is not None)

    def _mapped(self, played: Trajectory, scored: bool) -> Trajectory:
        self._watch.see(played)
        if not scored and not any(turn.reward for turn in played.turns):  # cut off, and nothing was paid on the way
            return replace(played, reward=0.0)
        low, high = self._config.algorithm.reward_range
        return replace(played, reward=(played.reward - low) / (high - low))

    def sampling(self, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Sampling:
        """What one turn is sampled with: its limit in tokens is the environment's."""
        return turn_sampling(self._config, temperature, top_p, top_k)

    async def close(self) -> None:
        """Close the environments and their sandbox sessions."""
        for environment in self._idle:
            await environment.aclose()
        self._idle.clear()


def turn_sampling(config: Config, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Sampling:
    """What one turn is sampled with: its limit in tokens is the environment's."""
    return Sampling(config.env.turn_tokens, temperature, top_p, top_k)
