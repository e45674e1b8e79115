"""Who plays the samples of an evaluation: an engine that samples tokens, or a chat endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from solostream.agent.chat_reply import Parameters, Refused
from solostream.agent.chat_rollout import chat_rollout
from solostream.agent.chat_template import Chat
from solostream.agent.engine import Engine, EngineError
from solostream.agent.engines.spec import open_engine
from solostream.agent.rollout import rollout, seed_of
from solostream.agent.trajectory import Trajectory
from solostream.envs.types import Task
from solostream.errors import UserError
from solostream.evaluation.options import EvalOptions, SamplingPreset
from solostream.retry import retry

if TYPE_CHECKING:  # at run time where one is opened: `openai` is an extra
    from solostream.agent.engines.chat_endpoint import ChatEndpoint

ENGINE_TRIES = 3  # of one sample, with a pause between them, before the evaluation stops
PAUSE_S = 1.0  # before the first other try, doubled from one to the next
FAILURES = 8  # samples in a row that an endpoint does not answer, before the evaluation stops


class Player(Protocol):
    """tokenizer: of its environments; None: they count tokens approximately. waiting: requests that wait for a rate
    limit. trouble: why the last sample that came to nothing did, else "". thought_opener: see `Chat`.
    """

    tokenizer: Any
    thought_opener: str

    @property
    def waiting(self) -> int:
        """Requests that wait for a rate limit."""

    @property
    def trouble(self) -> str:
        """Why the last sample that came to nothing did; "" where all came to something."""

    async def play(self, env: Any, task: Task, sample: int) -> Trajectory | None:
        """One sample; None where the server did not answer this one. Raises EngineError, UserError."""
        ...

    async def close(self) -> None:
        """Give back the engine or the connections."""


async def open_player(options: EvalOptions, on_wait: Callable[[], None]) -> Player:
    """The player of settled options. on_wait: called when `waiting` changes. Raises UserError, EngineError."""
    play = options.strategy()
    if options.endpoint:
        from solostream.agent.engines.chat_endpoint import ChatEndpoint

        endpoint = ChatEndpoint(options.model.removeprefix("chat:"), key=options.api_key_env)
        endpoint.on_wait = on_wait
        return EndpointPlayer(endpoint, options.parameters(), options.max_tokens, options.seed)
    engine, tokenizer = await open_engine(
        options.model,
        tokenizer=options.tokenizer,
        slots=options.concurrency,
        max_len=options.max_tokens,
        seed=options.seed or 0,
        api_key_env=options.api_key_env,
        check=options.chat,
    )
    try:
        return EnginePlayer(engine, options.chat(tokenizer), options.sampling(), options.seed or 0, play)
    except BaseException:
        await engine.close()
        raise


class EnginePlayer:
    """Plays one sample, with another try after an engine's failure."""

    waiting, trouble = 0, ""

    def __init__(self, engine: Engine, chat: Chat, preset: SamplingPreset, seed: int, strategy: Any = rollout) -> None:
        """strategy: what plays an episode (see `agent.rollout.rollout`)."""
        self.tokenizer, self.thought_opener = chat.tokenizer, chat.thought_opener
        self._engine, self._chat, self._seed, self._strategy = engine, chat, seed, strategy
        self._max_tokens = min(preset.max_tokens, getattr(engine, "max_len", preset.max_tokens))
        self._sampling = preset.turn(self._max_tokens)

    async def play(self, env: Any, task: Task, sample: int) -> Trajectory:
        """A rollout with a seed of its own; engine errors get `ENGINE_TRIES` tries. Raises EngineError, UserError."""
        seed = seed_of(self._seed, task.id, sample)
        attempt = partial(
            self._strategy,
            env,
            self._engine,
            self._chat,
            sampling=self._sampling,
            max_tokens=self._max_tokens,
            task_id=task.id,
            seed=seed,
        )
        return await retry(attempt, EngineError, ENGINE_TRIES - 1, pause_s=PAUSE_S)

    async def close(self) -> None:
        """Close the engine."""
        await self._engine.close()


class EndpointPlayer:
    """Plays one sample. One that the endpoint does not answer ends itself alone; many in a row end the evaluation."""

    tokenizer, thought_opener = None, ""

    def __init__(
        self, endpoint: ChatEndpoint, parameters: Parameters, max_tokens: int | None, seed: int | None
    ) -> None:
        """seed: None: none is sent."""
        self.trouble = ""
        self._endpoint, self._parameters, self._max_tokens, self._seed = endpoint, parameters, max_tokens, seed
        self._failures = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for the endpoint's rate limit."""
        return self._endpoint.waiting

    async def play(self, env: Any, task: Task, sample: int) -> Trajectory | None:
        """One conversation; None where the endpoint did not answer. Raises EngineError when too many in a row fail."""
        seed = seed_of(self._seed or 0, task.id, sample)
        sent = self._parameters if self._seed is None else replace(self._parameters, seed=seed & 0x7FFFFFFF)
        for attempt in range(ENGINE_TRIES):
            try:
                played = await chat_rollout(
                    env, self._endpoint, parameters=sent, max_tokens=self._max_tokens, task_id=task.id, seed=seed
                )
            except Refused as error:
                self._fail(error)
                return None
            except EngineError as error:
                if attempt == ENGINE_TRIES - 1 or not self._endpoint.answered:
                    self._fail(error)
                    return None
                await asyncio.sleep(PAUSE_S * 2**attempt)
            else:
                self._failures = 0
                return played
        raise AssertionError("the last attempt returns")

    def _fail(self, error: EngineError) -> None:
        """Raises what is wrong once it is no matter of single samples."""
        self.trouble = str(error)
        self._failures += 1
        if self._failures < FAILURES:
            return
        raise UserError(self.trouble) if isinstance(error, Refused) else error

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()
