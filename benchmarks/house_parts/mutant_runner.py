"""Runs mutants that mutmut has made, in a process forked for each: pytest starts and collects once for all of them.

    python mutant_runner.py CHOSEN FOUND [PYTEST ARGUMENTS …]      in mutmut's folder `mutants/`

CHOSEN: JSON, mutant -> the tests that reach it, the fastest first. FOUND: where mutant -> exit code is written, a line
each. mutmut's own loop starts pytest anew for each mutant, which took longer than the tests.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TextIO

import pytest
from _pytest.runner import runtestprotocol

KILLED, SURVIVED, ENDLESS = 1, 0, 36  # 36 is mutmut's code for a mutant that ran too long
CPU_S = 8  # what all tests of one mutant may take; they need less than half of it
WALL_S = 240  # for one that waits for what never comes, on a busy machine


class Runner:
    """A plugin of pytest: in place of the loop over the tests, one over the mutants."""

    def __init__(self, tests_of: dict[str, list[str]], found: TextIO) -> None:
        self._tests_of = tests_of
        self._found = found

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """All mutants, after the tests of each were seen to pass without any."""
        items = {item.nodeid: item for item in session.items}
        needed = list(dict.fromkeys(test for tests in self._tests_of.values() for test in tests))
        os.environ["MUTANT_UNDER_TEST"] = ""
        if _forked([items[test] for test in needed], cpu_s=600):
            raise pytest.UsageError("the tests fail without any mutant")
        for mutant, tests in self._tests_of.items():
            os.environ["MUTANT_UNDER_TEST"] = mutant
            code = _forked([items[test] for test in tests], cpu_s=CPU_S)
            self._found.write(json.dumps([mutant, code]) + "\n")
            self._found.flush()
        return True


def _forked(items: list[pytest.Item], cpu_s: int) -> int:
    """Run the tests in a child, up to the first that fails."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        code = SURVIVED
        # Whatever a mutant breaks, pytest itself included, the child must end here and not in the parent's loop.
        try:
            for item, following in zip(items, [*items[1:], None], strict=True):
                reports = runtestprotocol(item, log=False, nextitem=following)
                if any(report.failed for report in reports):
                    code = KILLED
                    break
        except BaseException:
            code = KILLED
        os._exit(code)
    return _awaited(child)


def _awaited(child: int) -> int:
    deadline = time.monotonic() + WALL_S
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return ENDLESS if code < 0 else code
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return ENDLESS


def main() -> None:
    chosen, found, *arguments = sys.argv[1:]
    tests_of = json.loads(Path(chosen).read_text(encoding="utf-8"))
    # mutmut's trampolines look at it from the first import on.
    os.environ["MUTANT_UNDER_TEST"] = ""
    sys.path.insert(0, os.getcwd())
    with Path(found).open("w", encoding="utf-8") as file:
        sys.exit(pytest.main(arguments, plugins=[Runner(tests_of, file)]))


if __name__ == "__main__":
    main()
