"""Gymnasium environments for agents that write code: text in, text and a reward out."""

from typing import Any

from gymnasium import register

from solostream.envs.rewards.grading import equivalent
from solostream.envs.text.answers import final_answer
from solostream.envs.text.parse import parse
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Step, Task, ToolCall

__all__ = ["Step", "Task", "ToolCall", "ToolEnv", "equivalent", "final_answer", "parse", "register"]


def _register(name: str, **defaults: Any) -> None:
    register(
        f"solostream/{name}",
        entry_point="solostream.envs.tool_env:ToolEnv",
        vector_entry_point="solostream.envs.vector_env:ToolVectorEnv",
        kwargs=defaults,
    )


_register("Math-v0")
_register("Arithmetic-v0", tasks={"generate": 1000, "seed": 0, "levels": [1]}, system_prompt="")
_register("MathRetrieval-v0", tasks="lookup", tools=("python", "calculator", "search"), syntax="hermes")
_register(
    "Shell-v0",
    tasks={"load": "shell:all", "split": "train"},
    tools=("bash",),
    syntax="hermes",
    reward="folder",
)
_register(
    "CodeTests-v0",
    tasks={"load": "functions:all", "split": "train"},
    syntax="hermes",
    answer="tag",
    reward="code_tests",
)
_register(
    "Search-v0",
    tasks={"load": "python-docs:all", "split": "train"},
    tools=({"tool": "search", "corpus": "python-docs"},),
    syntax="hermes",
)
