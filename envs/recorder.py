"""`RecordEpisodes`: a wrapper that appends every finished episode to a JSON-lines file: text, calls, executions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Grading, Step, ToolCall
from solostream.errors import UserError
from solostream.sandbox.types import Execution


class RecordEpisodes(gymnasium.Wrapper[str, str, str, str], RecordConstructorArgs):
    """Wraps any environment whose core is a `ToolEnv`. An episode that is reset or closed half-way is not recorded.

    Several processes may write to one path: a line is one `write` in append mode.
    """

    def __init__(self, env: gymnasium.Env[str, str], path: str | Path) -> None:
        RecordConstructorArgs.__init__(self, path=str(path))
        super().__init__(env)
        if not isinstance(env.unwrapped, ToolEnv):
            raise UserError(f"RecordEpisodes records a ToolEnv, not {type(env.unwrapped).__name__}")
        self._core: ToolEnv = env.unwrapped
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        """As the environment's `step`; an episode that ends with it is written down."""
        result = super().step(action)
        self._record(result[2] or result[3])
        return result

    async def areset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        """As `ToolEnv.areset`."""
        return await self._core.areset(**kwargs)

    async def astep(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """As `ToolEnv.astep`; an episode that ends with it is written down."""
        result = await self._core.astep(action)
        self._record(result[2] or result[3])
        return result

    def _record(self, over: bool) -> None:
        if over:
            # default: a task's meta may hold what its data set held, a date for example.
            line = json.dumps(episode_record(self._core), ensure_ascii=False, separators=(",", ":"), default=str) + "\n"
            with self._path.open("ab", buffering=0) as file:
                file.write(line.encode(errors="replace"))


def episode_record(env: ToolEnv) -> dict[str, Any]:
    """The finished episode of `env` in plain JSON types: task, opening messages, steps, reward, ending, answer."""
    assert env.task is not None
    last = env.trace[-1]
    return {
        "task": {**asdict(env.task), "meta": dict(env.task.meta)},
        "opening": [dict(message) for message in env.opening],
        "steps": [_step_record(step) for step in env.trace],
        "reward": last.reward,
        "ending": last.ending,
        "answer": last.answer,
    }


def _step_record(step: Step) -> dict[str, Any]:
    return {
        "text": step.text,
        "calls": [call.to_dict() for call in step.calls],
        "executions": [execution and execution.to_dict() for execution in step.executions],
        "messages": [dict(message) for message in step.messages],
        "reward": step.reward,
        "ending": step.ending,
        "answer": step.answer,
        "grading": step.grading and step.grading.to_dict(),
    }


def _step(record: dict[str, Any]) -> Step:
    return Step(
        text=record["text"],
        calls=tuple(ToolCall.from_dict(call) for call in record["calls"]),
        executions=tuple(execution and Execution.from_dict(execution) for execution in record["executions"]),
        messages=tuple(record["messages"]),
        reward=record["reward"],
        ending=record["ending"],
        answer=record["answer"],
        grading=record["grading"] and Grading.from_dict(record["grading"]),
    )


def read_episodes(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a file, with `steps` as `Step`s again; a last line that was cut off is passed over.

    Raises UserError with the line number for any other line that is no episode.
    """
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                yield {**record, "steps": [_step(step) for step in record["steps"]]}
            except (ValueError, KeyError, TypeError):
                if line.endswith(b"\n"):
                    raise UserError(f"{path}, line {number}: no recorded episode") from None
