"""`solostream play` as a person would use it: a process, text in, text out; and in a terminal."""

import os
import pty
import signal
import subprocess
import sys

import pytest


def play(text, *arguments):
    command = [sys.executable, "-m", "solostream", "play", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


def test_a_game(tmp_path):
    record = tmp_path / "games.jsonl"
    code = "```python\nfor d in range(1, 4):\n\n    print(d * 14)\n```\n"  # the empty line does not end the turn
    done = play(code + "That is it:\n\\boxed{1267}\n\n", "--task-id", "sample-01", "--record", str(record))
    assert done.returncode == 0, done.stderr
    assert "[user] Compute $2^{10} + 3^5$." in done.stdout
    assert "[tool] 14\n28\n42\n" in done.stdout
    assert "[answered] answer '1267', expected '1267', reward 1" in done.stdout
    assert record.read_text().count("\n") == 1


def test_a_lost_game_and_one_that_is_left():
    done = play("\n\\boxed{1}\n\n", "--task-id", "sample-01")
    assert done.returncode == 1
    assert "expected '1267', reward 0" in done.stdout
    assert play("", "solostream/Arithmetic-v0", "--seed", "1").stdout.endswith("stopped\n")


CTRL_C, CTRL_D = b"\x03", b"\x04"


@pytest.mark.parametrize(
    ("turns", "exit_code", "said"),
    [
        ([b"```python\nprint(6*7)\n```\n", b"\\boxed{1267}\n\n"], 0, "[tool] 42"),
        ([CTRL_D], 1, "stopped"),
        ([b"half a line" + CTRL_D + CTRL_D], 1, "[void] answer None"),
        ([b"\xff\xfe \x01\n\n"], 1, "[void] answer None"),
        ([CTRL_C], 130, "interrupted"),
    ],
)
def test_in_a_terminal(turns, exit_code, said):
    """A pseudo-terminal: line editing, signals and the end of input come from the kernel."""
    command = [sys.executable, "-m", "solostream", "play", "--task-id", "sample-01"]
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests themselves run in the background
        os.execve(sys.executable, command, {**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    shown = b""
    for turn in [*turns, b""]:
        while chunk := read(terminal):
            shown += chunk
            if shown.endswith(b"> "):
                break
        os.write(terminal, turn)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == exit_code, shown
    assert said in shown.decode(errors="replace")


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["solostream/Maths-v0"], "solostream/Math-v0"),
        (["CartPole-v1"], "only a ToolEnv"),
        (["--tasks", "x"], "no data"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, remedy):
    done = play("", *arguments)
    assert done.returncode == 2
    assert remedy in done.stderr
    assert done.stderr.count("\n") == 1
