"""Vector environments: ours in every autoreset mode against Gymnasium's own, and a trap in its shared memory."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from scripted import OPEN

from solostream.envs.tool_env import ToolEnv
from solostream.errors import SandboxError, UserError

ROWS = [{"id": str(i), "prompt": f"Πρόβλημα {i} 🙂 " + "long " * i, "answer": str(i)} for i in range(40)]
CALL, RIGHT, VOID = "```python\nreply:é🙂\n```\n", "\\boxed{7}", "I give up."


def ours(mode, n=3, **kwargs):
    settings = {"tasks": ROWS, "sandbox": "scripted:Scripted", "max_turns": 3, "autoreset_mode": mode, **kwargs}
    return gymnasium.make_vec("solostream/Math-v0", n, vectorization_mode="vector_entry_point", **settings)


def gymnasiums(mode, n=3):
    def one():
        return ToolEnv(ROWS, sandbox="scripted:Scripted", max_turns=3)

    return SyncVectorEnv([one] * n, autoreset_mode=mode)


def plain(infos):
    """Object arrays as lists: they compare by value."""
    return {
        k: plain(v) if isinstance(v, dict) else v.tolist() if isinstance(v, np.ndarray) else v for k, v in infos.items()
    }


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_autoreset_mode_does_what_gymnasiums_own_vector_environment_does(mode):
    """Step by step: observations, rewards, ends and infos, over uneven episodes."""
    turns = [(CALL, VOID, CALL), (CALL, CALL, RIGHT), (VOID, CALL, CALL), (CALL, CALL, CALL), (RIGHT, VOID, CALL)] * 2
    left, right = ours(mode), gymnasiums(mode)
    assert left.metadata["autoreset_mode"] == mode
    first, second = left.reset(seed=11), right.reset(seed=11)
    assert first[0] == second[0]
    assert plain(first[1]) == plain(second[1])
    for turn in turns:
        first, second = left.step(turn), right.step(turn)
        assert first[0] == second[0]
        assert first[0] in left.observation_space
        assert data_equivalence(first[1:4], second[1:4], exact=True)
        assert plain(first[4]) == plain(second[4])
        over = second[2] | second[3]
        if mode is AutoresetMode.DISABLED and over.any():
            with pytest.raises(UserError, match="reset_mask"):
                left.step(turn)
            first, second = (env.reset(options={"reset_mask": over.copy()}) for env in (left, right))
            assert first[0] == second[0]
            assert plain(first[1]) == plain(second[1])
    left.close()
    right.close()
    assert OPEN == []


def test_modes_by_hand():
    env = ours("SameStep", 2)
    env.reset(seed=0)
    _, rewards, terminated, _, infos = env.step((VOID, CALL))
    assert terminated.tolist() == [True, False]
    assert infos["final_info"]["void"].tolist() == [True, False]
    assert infos["final_obs"].tolist() == ["", None]
    assert infos["messages"][0][-1]["role"] == "user"  # already the next episode's
    env.close()
    env = ours("NextStep", 2)
    env.reset(seed=0)
    env.step((VOID, CALL))
    observations, rewards, terminated, _, infos = env.step(("ignored", CALL))
    assert observations[0].startswith("Πρόβλημα")
    assert rewards.tolist() == [0.0, 0.0]
    assert terminated.tolist() == [False, False]
    env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_one_failing_sandbox_lets_the_others_finish(mode):
    """The failed episode is reset as its mode has it, in the next step or by the caller; the other one goes on."""
    env = ours(mode, 2, retries=0)
    env.reset(seed=0)
    with pytest.raises(SandboxError):
        env.step(("```python\ncrash\n```\n", CALL))
    assert [len(one.trace) for one in env.envs] == [0, 1]
    if mode is AutoresetMode.DISABLED:
        with pytest.raises(UserError, match=r"episodes \[0\] are over"):
            env.step((CALL, CALL))
        env.reset(options={"reset_mask": np.array([True, False])})
    observations, _, terminated, truncated, _ = env.step((CALL, CALL))
    assert observations[1] == "é🙂"
    assert not (terminated | truncated).any()
    assert [len(one.trace) for one in env.envs] == [mode is AutoresetMode.DISABLED, 2]
    env.close()


def test_episodes_run_at_the_same_time():
    """Each call waits until all four have begun: one after the other they would wait for ever."""
    env = ours("NextStep", 4)
    env.reset(seed=0)
    assert env.step(["```python\nmeet:4\n```\n"] * 4)[0] == ("met",) * 4
    env.close()


def test_a_step_before_the_first_reset():
    env = ours("NextStep", 2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step((CALL, CALL))
    env.close()


def test_wrong_shapes_are_refused():
    env = ours("Disabled", 2)
    with pytest.raises(UserError, match="seeds for 2"):
        env.reset(seed=[1, 2, 3])
    assert env.reset(seed=np.int64(7))[0] == env.reset(seed=np.array([7, 8]).tolist())[0] == env.reset(seed=7)[0]
    with pytest.raises(UserError, match="reset_mask"):
        env.reset(options={"reset_mask": np.zeros(2, bool)})
    env.reset(seed=1)
    with pytest.raises(UserError, match="1 actions for 2"):
        env.step((CALL,))
    env.close()


class Echo(gymnasium.Env):
    """The smallest environment whose observations are Gymnasium's `Text`: it shows what was said."""

    observation_space = gymnasium.spaces.Text(64)
    action_space = gymnasium.spaces.Text(64)

    def reset(self, *, seed=None, options=None):
        return "start", {}

    def step(self, action):
        return action, 0.0, False, False, {}


def test_gymnasiums_shared_memory_returns_stale_text():
    """Why we refuse it: what `read_from_shared_memory` gave once, at the start, is handed out for ever."""
    env = AsyncVectorEnv([Echo, Echo], shared_memory=True, context="fork")
    env.reset()
    observations, *_ = env.step(("hello", "world"))
    intact = AsyncVectorEnv([Echo, Echo], shared_memory=False, context="fork")
    intact.reset()
    assert intact.step(("hello", "world"))[0] == ("hello", "world")
    env.close()
    intact.close()
    assert observations == ("0" * 64,) * 2  # the buffer as it was allocated, before any text was written


def test_shared_memory_is_refused_and_the_remedy_works():
    settings = {"tasks": ROWS, "sandbox": "scripted:Scripted", "vectorization_mode": "async"}
    with pytest.raises(UserError, match="shared_memory': False"):
        gymnasium.make_vec("solostream/Math-v0", 2, **settings)
    env = gymnasium.make_vec(
        "solostream/Math-v0", 2, vector_kwargs={"shared_memory": False, "context": "fork"}, **settings
    )
    observations, _ = env.reset(seed=0)
    assert observations == ours("NextStep", 2).reset(seed=0)[0]
    assert env.step((CALL, CALL))[0] == ("é🙂", "é🙂")
    env.close()


def test_a_real_sandbox_is_shared_by_all_episodes():
    env = ours("NextStep", 8, sandbox="fork")
    env.reset(seed=0)
    first = env.step([f"```python\nx = {i}\n```\n" for i in range(8)])[0]
    assert first == ("(no output)",) * 8
    assert env.step(["```python\nx\n```\n"] * 8)[0] == tuple(map(str, range(8)))
    env.close()
