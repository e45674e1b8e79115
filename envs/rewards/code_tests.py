"""`code_tests`: the share of a task's tests that the policy's program passes, each run in a session of our sandbox.

The program is the final answer, or its last fenced block. The tests are in the task's meta, in three forms: `inputs`
and `outputs` (the program reads stdin, its stdout is compared line by line, spaces at the ends of lines left out);
`function` and `cases`, a list of [arguments, result] in JSON's types, for a function that the program defines; and
`asserts`, a list of statements that run after the program (`assert add(1, 2) == 3`). What a program prints and what its
function returns is compared here, outside its sandbox. Asserts run in the program's own interpreter and pass when they
run to their end: leaving early fails them, but a program that sets out to deceive them can (an object that equals
everything). Where that matters, give one of the other forms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from solostream.envs.rewards.episode import Episode, Score
from solostream.sandbox.types import Execution

_FENCE = re.compile(r"^ {0,3}```[^\n`]*\n(?P<code>.*?)^ {0,3}```[ \t]*$", re.MULTILINE | re.DOTALL)
# Both keep what the program must not replace (exec, compile) under names of their own before it runs.
_STDIN = """import builtins as _b, os as _os, sys as _sys, tempfile as _t
_exec, _compile = exec, compile
_file = _t.TemporaryFile()
_file.write({data!r}.encode())
_file.seek(0)
_os.dup2(_file.fileno(), 0)
_sys.stdin = open(0, encoding="utf-8", closefd=False)
def _input(prompt=""):
    print(prompt, end="")
    line = _sys.stdin.readline()
    if not line:
        raise EOFError("EOF when reading a line")
    return line.rstrip("\\n")
_b.input = _input
_exec(_compile({program!r}, "solution.py", "exec"), {{"__name__": "__main__"}})
"""
_ASSERT = """_exec, _compile, _space = exec, compile, {{"__name__": "solution"}}
try:
    _exec(_compile({program!r}, "solution.py", "exec"), _space)
    _exec(_compile({statement!r}, "test.py", "exec"), _space)
except SystemExit:
    raise AssertionError("the program left before the test was over") from None
"""


_CALL = """import builtins as _b, json as _json, sys as _sys
_exec, _compile, _dumps, _loads, _stdout = exec, compile, _json.dumps, _json.loads, _sys.stdout
_space = {{"__name__": "solution"}}
_exec(_compile({program!r}, "solution.py", "exec"), _space)
_name, _arguments = _loads({given!r})
_stdout.write("\\n" + _dumps(_space[_name](*_arguments)) + "\\n")
"""


class CodeTests:
    """all_or_nothing: 1 only when every test passes; else the share. most: of the tests, the first so many are run."""

    def __init__(self, *, all_or_nothing: bool = True, most: int = 50) -> None:
        self._all, self._most = all_or_nothing, most
        self.timeout_s = 600.0  # of all tests; each has the environment's limit of a call

    async def __call__(self, episode: Episode, workspace: Any) -> Score:
        """Raises SandboxError when the sandbox failed, ValueError for a task without tests."""
        tests = tests_of(episode.task.meta)[: self._most]
        program = program_of(episode)
        if program is None:
            return Score(0.0, "no program")
        passed, first_failure = 0, ""
        for number, (kind, given, wanted) in enumerate(tests, 1):
            problem = await _run(workspace, program, kind, given, wanted)
            passed += problem is None
            if problem is not None:
                first_failure = first_failure or f"; test {number}: {problem}"
                if self._all:
                    break
        value = float(passed == len(tests)) if self._all else passed / len(tests)
        return Score(value, f"{passed} of {len(tests)} tests passed{first_failure}")


def tests_of(meta: Any) -> Sequence[tuple[str, str, str]]:
    """("stdin", input, output), ("call", [function, arguments], result), both as JSON, or ("assert", statement, "").

    Raises ValueError where there are none, or not as many.
    """
    meta = {**meta, **_decoded(meta.get("tests"))}
    inputs, outputs = meta.get("inputs", ()), meta.get("outputs", ())
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs in its meta")
    found = [("stdin", str(given), str(wanted)) for given, wanted in zip(inputs, outputs, strict=True)]
    found += [("assert", str(statement), "") for statement in meta.get("asserts", meta.get("test_list", ()))]
    name = str(meta.get("function", ""))
    found += [("call", json.dumps([name, given]), json.dumps(wanted)) for given, wanted in meta.get("cases", ())]
    if not found:
        raise ValueError("no tests in its meta: give inputs and outputs, function and cases, or asserts")
    return found


def _decoded(tests: Any) -> dict[str, Any]:
    """Published data sets keep the tests as a JSON string."""
    if isinstance(tests, str):
        tests = json.loads(tests)
    if isinstance(tests, list):
        return {"asserts": tests}
    return tests if isinstance(tests, dict) else {}


def program_of(episode: Episode) -> str | None:
    """The last fenced block of the answer or of the last turn; without one, the answer itself."""
    for text in (episode.answer or "", episode.steps[-1].text if episode.steps else ""):
        blocks = [match["code"] for match in _FENCE.finditer(text)]
        if blocks:
            return blocks[-1]
    return episode.answer or None


async def _run(workspace: Any, program: str, kind: str, given: str, wanted: str) -> str | None:
    """What is wrong; None: it passed. Raises SandboxError."""
    if kind == "stdin":
        done: Execution = await workspace.run_fresh(_STDIN.format(data=given, program=program))
        if done.status == "ok" or _left(done):
            return None if _lines(done.stdout) == _lines(wanted) else "another output"
        return _why(done)
    if kind == "call":
        done = await workspace.run_fresh(_CALL.format(program=program, given=given))
        if done.status != "ok":
            return _why(done)
        return None if _value(_lines(done.stdout)[-1:]) == json.loads(wanted) else "another result"
    done = await workspace.run_fresh(_ASSERT.format(program=program, statement=given))
    return None if done.status == "ok" else _why(done)


def _left(done: Execution) -> bool:
    """The program ended itself with `sys.exit()`, which is no failure."""
    return done.error is not None and done.error.name == "SystemExit" and done.error.message in ("", "0", "None")


def _why(done: Execution) -> str:
    return f"{done.error.name}: {done.error.message}"[:120] if done.error else done.status


def _value(last: Sequence[str]) -> Any:
    """What the last line says; no JSON of it equals the result of a test."""
    try:
        return json.loads(last[0]) if last else _value
    except (ValueError, RecursionError):
        return _value


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
