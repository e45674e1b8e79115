"""The shell as a tool, in the real sandbox: its state, what it says of its commands, and where they cannot run."""

from __future__ import annotations

import json

import pytest

from solostream.envs.rewards.episode import Episode
from solostream.envs.rewards.folder import folder
from solostream.envs.text.observation import observe
from solostream.envs.tools.bash import Bash
from solostream.envs.types import Task
from solostream.envs.workspace import Workspace


@pytest.fixture
async def workspace():
    space = Workspace("fork", {}, timeout_s=20)
    space.begin({"work/a.txt": "one\n", "work/logs/x.log": "E\n", "beside.txt": "not the shell's"})
    yield space
    await space.close()


async def run(workspace, *commands):
    """(what the policy reads, status) of the last command."""
    for command in commands:
        done = await Bash()({"command": command}, workspace)
    return observe(done), done


async def test_the_state_stays(workspace):
    await run(workspace, "cd logs; X=5; export Y=$'a\nb'; f() { echo f$X; }; alias l='echo alias'; shopt -s nullglob")
    said, done = await run(workspace, 'basename $PWD; echo "$Y"; f; l; echo *.none; sh -c \'echo "$Y" | wc -l\'')
    assert said == "logs\na\nb\nf5\nalias\n\n2"
    assert done.ok
    assert json.loads(done.display[0]["application/json"])["folder"] == "logs"
    # After an exit it is there, too, and the Python of the session is the one that it was.
    assert (await run(workspace, "X=6; exit 3"))[0] == "exit status: 3"
    assert (await run(workspace, "echo $X"))[0] == "6"
    assert (await workspace.run("y = 1\ny")).result == "1"


async def test_what_it_says_of_files(workspace):
    assert (await run(workspace, "ls"))[0] == "a.txt\nlogs"
    said, done = await run(workspace, "echo two > b.txt; echo more >> a.txt; rm -r logs; mkdir d; touch d/{1..9}")
    assert said == (
        "created: b.txt, d/, d/1, d/2, d/3, d/4, d/5, d/6 and 3 more\nchanged: a.txt\ndeleted: logs/, logs/x.log"
    )
    assert len(json.loads(done.display[0]["application/json"])["created"]) == 11


async def test_what_goes_wrong_is_said_alike_each_time(workspace):
    said, done = await run(workspace, "echo before; cat nope")
    assert said == "before\ncat: nope: No such file or directory\nexit status: 1"
    assert (done.ok, done.error.name, done.error.message) == (False, "exit status", "1")
    first, second = [(await run(workspace, "if"))[0] for _ in range(2)]
    assert first == second
    assert "syntax error" in first
    assert "/tmp/tmp" not in first
    assert (await run(workspace, "read line; echo got:$line"))[0] == "got:"  # nobody answers
    assert "'; rm -rf x; \"é" in (await run(workspace, "cat <<'end'\n'; rm -rf x; \"é\nend"))[0]


async def test_a_command_that_hangs_is_stopped_with_all_that_it_started():
    space = Workspace("fork", {}, timeout_s=3)
    try:
        await run(space, "X=7")
        said, done = await run(space, "echo begun; sleep 300 | cat")
        assert said == "begun\nTimeoutError: the command ran too long and was stopped"
        assert done.status == "timeout"
        if done.state_kept:
            assert (await run(space, "echo $X; pgrep -c sleep || true"))[0].splitlines()[0] == "7"
            assert "0" in (await run(space, "ps ax -o stat,args | grep -c '[s]leep 300' || true"))[0]
    finally:
        await space.close()


@pytest.mark.parametrize(
    ("commands", "value", "why"),
    [
        (["sort -u a.txt > b.txt; rm -r logs"], 1.0, "the folder is as wanted"),
        (["sort -u a.txt > b.txt"], 0.0, "not as wanted: work/logs/x.log"),
        (["true"], 0.0, "not as wanted: work/b.txt, work/logs/x.log"),
        (["mkdir b.txt; rm -r logs"], 0.0, "not as wanted: work/b.txt"),
    ],
)
async def test_the_reward_looks_into_the_folder(workspace, commands, value, why):
    wanted = {"work/a.txt": "one\n", "work/b.txt": "one\n", "work/logs/x.log": None}
    await run(workspace, *commands)
    task = Task("t", "?", "done", meta={"wanted": wanted})
    score = await folder(Episode(task, (), "done", "answered", 4), workspace)
    assert (score.value, score.why) == (value, why)


async def test_without_wanted_files_the_answer_counts(workspace):
    episode = Episode(Task("t", "?", "7"), (), "7.0", "answered", 4)
    assert (await folder(episode, workspace)).value == 1.0
