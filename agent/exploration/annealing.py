"""EAD, exploratory annealed decoding (arXiv 2510.05251): hot at the beginning of a turn, cool at its end.

    τ_t = max(1 + τ_max − e^(t/d), τ_min)        t: tokens of this turn so far

Exploration counts most where a turn finds its direction. No engine has to know: a turn is asked for in pieces of
`piece` tokens, each at its own temperature, and what is cached of the turn makes a piece cheap. Log-probabilities are
those of the distribution that was sampled from, so the learner, which scores at `rollout.temperature`, needs its
truncated importance weights (the paper has them, too): without `learner.tis_cap` the run is refused.
Departures: the clock starts with each request of a turn instead of once a response (what comes after a tool's output is
a new beginning), and stands still for a piece; d does not grow with the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Engine, Generation, Sampling, Weights
from solostream.agent.rollout import rollout
from solostream.agent.tokenization import decode
from solostream.agent.trajectory import Trajectory
from solostream.envs.text_env import TextEnv


def temperature(token: int, hottest: float, coolest: float, decay: float) -> float:
    """τ_t."""
    return max(1 + hottest - math.exp(token / decay), coolest)


class Annealed:
    """An `Engine` whose requests cool down while they are answered."""

    def __init__(
        self, engine: Engine, tokenizer: Any, hottest: float, coolest: float, decay: float, piece: int
    ) -> None:
        self.version, self._engine, self._tokenizer = engine.version, engine, tokenizer
        self._schedule, self._piece = (hottest, coolest, decay), piece

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """As the engine's, piece by piece; a stop string that two pieces share ends it, too."""
        made = Generation([], [], [], "length")
        while len(made.token_ids) < sampling.max_tokens:
            begun = len(made.token_ids)
            size = min(self._piece, sampling.max_tokens - begun)
            heat = sampling.temperature * temperature(begun, *self._schedule)
            seed = None if sampling.seed is None else sampling.seed + begun
            wanted = replace(sampling, max_tokens=size, temperature=heat, seed=seed)
            part = await self._engine.generate([*prompt_ids, *made.token_ids], wanted)
            made = Generation(
                made.token_ids + part.token_ids,
                made.logprobs + part.logprobs,
                made.versions + part.versions,
                part.finish,
            )
            end = self._stopped(made.token_ids, begun, sampling.stop)
            if end is not None:
                return Generation(made.token_ids[:end], made.logprobs[:end], made.versions[:end], "stop")
            if part.finish != "length":
                break
        return made

    def _stopped(self, ids: Sequence[int], begun: int, stop: Sequence[str]) -> int | None:
        """How many tokens there are up to the first stop string that the tokens from `begun` on complete."""
        if not any(one in decode(self._tokenizer, list(ids)) for one in stop):
            return None
        for end in range(begun + 1, len(ids) + 1):
            if any(one in decode(self._tokenizer, list(ids[:end])) for one in stop):
                return end
        return None

    async def release(self, key: str) -> None:
        """As the engine's."""
        await self._engine.release(key)

    async def load_weights(self, weights: Weights, version: int) -> None:
        """As the engine's."""
        await self._engine.load_weights(weights, version)

    async def close(self) -> None:
        """The engine is not its own: nothing to close."""


class EAD:
    """hottest, coolest: τ_max and τ_min, times `rollout.temperature`. decay: d, in tokens."""

    explores = True  # evaluations are not annealed

    def __init__(
        self,
        *,
        hottest: Annotated[float, Field(gt=0)] = 1.2,
        coolest: Annotated[float, Field(gt=0)] = 0.1,
        decay: Annotated[float, Field(gt=0)] = 400.0,
        piece: Annotated[int, Field(ge=1)] = 32,
    ) -> None:
        self._schedule = hottest, coolest, decay, piece

    async def __call__(self, env: TextEnv, engine: Engine, chat: Chat, **episode: Any) -> Trajectory:
        """Play an episode; see `agent.rollout.rollout`."""
        return await rollout(env, Annealed(engine, chat.tokenizer, *self._schedule), chat, **episode)
