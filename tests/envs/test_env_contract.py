"""What every registered environment promises, with a scripted and with a real sandbox; Gymnasium's checker first."""

import asyncio
import contextlib
import json
import subprocess
import sys
import warnings

import gymnasium
import psutil
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

import solostream.envs
from solostream.envs import ToolEnv
from solostream.envs.space import UnicodeText

IDS = sorted(name for name in gymnasium.registry if name.startswith("solostream/"))
SANDBOXES = ["scripted:Scripted", "fork"]
GRADED_BY_RUNNING = {"solostream/CodeTests-v0", "solostream/Shell-v0"}  # which no scripted sandbox does
CALLS = {
    "fence": "```python\nprint(6 * 7)\n```\n",
    "hermes": '<tool_call>{"name": "python", "arguments": {"code": "print(6 * 7)"}}</tool_call>',
}


@pytest.fixture(params=[(name, sandbox) for name in IDS for sandbox in SANDBOXES], ids=lambda p: "-".join(p))
def env(request):
    name, sandbox = request.param
    made = gymnasium.make(name, sandbox=sandbox)
    yield made
    made.close()


def test_the_names_that_others_rely_on():
    assert {"solostream/Math-v0", "solostream/Arithmetic-v0", "solostream/MathRetrieval-v0"} <= set(IDS)
    assert solostream.envs.register is gymnasium.register


def test_gymnasiums_checker_is_content(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_same_seed_same_text_same_everything(env):
    """info included: no timing, no container id, no path may enter it."""
    core = env.unwrapped
    runs = []
    for _ in range(2):
        opened = env.reset(seed=5)
        call, answer = solution(core)
        runs.append([opened, env.step(call), env.step(answer)])
    assert data_equivalence(runs[0], runs[1], exact=True)
    assert runs[0][-1][2:4] == (True, False)
    scripted = "scripted" in str(core.spec.kwargs["sandbox"])
    assert runs[0][-1][1] == 1.0 or (scripted and env.spec.id in GRADED_BY_RUNNING)


def solution(core):
    """A call, and a turn with the right answer: where a task says how it is solved, the call does it."""
    call = CALLS["hermes" if core.tools else "fence"]
    if "solution" in core.task.meta:
        said = {"name": "bash", "arguments": {"command": core.task.meta["solution"]}}
        call = f"<tool_call>{json.dumps(said)}</tool_call>"
    if core.spec.id == "solostream/CodeTests-v0":
        return call, f"<answer>\n```python\n{core.task.answer}```\n</answer>"
    return call, f"\\boxed{{{core.task.answer}}}"


def test_the_spec_survives_json_and_makes_the_same_environment(env):
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.reset(seed=1)[0] == env.reset(seed=1)[0]
    again.close()


def test_tasks_survive_the_spec_with_all_they_hold():
    tasks = [solostream.envs.Task("one", "1+1?", "2", "sums", {"min_calls": 1})]
    spec = gymnasium.make("solostream/Math-v0", tasks=tasks).spec
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert list(again.unwrapped.tasks) == tasks


def test_found_through_its_package():
    """`make("package:ns/Name-v0")` in a process that has imported nothing of ours."""
    code = "import gymnasium; print(gymnasium.make('envs:solostream/Arithmetic-v0').reset(seed=0)[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    env = gymnasium.make("solostream/Arithmetic-v0")
    assert done.stdout.strip() == env.reset(seed=0)[0]


def test_the_real_sandbox_runs_the_code():
    env = ToolEnv(sandbox="fork")
    env.reset(seed=0)
    assert env.step("```python\nx = 6\nprint(x * 7)\n```\n")[0] == "42"
    assert env.step("```python\nx\n```\n")[0] == "6"
    assert "ZeroDivisionError" in env.step("```python\n1 / 0\n```\n")[0]
    env.close()


def test_a_fork_server_that_is_killed_costs_no_episode():
    """The call is run again on another one, after those that built the episode's state."""
    env = ToolEnv(sandbox="fork")
    env.reset(seed=0)
    before = set(psutil.Process().children(recursive=True))
    env.step("```python\nx = 41\n```\n")
    for process in set(psutil.Process().children(recursive=True)) - before:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert env.step("```python\nprint(x + 1)\n```\n")[0] == "42"
    env.close()


def test_text_space():
    space = UnicodeText(seed=1)
    samples = [space.sample() for _ in range(200)]
    assert all(sample in space for sample in samples)
    assert max(map(ord, "".join(samples))) > 0xFFFF
    assert "\n" in "".join(samples)
    assert "\ud800" not in space
    assert b"bytes" not in space
    assert "abc" not in UnicodeText(2)
    assert UnicodeText(2) != space == UnicodeText()
    assert space.from_jsonable(space.to_jsonable(samples)) == samples
    again = UnicodeText(seed=1)
    assert [again.sample() for _ in range(200)] == samples


async def test_a_cancelled_step_leaves_the_environment_usable():
    """Group-free training cancels the episodes that it no longer needs, in the middle of their calls."""
    env = ToolEnv(sandbox="fork")
    await env.areset(seed=0)
    await env.astep("```python\nx = 1\n```\n")
    step = asyncio.create_task(env.astep("```python\nimport time\ntime.sleep(100)\n```\n"))
    await asyncio.sleep(0.3)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    with pytest.raises(gymnasium.error.ResetNeeded):
        await env.astep("x")
    await env.areset(seed=0)
    assert "NameError" in (await env.astep("```python\nprint(x)\n```\n"))[0]
    await env.aclose()
