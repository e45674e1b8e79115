"""Each session's memory limit where no cgroup can be made, as in a container: a watch over what its processes hold.

RLIMIT_DATA bounds one process; this bounds a session's processes together, and acts when two looks in a row see too
much: a session that is in a call is watched by the call itself, ten times a second, which can say why it ended. A
session may go over for a third of a second; the container's own limit holds at all times.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import defaultdict

from solostream.sandbox.fork.watch import hold_more

_EVERY_S = 0.15
_DEPTH = 3  # pid namespaces around a session's processes: the container's, the fork server's, the session's


def watch(limit_mb: int) -> None:
    """Kill sessions that hold more than `limit_mb`, from a thread, for as long as this process runs."""

    def loop() -> None:
        before: set[int] = set()  # namespaces that held too much at the last look
        while True:
            start = time.monotonic()
            over = {space: held for space, held in sessions().items() if hold_more(held, limit_mb)}
            for space in before & over.keys():
                _kill(over[space])
            before = set(over)
            # However many sessions there are, looking takes at most a tenth of one core.
            time.sleep(max(_EVERY_S, 9 * (time.monotonic() - start)))

    threading.Thread(target=loop, name="memory", daemon=True).start()


def sessions() -> dict[int, dict[int, int]]:
    """pid namespace -> its processes: pid out here -> pid in there."""
    found: dict[int, dict[int, int]] = defaultdict(dict)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, StopIteration):
                with open(f"/proc/{entry}/status") as file:
                    numbers = next(line for line in file if line.startswith("NSpid:")).split()[1:]
                if len(numbers) >= _DEPTH:
                    found[os.stat(f"/proc/{entry}/ns/pid").st_ino][int(entry)] = int(numbers[-1])
    return found


def _kill(session: dict[int, int]) -> None:
    """Its first process takes all others with it."""
    for pid, inside in session.items():
        if inside == 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
