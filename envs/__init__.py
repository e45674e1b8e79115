"""Gymnasium environments for agents that write code: text in, text and a reward out."""

from typing import Any

from gymnasium import register

from envs.parse import parse
from envs.tool_env import ToolEnv
from envs.types import Step, Task, ToolCall

__all__ = ["Step", "Task", "ToolCall", "ToolEnv", "parse", "register"]


def _register(name: str, **defaults: Any) -> None:
    register(
        f"solostream/{name}",
        entry_point="envs.tool_env:ToolEnv",
        vector_entry_point="envs.vector:ToolVectorEnv",
        kwargs=defaults,
    )


_register("Math-v0")
_register("Arithmetic-v0", tasks={"generate": 1000, "seed": 0, "levels": [1]}, system_prompt="")
_register("MathRetrieval-v0", tasks="lookup", tools=("python", "calculator", "search"), syntax="hermes")
