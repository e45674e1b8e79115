"""One device in turns (`rollout.colocate = "turns"`): the engine sleeps while the learner computes.

It wakes when it gets the new weights (`Engine.load_weights`). After an error it gets those that the learner has then. A
run that is cancelled only closes it, asleep: to wake it would take time and memory for nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import torch

from solostream.agent.engine import Engine, EngineError, Sleeper, Weights


class HasWeights(Protocol):
    """Whose weights the engine samples with."""

    def weights(self) -> Weights:
        """As they are now."""
        ...


class Turns:
    """in_thread: runs a function in the learner's thread. lent: whether the engine sleeps meanwhile."""

    def __init__(self, engine: Engine, in_thread: Callable[..., Awaitable[Any]], *, lent: bool) -> None:
        self._engine, self._in_thread, self._lent = engine, in_thread, lent

    async def run(self, learner: HasWeights, version: int, work: Callable[..., Any], *arguments: object) -> Any:
        """What `work` returns or raises. version: of the weights before it."""
        if not self._lent:
            return await self._in_thread(work, *arguments)
        assert isinstance(self._engine, Sleeper)
        await self._engine.sleep()
        try:
            found = await self._in_thread(work, *arguments)
            await self._in_thread(torch.cuda.empty_cache)  # what torch has kept of it is the engine's to take
        except Exception:
            with suppress(EngineError):  # the first error says more
                await self._in_thread(torch.cuda.empty_cache)
                await self._engine.load_weights(await self._in_thread(learner.weights), version)
            raise
        return found
