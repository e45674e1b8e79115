"""Episodes on disk."""

import datetime
import json

import gymnasium
import pytest

from solostream.envs import Task, ToolEnv
from solostream.envs.recorder import RecordEpisodes, read_episodes
from solostream.errors import UserError

ROWS = [{"id": "one", "prompt": "Сколько? 🙂", "answer": "42"}]
CALL, ANSWER = "```python\nreply:é\n```\n", "\\boxed{42}"


def make():
    return ToolEnv(ROWS, sandbox="scripted:Scripted", system_prompt="")


async def test_finished_episodes_are_recorded_and_read_back(tmp_path):
    path = tmp_path / "deep" / "episodes.jsonl"
    env = RecordEpisodes(make(), path)
    env.reset(seed=0)
    env.step(CALL)
    env.reset(seed=0)  # half-way: not recorded
    env.step(CALL)
    env.step(ANSWER)
    await env.areset(seed=0)
    await env.astep("void")
    core = env.unwrapped
    first, second = read_episodes(path)
    assert first["task"] == {**ROWS[0], "source": "tasks", "meta": {"row": ROWS[0]}}
    assert first["opening"] == [{"role": "user", "content": "Сколько? 🙂"}]
    assert (first["reward"], first["ending"], first["answer"]) == (1.0, "answered", "42")
    call, answer = first["steps"]
    assert (call.text, call.calls[0].code, call.executions[0].stdout) == (CALL, "reply:é", "é\n")
    assert call.messages == ({"role": "tool", "name": "python", "content": "é"},)
    assert answer.answer == "42"
    assert tuple(second["steps"]) == tuple(core.trace)
    env.close()


def test_a_torn_last_line_is_passed_over_any_other_is_an_error(tmp_path):
    path = tmp_path / "episodes.jsonl"
    env = RecordEpisodes(make(), path)
    env.reset()
    env.step(ANSWER)
    env.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert len(list(read_episodes(path))) == 1
    path.write_bytes(whole[:50] + b"\n" + whole)
    with pytest.raises(UserError, match="line 1"):
        list(read_episodes(path))


def test_whatever_a_task_holds_is_recorded(tmp_path):
    task = Task("one", "half \ud83d", "42", meta={"when": datetime.date(2025, 2, 6)})
    env = RecordEpisodes(ToolEnv([task], sandbox="scripted:Scripted", system_prompt=""), tmp_path / "a.jsonl")
    env.reset()
    env.step(ANSWER)
    env.close()
    (episode,) = read_episodes(tmp_path / "a.jsonl")
    assert episode["task"]["meta"] == {"when": "2025-02-06"}
    assert episode["task"]["prompt"] == "half ?"


def test_it_is_a_proper_wrapper(tmp_path):
    made = gymnasium.make("solostream/Math-v0", tasks=ROWS, sandbox="scripted:Scripted")
    env = RecordEpisodes(made, str(tmp_path / "a.jsonl"))
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(again, RecordEpisodes)
    again.reset()
    again.step(ANSWER)
    again.close()
    env.close()
    assert json.loads((tmp_path / "a.jsonl").read_text())["answer"] == "42"
    with pytest.raises(UserError, match="records a ToolEnv"):
        RecordEpisodes(gymnasium.make("CartPole-v1"), str(tmp_path / "b.jsonl"))
