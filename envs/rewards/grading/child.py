"""The grading server: says "ready" ("missing": no math-verify), then takes [id, [gold, answer, rules]] a line.

Its replies are [id, equal, rule].

Every comparison first gets a short slice of processor time in one of the fast workers, the simplest first. What needs
more is tried again in a few slow workers of low priority, up to a limit that is processor time too, so that a busy
machine changes no verdict; only where many such wait are the oldest of them refused.
So 128 answers that hang cost 128 slices and one waiting time, and a comparison beside them waits for one slice. The
kernel counts and kills (SIGPROF), so that nothing in C code escapes; a fresh worker is a fork, a few milliseconds.
"""

from __future__ import annotations

import gc
import heapq
import json
import os
import re
import resource
import selectors
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from solostream.envs.rewards.grading.pool import DEADLINE
from solostream.envs.rewards.grading.rules import Rules, Verdict

SLICE = 0.05  # seconds of processor time, the first try: enough for 98 of 100 comparisons of the test cases
SECONDS = 3.0  # of processor time, the second
WAIT = 6.0  # seconds since it was asked, after which a comparison that had its slice gets no second try
SLOW = 2  # workers for the second try
MEMORY = 2 << 30  # bytes of address space of a worker
# What makes a comparison take long, as a rule: the more of it, the later its turn.
_HEAVY = re.compile(r"\^|\*\*|!|\\int|\\sum|\\prod|\\lim|factorial|binom|Sum|Product|Integral")


@dataclass(slots=True, order=True)
class QueuedComparison:
    """One comparison; the simplest is the least."""

    weight: int
    number: int
    question: list[Any] = field(compare=False)
    asked: float = field(compare=False)


class GradingWorker:
    """A forked process that answers one question at a time; `comparison` is the one it is at."""

    def __init__(self, seconds: float, nice: int, others: list[GradingWorker]) -> None:
        ours, its = socket.socketpair()
        self.socket, self.comparison = ours, None  # type: socket.socket, QueuedComparison | None
        self.pid = os.fork()
        if self.pid == 0:
            for other in others:
                other.socket.close()
            ours.close()
            _work(its, seconds, nice)
        its.close()

    def ask(self, comparison: QueuedComparison) -> None:
        """Send it the comparison. One that died meanwhile is seen by the server, as the end of its socket."""
        self.comparison = comparison
        with suppress(BrokenPipeError):
            self.socket.sendall(json.dumps(comparison.question).encode() + b"\n")

    def end(self) -> None:
        """Kill and reap it."""
        self.socket.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _work(channel: socket.socket, seconds: float, nice: int) -> None:
    """The worker's life. SIGPROF keeps its default action: the kernel ends the process even inside C code."""
    from solostream.envs.rewards.grading.compare import grade

    os.nice(nice)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    for line in channel.makefile("rb"):
        gold, answer, rules = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            verdict = grade(gold, answer, Rules(**rules))
        except Exception as error:  # whatever SymPy throws at strange input: not the same
            verdict = Verdict(False, f"SymPy failed on it: {type(error).__name__}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        channel.sendall(json.dumps([verdict.equal, verdict.rule]).encode() + b"\n")
    os._exit(0)


class GradingServer:
    """Hands questions to workers until stdin closes. One thread; `step` is one turn of its loop."""

    def __init__(self) -> None:
        self._fast = max(2, os.cpu_count() or 1)
        self._waiting: list[QueuedComparison] = []  # a heap
        self._slow: deque[QueuedComparison] = deque()
        self._workers: dict[bool, list[GradingWorker]] = {True: [], False: []}  # slow or not -> workers
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        self._unread = b""

    def run(self) -> None:
        """Serve until standard input ends, then end the workers."""
        try:
            while self.step():
                pass
        finally:
            for worker in [*self._workers[True], *self._workers[False]]:
                worker.end()

    def step(self) -> bool:
        """False at the end of stdin."""
        self._refuse_the_old()
        self._hand_out()
        for key, _ in self._selector.select(self._patience()):
            if key.data is None:
                if not self._take():
                    return False
            else:
                self._receive(*key.data)
        return True

    def _take(self) -> bool:
        chunk = os.read(sys.stdin.fileno(), 1 << 16)
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for line in lines:
            number, question = json.loads(line)
            weight = min(9, len(_HEAVY.findall(question[1])))
            heapq.heappush(self._waiting, QueuedComparison(weight, number, question, time.monotonic()))
        return bool(chunk)

    def _hand_out(self) -> None:
        for slow, queue, most in ((False, self._waiting, self._fast), (True, self._slow, SLOW)):
            workers = self._workers[slow]
            while queue:
                free = next((worker for worker in workers if worker.comparison is None), None)
                if free is None and len(workers) >= most:
                    break
                if free is None:
                    others = [*self._workers[True], *self._workers[False]]
                    free = GradingWorker(SECONDS, 10, others) if slow else GradingWorker(SLICE, 0, others)
                    workers.append(free)
                    self._selector.register(free.socket, selectors.EVENT_READ, (free, slow))
                free.ask(self._slow.popleft() if slow else heapq.heappop(self._waiting))

    def _receive(self, worker: GradingWorker, slow: bool) -> None:
        """A verdict, or the end of a worker that the kernel's timer (or something else) killed."""
        line = b""
        with suppress(ConnectionError):
            while not line.endswith(b"\n") and (chunk := worker.socket.recv(4096)):
                line += chunk
        comparison = worker.comparison
        worker.comparison = None
        if line.endswith(b"\n"):
            assert comparison is not None
            self._answer(comparison, *json.loads(line))
            return
        self._drop(worker, slow)
        if comparison is None:
            return
        if slow:
            self._answer(comparison, False, DEADLINE)
        else:
            self._slow.append(comparison)

    def _drop(self, worker: GradingWorker, slow: bool) -> None:
        self._selector.unregister(worker.socket)
        self._workers[slow].remove(worker)
        worker.end()

    def _refuse_the_old(self) -> None:
        oldest = time.monotonic() - WAIT
        while self._slow and self._slow[0].asked < oldest:
            self._answer(self._slow.popleft(), False, DEADLINE)

    def _patience(self) -> float | None:
        """Seconds until the next comparison is too old; None: none waits for a second try."""
        return max(0.0, self._slow[0].asked + WAIT - time.monotonic() + 0.01) if self._slow else None

    def _answer(self, comparison: QueuedComparison, equal: bool, rule: str) -> None:
        print(json.dumps([comparison.number, equal, rule]), flush=True)


def main() -> None:
    """Import, bound and warm what the workers share; then serve."""
    try:
        import latex2sympy2_extended  # noqa: F401
        import math_verify  # noqa: F401
    except ImportError:
        print("missing", flush=True)
        return
    from solostream.envs.rewards.grading import compare, limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    limits.guard()
    # the parser's tables and SymPy's lazy imports, once for all workers
    for gold, answer in (
        (r"\frac{\sqrt{2}}{2}+1", "1 + sqrt(2)/2"),
        (r"x^2\le 4", "[-2, 2]"),
        (r"\sin^2 x", "1-cos(x)**2"),
    ):
        compare.grade(gold, answer, Rules())
    gc.collect()
    gc.freeze()  # what is here stays where it is: a fork copies fewer pages
    print("ready", flush=True)
    GradingServer().run()


if __name__ == "__main__":
    main()
