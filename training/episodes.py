"""Episodes for the trainer: a pool of environments and one way to sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from agent.engine import Engine, Sampling
from agent.rollout import rollout
from agent.trajectory import Dispatch, Trajectory
from sandbox.types import Sandbox
from training import setup
from training.config import Config
from training.setup import Parts, Tasks


class Episodes:
    """Plays any number of episodes at a time; an environment is made when none is idle, and used again after."""

    def __init__(
        self, config: Config, parts: Parts, tasks: Tasks, sandbox: Callable[..., Sandbox] | None = None
    ) -> None:
        self._config, self._parts, self._tasks, self._sandbox = config, parts, tasks, sandbox
        self._idle: list[Any] = []

    async def play(self, engine: Engine, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int) -> Trajectory:
        """A failed sandbox ends it as `infra`, without another try. Raises EngineError."""
        parts = self._parts
        environment = self._idle.pop() if self._idle else setup.environment(self._config, self._tasks, parts.tokenizer)
        try:
            return await rollout(
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

    def sampling(self, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Sampling:
        return Sampling(self._config.env.turn_tokens, temperature, top_p, top_k)

    async def close(self) -> None:
        for environment in self._idle:
            await environment.aclose()
        self._idle.clear()


def seed_of(*parts: object) -> int:
    """A number in [0, 2^63) that depends on nothing but `parts`."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
