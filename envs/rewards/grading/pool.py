"""The parent's end of the grading processes: one server that forks workers, one thread that hands out their verdicts.

SymPy is slow to import and hard to stop, so a server process imports it once and forks a worker for each comparison
that runs (`child`). When the server itself is killed by something else, what was pending is asked again, once.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from solostream.envs.rewards.grading.rules import Rules, Verdict
from solostream.errors import SandboxError, UserError

DEADLINE = "no verdict before the deadline"
_COMMAND = (sys.executable, "-P", "-m", "solostream.envs.rewards.grading.child")
_TRIES = 2  # of a comparison during which the server died


@dataclass(frozen=True, slots=True)
class _Asked:
    """A comparison that a server owes; `tries` are left should it die over it."""

    question: str
    tries: int
    future: Future[Verdict]
    process: subprocess.Popen[str]


class GradingPool:
    """Starts the server with the first comparison. Raises UserError without math-verify, SandboxError when it fails."""

    def __init__(self, command: tuple[str, ...] = _COMMAND) -> None:
        self.pid = os.getpid()  # a forked copy of this object must not talk into its parent's pipes
        self._command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._pending: dict[int, _Asked] = {}
        self._flying: dict[str, Future[Verdict]] = {}  # the same pair twice at once is one comparison
        self._next = 0

    def submit(self, gold: str, answer: str, rules: Rules) -> Future[Verdict]:
        """The verdict to come."""
        question = json.dumps([gold, answer, asdict(rules)])
        with self._lock:
            if (flying := self._flying.get(question)) is not None:
                return flying
            future: Future[Verdict] = Future()
            future.set_running_or_notify_cancel()  # an await that is cancelled must not cancel it for the others
            self._flying[question] = future
            self._ask(question, _TRIES, future)
        return future

    def stop(self) -> None:
        """End the server; it ends its workers. Idempotent."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait()

    def _ask(self, question: str, tries: int, future: Future[Verdict]) -> None:
        process = self._process = self._process or self._start()
        self._next += 1
        self._pending[self._next] = _Asked(question, tries - 1, future, process)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it died since the last pair: the reader sees to it
            print(f"[{self._next},{question}]", file=process.stdin, flush=True)

    def _start(self) -> subprocess.Popen[str]:
        home = str(Path(__file__).parents[4])  # the folder that holds the package
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | {
            "PYTHONPATH": os.pathsep.join(paths)
        }
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment,
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        if said == "ready\n":
            threading.Thread(target=self._read, args=(process,), name="grading", daemon=True).start()
            return process
        process.communicate()
        self._flying.clear()
        if said == "missing\n":
            raise UserError("comparing LaTeX answers needs math-verify: pip install 'math-verify[antlr4_13_2]'")
        command = " ".join(self._command)
        raise SandboxError(f"the process that compares answers does not start; to see why: {command} </dev/null")

    def _read(self, process: subprocess.Popen[str]) -> None:
        """Hand out verdicts until the server ends; then ask again what it still owed."""
        assert process.stdout is not None
        for line in process.stdout:
            number, equal, rule = json.loads(line)
            with self._lock:
                asked = self._pending.pop(number)
                self._flying.pop(asked.question, None)
            asked.future.set_result(Verdict(equal, rule))
        process.wait()
        failed: list[tuple[Future[Verdict], Exception]] = []
        with self._lock:
            if self._process is process:
                self._process = None
            owed = [number for number, asked in self._pending.items() if asked.process is process]
            for asked in map(self._pending.pop, owed):
                try:
                    if not asked.tries:
                        raise SandboxError("the process that compares answers died twice over one answer")
                    self._ask(asked.question, asked.tries, asked.future)
                except (SandboxError, UserError, OSError) as error:
                    self._flying.pop(asked.question, None)
                    failed.append((asked.future, error))
        for future, failure in failed:
            future.set_exception(failure)


_pool = GradingPool()


@atexit.register
def _stop() -> None:
    if _pool.pid == os.getpid():
        _pool.stop()


def submit(gold: str, answer: str, rules: Rules) -> Future[Verdict]:
    """The verdict to come, from this process's own pool."""
    global _pool
    if _pool.pid != os.getpid():
        _pool = GradingPool()
    return _pool.submit(gold, answer, rules)
