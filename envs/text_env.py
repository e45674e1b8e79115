"""`TextEnv`: all that rollouts, training and evaluation use of an environment; `TextEnvAdapter` makes one of any other.

`ToolEnv` is a `TextEnv`. Any Gymnasium environment whose observations and actions are text becomes one by the adapter:
its observation is the user's message, the policy's turn is the action, and an episode is named by the seed it was reset
with ("seed/17"), so that a tracker can follow how well each is solved. Wrappers count: what a `gymnasium.Wrapper` does
to observation, reward or ending is what a policy sees and learns from, around a `ToolEnv` as around any other.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import gymnasium

from solostream.envs.data import Tasks
from solostream.envs.types import Step, Task
from solostream.errors import UserError

HELD_OUT = 1_000_000  # seeds from here on are for evaluation
EVALUATED = 100  # of them, where nobody says how many


@runtime_checkable
class TextEnv(Protocol):
    """One episode at a time. tasks: what `areset` can be asked for. trace: a `Step` for each turn so far."""

    @property
    def tasks(self) -> Tasks:
        """The problems by id, as `reset(options={"task_id": …})` takes them."""

    @property
    def task(self) -> Task | None:
        """The problem of the running episode; None before the first reset, and where there are only seeds."""

    @property
    def trace(self) -> list[Step]:
        """The steps of the running episode so far."""

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """JSON schemas for the chat template; empty: none are told."""
        ...

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that may end a turn, as hints for the engine; `complete` decides."""
        ...

    def complete(self, text: str) -> int | None:
        """Where a turn that begins so ends by itself; None: it may go on."""
        ...

    async def areset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """options["task_id"]: the task, else the seed draws one. info has "task_id", and "messages" that open a chat.

        Raises SandboxError, UserError.
        """
        ...

    async def astep(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One turn: as `gymnasium.Env.step`; info["messages"] answers it, and a `Step` is added to `trace`.

        Raises SandboxError: the episode is then no data.
        """
        ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """As `areset`, for callers without an event loop."""

    def close(self) -> None:
        """As `aclose`, for callers without an event loop."""

    async def aclose(self) -> None:
        """Give back what it holds, above all its sandbox sessions. May be called twice."""


@runtime_checkable
class ForkableEnv(Protocol):
    """A `TextEnv` of which a strategy that branches can make copies."""

    async def fork(self) -> TextEnv:
        """A copy in the middle of its episode: both go on, each by itself. Raises SandboxError, UserError."""
        ...


class TextEnvAdapter:
    """Makes `env` a `TextEnv`, with all of its wrappers. Raises UserError where observations or actions are no text."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        for name, space in (("observation", env.observation_space), ("action", env.action_space)):
            if not isinstance(space, gymnasium.spaces.Text) and not hasattr(env.unwrapped, "areset"):
                raise UserError(f"the {name}s of {env} are {space}: a policy writes and reads text (gymnasium's Text)")
        self.env = env
        self._core: Any = env.unwrapped  # a ToolEnv knows of calls and tasks; another environment of neither
        self._native = isinstance(self._core, TextEnv)
        self.task: Task | None = None
        self.trace: list[Step] = []

    @property
    def tasks(self) -> Tasks:
        """The inner environment's; one that has none draws its episodes from seeds, which are its tasks."""
        return self._core.tasks if self._native else seeds(self.env, HELD_OUT, EVALUATED)

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """The inner environment's tools; none where it knows of none."""
        return self._core.tools if self._native else ()

    @property
    def stops(self) -> tuple[str, ...]:
        """The inner environment's hints; none where it has none."""
        return self._core.stops if self._native else ()

    def complete(self, text: str) -> int | None:
        """As the inner environment says; one that has no syntax leaves the end of a turn to the engine."""
        return self._core.complete(text) if self._native else None

    def fit(self, syntax: str, opens_thought: bool) -> None:
        """As `ToolEnv.fit`, where the environment inside has it."""
        if hasattr(self._core, "fit"):
            self._core.fit(syntax, opens_thought)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Through all wrappers. A "task_id" of an environment without tasks is the seed of its episode."""
        wanted = (options or {}).get("task_id")
        if not self._native and wanted is not None:
            seed, options = seed_in(wanted), None
        observation, info = self.env.reset(seed=seed, options=options)
        if self._native:
            self.task = self._core.task
            opening = info["messages"]
            if observation != self.task.prompt:  # a wrapper's: it takes the place of the question
                opening = (*opening[:-1], {**opening[-1], "content": observation})
        else:
            self.task = Task(wanted or f"seed/{seed}", observation, "", source=str(self.env.spec and self.env.spec.id))
            opening = ({"role": "user", "content": observation},)
        self.trace = []
        return observation, {**info, "messages": opening, "task_id": self.task.id}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Through all wrappers; the step is added to `trace`."""
        observation, reward, terminated, truncated, info = self.env.step(text)
        over = terminated or truncated
        if self._native:
            step = replace(self._core.trace[-1], reward=float(reward))
            if over and step.ending is None:  # a wrapper ended it, a time limit for example
                step = replace(step, ending="answered" if terminated else "turn_limit")
            messages = step.messages
            if observation != "\n".join(str(message["content"]) for message in messages):
                first = messages[0] if messages else {"role": "user"}
                messages = ({**first, "content": observation},)
        else:  # whatever is written acts: no turn is void
            messages = () if over else ({"role": "user", "content": observation},)
            ending = ("answered" if terminated else "turn_limit") if over else None
            step = Step(text, (), (), messages, float(reward), ending, answer=text)  # type: ignore[arg-type]
        self.trace.append(replace(step, messages=messages))
        return observation, float(reward), terminated, truncated, {**info, "messages": messages}

    async def areset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """As `reset`, in a thread."""
        return await asyncio.to_thread(self.reset, seed=seed, options=None if options is None else dict(options))

    async def astep(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """As `step`, in a thread."""
        return await asyncio.to_thread(self.step, text)

    async def fork(self) -> TextEnvAdapter:
        """A copy in the middle of the episode, state of the wrappers and all. Raises UserError where Python cannot
        copy it.
        """
        try:
            known = {id(self._core): await self._core.fork()} if hasattr(self._core, "fork") else {}
            twin = TextEnvAdapter(copy.deepcopy(self.env, known))
        except (TypeError, copy.Error) as error:
            raise UserError(f"{self.env} cannot be copied ({error}), so its episodes cannot branch") from None
        twin.task, twin.trace = self.task, list(self.trace)
        return twin

    def close(self) -> None:
        """Close the environment through all wrappers."""
        self.env.close()

    async def aclose(self) -> None:
        """As `close`, in a thread."""
        await asyncio.to_thread(self.close)


def seeds(env: gymnasium.Env[Any, Any], first: int, count: int) -> Tasks:
    """The episodes of `count` seeds as tasks; their prompts are what a reset with each shows."""
    return Tasks(Task(f"seed/{i}", str(env.reset(seed=i)[0]), "") for i in range(first, first + count))


def seed_in(task_id: str) -> int:
    """Raises UserError for an id that names no seed."""
    word, _, number = task_id.partition("/")
    if word != "seed" or not number.isdecimal():
        raise UserError(f"this environment has no task {task_id!r}: its episodes are named by their seeds, 'seed/17'")
    return int(number)
