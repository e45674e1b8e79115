"""The whole suite on the real backends, and the commands that run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from solostream.sandbox.conformance import CASES, check


async def test_fork_holds_every_promise() -> None:
    report = await check("fork")
    assert [(case.name, case.detail) for case in report.failed] == []
    assert len(report.cases) == len(CASES) + 1
    held = sum(case.status == "pass" for case in report.cases)
    assert held >= 54


def solostream(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "solostream", "sandbox", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)


def test_check_prints_the_documented_json_and_fails_with_1(monkeypatch) -> None:
    done = solostream("check", "fork", "--json", "--only", "empty code and comments run")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["backend"] == "fork"
    assert [set(case) for case in report["cases"]] == [{"name", "status", "detail", "ms"}] * 2
    assert {case["status"] for case in report["cases"]} == {"pass"}
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    done = solostream("check", "unsafe:UnsafeSandbox", "--only", "TCP out")
    assert done.returncode == 1
    assert done.stdout.startswith("fail ")
    assert "1 pass, 1 fail, 0 skip" in done.stdout


@pytest.mark.parametrize(
    ("code", "stdout", "words", "exit_code"),
    [
        ("print('p')\n6 * 7", "p\n42\n", "", 0),
        ("1 / 0", "", "ZeroDivisionError: division by zero", 1),
        ("import time\ntime.sleep(30)", "", "", 124),
        ("import os\nos.abort()", "", "", 137),
    ],
)
def test_run_tells_the_outcome_by_its_exit_code(code: str, stdout: str, words: str, exit_code: int) -> None:
    done = solostream("run", "fork", "-", "--timeout", "2", stdin=code)
    assert (done.returncode, done.stdout) == (exit_code, stdout)
    assert words in done.stderr
    assert 'sandbox/cli.py", line' not in done.stderr


def test_run_names_a_missing_file() -> None:
    done = solostream("run", "fork", "/nonexistent.py")
    assert done.returncode == 2
    assert done.stderr.startswith("solostream: cannot read /nonexistent.py")
