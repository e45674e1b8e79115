"""What an episode is made of: a sandbox, a tool, environments, a reward, an answer style, a call syntax, data."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from solostream.agent.rollout import rollout
from solostream.envs.rewards.episode import Episode
from solostream.envs.text.syntax import Block, Call, find, prefixes
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Task
from solostream.envs.workspace import Workspace
from solostream.sandbox import Sandbox, open_sandbox


def quiet(**options: Any) -> Sandbox:
    """Sandbox: `fork`, whose output is short. A whole one of one's own is in examples/solostream-plugin."""
    if "limits" not in options:
        options.setdefault("output_bytes", 2000)
    return open_sandbox("fork", **options)


class Double:
    """Tool: twice a number."""

    name = "double"
    description = "Twice a number."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"number": {"type": "number"}},
        "required": ["number"],
    }

    def __init__(self, plus: int = 0) -> None:
        self.plus = plus

    async def __call__(self, arguments: Mapping[str, Any], workspace: Workspace) -> str:
        return f"{2 * arguments['number'] + self.plus:g}"


class Echo(gymnasium.Env):
    """Environment, plain Gymnasium: say the letter that is asked for; half the reward for saying it among others."""

    observation_space = Text(200)
    action_space = Text(200)

    def __init__(self, letters: str = "abc") -> None:
        self.letters = letters

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.letter = self.letters[int(self.np_random.integers(len(self.letters)))]
        return f"Say {self.letter}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        reward = 1.0 if action.strip() == self.letter else 0.5 if self.letter in action else 0.0
        return "", reward, True, False, {}


class Penalty(gymnasium.Wrapper):
    """A wrapper: a turn of more than 200 characters costs a quarter of its reward."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = self.env.step(action)
        return observation, reward * (0.75 if len(action) > 200 else 1.0), *rest  # type: ignore[return-value]


def penalised(**settings: Any) -> gymnasium.Env:
    """Environment: a ToolEnv with a wrapper around it."""
    return Penalty(ToolEnv(**settings))


def brief(episode: Episode, *, turns: int = 2) -> float:
    """Reward: 1 for an episode of few turns."""
    return float(len(episode.steps) <= turns)


def last_word(text: str) -> Iterator[tuple[str, int]]:
    """Answer style: every word; the last one counts."""
    for match in re.finditer(r"\w+", text):
        yield match.group(), match.start()


last_word.how = "End with your answer, one word."  # type: ignore[attr-defined]


class Run:
    """Call syntax: <run> code </run>."""

    name = "run"
    how = "To run Python, write it between <run> and </run>."
    opener, partial = "<run>", prefixes("<run>")
    stops = ("</run>",)
    tools = False  # it can call only `python`
    marks = ()

    def enter(self, match: re.Match[str]) -> Block:
        return Block("call", match.start(), match.end(), match.end())

    def end(self, text: str, block: Block, final: bool) -> tuple[int, int] | None:
        return find(text, "</run>", block)

    def calls(self, body: str, block: Block) -> list[Call]:
        return [Call("python", {"code": body.strip()})]


class Pairs:
    """Data layout: {"q": …, "a": …}."""

    says = "q and a"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return {"q", "a"} <= row.keys()

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"prompt": row["q"], "answer": str(row["a"])}


class Sums:
    """Data that is made: sums up to `most`; where the first number is odd, they are held out."""

    def __init__(self, what: str = "plus", seed: int = 0, *, most: int = 50) -> None:
        self.word, self.seed, self.most = what or "plus", seed, most

    def tasks(self, side: str, n: int) -> list[Task]:
        pairs = [(a, b) for a in range(side == "test", self.most, 2) for b in range(self.most)]
        chosen = random.Random(self.seed).sample(pairs, n)
        return [Task(f"{a}+{b}", f"What is {a} {self.word} {b}?", str(a + b), "sums") for a, b in chosen]


async def twice(env: Any, engine: Any, chat: Any, *, seed: int = 0, better: bool = True, **given: Any) -> Any:
    """Rollout strategy: the better of two episodes."""
    one = await rollout(env, engine, chat, seed=seed, **given)
    two = await rollout(env, engine, chat, seed=seed + 1, **given)
    return two if better and two.reward > one.reward else one
