"""Any Gymnasium environment of text as a `TextEnv`, and wrappers that count, played by a real rollout."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Discrete, Text

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Sampling
from solostream.agent.engines.scripted import ScriptedEngine
from solostream.agent.rollout import rollout
from solostream.agent.trajectory import Trajectory
from solostream.envs import making
from solostream.envs.text_env import TextEnv, TextEnvAdapter, seeds
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Task
from solostream.errors import UserError


class Guess(gymnasium.Env):
    """Guess a number below 8 in three turns; plain Gymnasium, nothing of ours."""

    observation_space = Text(80)
    action_space = Text(80)

    def __init__(self, below: int = 8) -> None:
        self.below = below

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        super().reset(seed=seed)
        self.secret, self.left = int(self.np_random.integers(self.below)), 3
        return f"Guess a number below {self.below}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        self.left -= 1
        if action.strip() == str(self.secret):
            return "right", 1.0, True, False, {}
        return f"not {action.strip()}, {self.left} left", 0.0, False, self.left == 0, {}


class Shaped(gymnasium.Wrapper):
    """Shouts what is seen, and halves the reward."""

    def reset(self, **kwargs: Any) -> tuple[str, dict]:
        observation, info = self.env.reset(**kwargs)
        return observation.upper(), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        observation, reward, *rest = self.env.step(action)
        return observation.upper(), reward / 2, *rest  # type: ignore[return-value]


TASKS = [Task("t", "what is 6 times 7?", "42")]
CALL, ANSWER = "```python\nprint(6 * 7)\n```", "so \\boxed{42}"


def play(env: TextEnv, *turns: str, task_id: str) -> Trajectory:
    said = itertools.chain(turns, itertools.repeat("?"))
    engine = ScriptedEngine(lambda text: next(said))
    return asyncio.run(
        rollout(env, engine, Chat(engine.tokenizer), sampling=Sampling(200), max_tokens=4000, task_id=task_id)
    )


def seen(trajectory: Trajectory) -> str:
    return "\n".join(turn.text for turn in trajectory.turns if turn.role in ("user", "tool"))


def test_a_plain_environment_is_played_by_its_seeds() -> None:
    env = making.as_text_env(Guess())
    assert isinstance(env, TextEnvAdapter)
    assert isinstance(env, TextEnv)
    env.env.reset(seed=17)
    secret = env.env.secret
    wrong = (secret + 1) % 8
    got = play(env, str(wrong), str(secret), task_id="seed/17")
    assert (got.reward, got.ending, got.task_id, got.answer) == (1.0, "answered", "seed/17", str(secret))
    assert f"not {wrong}, 2 left" in seen(got)
    assert not got.void
    lost = play(env, *3 * [str(wrong)], task_id="seed/17")
    assert (lost.reward, lost.ending) == (0.0, "turn_limit")
    assert [task.id for task in seeds(env.env, 3, 2)] == ["seed/3", "seed/4"]
    with pytest.raises(UserError, match="named by their seeds"):
        env.reset(options={"task_id": "t"})


def test_a_wrapper_of_a_plain_environment_counts() -> None:
    env = making.as_text_env(Shaped(Guess()))
    env.env.reset(seed=5)
    got = play(env, "9", str(env.env.unwrapped.secret), task_id="seed/5")
    assert got.reward == 0.5
    assert "GUESS A NUMBER BELOW 8." in seen(got)
    assert "NOT 9, 2 LEFT" in seen(got)


def test_a_wrapper_of_a_tool_env_counts() -> None:
    """Reward and observations are the wrapper's, calls and executions the environment's."""
    plain, wrapped = ToolEnv(TASKS), making.as_text_env(Shaped(ToolEnv(TASKS, show_budget=True)))
    assert making.as_text_env(plain) is plain
    one, two = (play(env, CALL, ANSWER, task_id="t") for env in (plain, wrapped))
    assert (one.reward, two.reward) == (1.0, 0.5)
    assert (two.n_calls, two.code_pass_ratio, two.ending, two.answer) == (1, 1.0, "answered", "42")
    assert "WHAT IS 6 TIMES 7?" in seen(two)
    assert "TURNS LEFT" in seen(two)
    assert "what is 6 times 7?" in seen(one)
    for env in (plain, wrapped):
        env.close()


def test_a_time_limit_of_gymnasium_ends_the_episode() -> None:
    env = making.as_text_env(gymnasium.wrappers.TimeLimit(ToolEnv(TASKS), 1))
    assert play(env, CALL, ANSWER, task_id="t").ending == "turn_limit"
    env.close()


def test_by_name_with_options_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the current folder; what the run gives is left out where the environment takes none of it."""
    (tmp_path / "guess_by_name.py").write_text(
        "from test_text_env import Guess, Shaped\ndef shaped(below: int = 8):\n    return Shaped(Guess(below))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    env = making.make("guess_by_name:shaped", {"below": 3, "tasks": TASKS, "sandbox": "fork", "max_turns": 4})
    assert env.reset(seed=1)[0] == "GUESS A NUMBER BELOW 3."
    assert not making.takes_tasks("guess_by_name:Guess")
    assert making.takes_tasks("solostream/Math-v0")
    with pytest.raises(UserError, match="has no option 'belov'; did you mean 'below'"):
        making.make("guess_by_name:shaped", {"belov": 3})
    with pytest.raises(UserError, match="has no 'Gues'; did you mean 'Guess'"):
        making.make("guess_by_name:Gues", {})


def test_what_is_no_text_is_refused() -> None:
    class Numbers(Guess):
        action_space = Discrete(3)

    with pytest.raises(UserError, match=r"the actions of .* are Discrete\(3\)"):
        making.as_text_env(Numbers())
    with pytest.raises(UserError, match="is no environment"):
        making.as_text_env(3)
