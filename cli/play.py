"""`solostream play ENV`: a person is the agent."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium

from solostream.agent.engine import check_seed
from solostream.envs.making import build
from solostream.envs.recorder import RecordEpisodes
from solostream.envs.tool_env import Message, ToolEnv
from solostream.errors import UserError


def play(
    env: str = "solostream/Math-v0",
    /,
    *,
    sandbox: str | None = None,
    tasks: str | None = None,
    task_id: str | None = None,
    seed: int | None = None,
    record: str | None = None,
) -> int:
    """Be the agent yourself in any registered environment. Exit code 0: full reward.

    Type a turn and end it with an empty line; an open code block may hold empty lines. Ctrl-D on an empty line ends the
    game.

    Args:
        env: id of the environment; "module:namespace/Name-v0" imports the module first.
        sandbox: spec of the sandbox; default: the environment's own.
        tasks: preset, file or Hugging Face id; default: the environment's own.
        task_id: the task to play; default: the seed draws one.
        seed: of the environment's generator.
        record: append the episode to this JSON-lines file.
    """
    check_seed(seed)
    chosen: dict[str, Any] = {"sandbox": sandbox, "tasks": tasks}
    made: Any = build(env, {name: value for name, value in chosen.items() if value is not None})
    core = getattr(made, "unwrapped", made)
    if not isinstance(core, ToolEnv):
        raise UserError(f"{env} is a {type(core).__name__}; only a ToolEnv can be played here")
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal sends whatever bytes it likes
    try:
        return _game(RecordEpisodes(made, record) if record else made, core, seed, task_id)
    finally:
        made.close()


def _game(env: gymnasium.Env[str, str], core: ToolEnv, seed: int | None, task_id: str | None) -> int:
    _, info = env.reset(seed=seed, options={"task_id": task_id} if task_id else None)
    for tool in core.tools:
        told = tool["function"]
        print(f"[tool] {told['name']}({', '.join(told['parameters']['properties'])}): {told['description']}")
    _show(info["messages"])
    while (text := _turn(core)) is not None:
        _, reward, terminated, truncated, info = env.step(text)
        _show(info["messages"])
        if terminated or truncated:
            assert core.task is not None
            print(f"[{info['ending']}] answer {info['answer']!r}, expected {core.task.answer!r}, reward {reward:g}")
            return 0 if reward == 1 else 1
    print("\nstopped")
    return 1


def _show(messages: tuple[Message, ...]) -> None:
    for message in messages:
        print(f"[{message['role']}] {message['content']}")


def _turn(core: ToolEnv) -> str | None:
    """Lines up to an empty one outside an open call, or up to the end of the first call; None at the end of input."""
    print("> ", end="", flush=True)
    text = ""
    for line in sys.stdin:
        if not line.strip() and not core.inside_call(text):
            if text:
                return text
            continue
        text += line
        if core.complete(text) is not None or not line.endswith("\n"):  # Ctrl-D in the middle of a line
            return text
    return text or None
