"""The speed of the fork sandbox beside `python -c`, an ipykernel and, where SANDBOX_FUSION_URL is set, SandboxFusion.

All contestants run in one process's lifetime on one machine, interleaved, so the ratios hold where the milliseconds do
not. A fresh print is timed until the print has arrived; what comes after it (a session's close, the end of `python -c`)
is paid in the executions a second. The floors are what the kernel and Python ask of anybody who starts from a warm
interpreter. Every bar is printed with its verdict; a missed bar is a line in the table, the exit code tells of breakage
only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

# This file has the name of the package that it measures: its own folder must not come first.
sys.path[0] = str(Path(__file__).parents[1])

from solostream.sandbox.fork import ForkSandbox  # noqa: E402
from solostream.sandbox.types import Limits  # noqa: E402

# Fork, exit and wait, and a round trip over a socket pair with `exec` in between, of a Python that has all imported.
FLOORS = """
import gc, os, socket, statistics, time
import numpy, sympy
gc.freeze()
def median(work, times):
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken)
def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if os.fork() == 0:
    ours.close()
    while code := theirs.recv(65536):
        exec(code, {})
        theirs.send(b"done")
    os._exit(0)
def call():
    ours.send(b"x = 1")
    ours.recv(100)
print(median(fork, 100), median(call, 1000))
"""
SYMPY = "import sympy\nx = sympy.Symbol('x')\nprint(sympy.factor(x**4 - 1))"
FACTORED = "(x - 1)*(x + 1)*(x**2 + 1)\n"


async def milliseconds(work: Callable[[], Awaitable[object]]) -> float:
    start = time.perf_counter()
    await work()
    return 1e3 * (time.perf_counter() - start)


async def floors() -> tuple[float, float]:
    """ms of a fork and of a round trip."""
    fork, call = (await python_c(FLOORS)).split()
    return float(fork), float(call)


async def python_c(code: str) -> str:
    """A fresh interpreter, as most tool servers start one."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode()


async def first_print_of_python_c(code: str, printed: str) -> float:
    """ms until the line is here; the process's end is waited for, and not counted."""
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = await process.stdout.readline()
    taken = 1e3 * (time.perf_counter() - start)
    assert line.decode() == printed, line
    await process.communicate()
    return taken


class Kernel:
    """An ipykernel over the default transport."""

    async def start(self) -> None:
        from jupyter_client.manager import start_new_async_kernel

        self.manager, self.client = await start_new_async_kernel(stderr=subprocess.DEVNULL)

    async def run(self, code: str) -> str:
        printed: list[str] = []

        def hear(message: dict) -> None:
            if message["header"]["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        await self.client.execute_interactive(code, output_hook=hear)
        return "".join(printed)

    async def stop(self) -> None:
        self.client.stop_channels()
        await self.manager.shutdown_kernel(now=True)


async def expect(work: Awaitable[str], printed: str) -> None:
    seen = await work
    assert seen == printed, f"expected {printed!r}, got {seen!r}"


async def fresh(box: ForkSandbox, code: str, printed: str) -> float:
    """ms until the print of a new session is here; its close is waited for, and not counted."""
    start = time.perf_counter()
    session = await box.open()
    try:
        seen = await session.run(code)
        taken = 1e3 * (time.perf_counter() - start)
        assert seen.stdout == printed, seen
    finally:
        await session.close()
    return taken


async def latencies(box: ForkSandbox, rounds: int) -> dict[str, dict[str, float]]:
    """Medians in ms: contestant -> {"print", "sympy", "warm"}. One round of each in turn."""
    times: dict[tuple[str, str], list[float]] = {}

    def note(who: str, what: str, taken: float) -> None:
        times.setdefault((who, what), []).append(taken)

    warm = await box.open()
    for number in range(rounds):
        await asyncio.sleep(0.2)  # the pool refills: this measures latency, `throughput` the cost
        for what, code, printed in (("print", "print(1)", "1\n"), ("sympy", SYMPY, FACTORED)):
            note("fork", what, await fresh(box, code, printed))
            if what == "print" or number < max(3, rounds // 4):
                note("python -c", what, await first_print_of_python_c(code, printed))
        await asyncio.sleep(0.2)  # again: a warm call is not to be timed beside the forks for the pool
        for _ in range(20):
            note("fork", "warm", await milliseconds(lambda: warm.run("print(1)")))
        if number < max(3, rounds // 4):
            kernel = Kernel()

            async def to_first_print(kernel: Kernel = kernel) -> None:
                await kernel.start()
                await expect(kernel.run("print(1)"), "1\n")

            note("ipykernel", "print", await milliseconds(to_first_print))
            for _ in range(10):
                work = lambda kernel=kernel: expect(kernel.run("print(1)"), "1\n")
                note("ipykernel", "warm", await milliseconds(work))
            note(
                "ipykernel",
                "sympy",
                times["ipykernel", "print"][-1] + await milliseconds(lambda k=kernel: k.run(SYMPY)),
            )
            await kernel.stop()
    await warm.close()
    medians: dict[str, dict[str, float]] = {}
    for (who, what), taken in times.items():
        medians.setdefault(who, {})[what] = statistics.median(taken)
    return medians


async def sandbox_fusion(rounds: int) -> dict[str, float] | None:
    """Medians of `/run_code` where the environment names a running server."""
    url = os.environ.get("SANDBOX_FUSION_URL")
    if not url:
        return None
    import httpx

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        found = {}
        for what, code in (("print", "print(1)"), ("sympy", SYMPY)):
            work = lambda code=code: client.post("/run_code", json={"code": code, "language": "python"})
            found[what] = statistics.median([await milliseconds(work) for _ in range(rounds)])
    return found


async def throughput(box: ForkSandbox, count: int, at_once: int = 8) -> tuple[float, float]:
    """Fresh executions a second at a concurrency of 8: ours, `python -c`. Alternating blocks, summed."""

    async def all_of(work: Callable[[], Awaitable[object]], number: int) -> float:
        free = asyncio.Semaphore(at_once)

        async def one() -> None:
            async with free:
                await work()

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(number)))
        return time.perf_counter() - start

    ours = theirs = 0.0
    blocks = 4
    for _ in range(blocks):
        ours += await all_of(lambda: fresh(box, "print(1)", "1\n"), count // blocks)
        theirs += await all_of(lambda: expect(python_c("print(1)"), "1\n"), count // blocks)
    return count / ours, count / theirs


def available_mb() -> float:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    return int(lines["MemAvailable"].split()[0]) / 1024


async def live_sessions(box: ForkSandbox, count: int) -> tuple[int, float, float]:
    """Open `count` stateful sessions with sympy in use; returns how many answer, MB taken, and ms a call."""
    before = available_mb()
    sessions = []
    try:
        for number in range(count):
            session = await box.open()
            sessions.append(session)
            await session.run(f"import sympy\nn = {number}\nx = sympy.Symbol('x')\ns = sympy.expand((x + n)**3)")
        taken = before - available_mb()
        start = time.perf_counter()
        answers = await asyncio.gather(*(session.run("n") for session in sessions))
        per_call = 1e3 * (time.perf_counter() - start) / count
        right = sum(answer.result == str(number) for number, answer in enumerate(answers))
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
    return right, taken, per_call


def processes_below(pid: int) -> int:
    count, stack = 0, [pid]
    while stack:
        parent = stack.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                children = [
                    int(c) for c in Path(f"/proc/{parent}/task/{task}/children").read_text(encoding="utf-8").split()
                ]
                count += len(children)
                stack += children
    return count


async def soak(box: ForkSandbox, count: int, sessions: int = 16) -> dict[str, int]:
    """Runs over long-lived sessions, 1 % crashing and 1 % timing out: what is lost and what leaks."""
    opened = [await box.open() for _ in range(sessions)]
    await asyncio.sleep(2)
    fds, processes = len(os.listdir("/proc/self/fd")), processes_below(os.getpid())
    lost = 0

    async def worker(which: int) -> None:
        nonlocal lost
        for number in range(which, count, sessions):
            kind = number % 100
            code = {7: "import os\nos.abort()", 57: "while True:\n    pass"}.get(kind, f"print({number})")
            seen = await opened[which].run(code, timeout=0.2 if kind == 57 else 30)
            wanted = {7: "killed", 57: "timeout"}.get(kind, "ok")
            lost += seen.status != wanted or (wanted == "ok" and seen.stdout != f"{number}\n")

    await asyncio.gather(*map(worker, range(sessions)))
    for _ in range(100):
        await asyncio.sleep(0.1)
        more = processes_below(os.getpid()) - processes
        if more <= 0:
            break
    grown = len(os.listdir("/proc/self/fd")) - fds
    await asyncio.gather(*(session.close() for session in opened))
    return {"lost": lost, "processes": more, "fds": grown}


async def measure(quick: bool, console: Console) -> None:
    rounds, count, live, runs = (8, 80, 100, 1000) if quick else (40, 200, 1000, 10_000)
    box = ForkSandbox(limits=Limits(memory_mb=512))
    start = time.perf_counter()
    try:
        await (await box.open()).close()
        console.print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {box.isolation}")
        console.print(f"fork server ready in {time.perf_counter() - start:.2f} s (once per process)")
        fork_ms, call_ms = await floors()
        medians = await latencies(box, rounds)
        fusion = await sandbox_fusion(rounds)
        ours, theirs = await throughput(box, count)
        right, taken, per_call = await live_sessions(box, live)
        kept = await soak(box, runs)
    finally:
        await box.close()

    table = Table("ms, median", "fresh print", "fresh sympy", "warm call", "fresh / s at 8")
    rates = {"fork": ours, "python -c": theirs}
    for who, row in ({**medians, "SandboxFusion": fusion} if fusion else medians).items():
        cells = [f"{row[what]:.2f}" if what in row else "" for what in ("print", "sympy", "warm")]
        table.add_row(who, *cells, f"{rates[who]:.0f}" if who in rates else "")
    console.print(table)

    fork, kernel, plain = medians["fork"], medians["ipykernel"], medians["python -c"]
    bars = Table("bar", "wanted", "measured", "met")
    for name, wanted, measured, met in [
        ("fresh print / ipykernel's start", "<= 1/10", *under(fork["print"], kernel["print"], 10)),
        ("fresh sympy / python -c", "<= 1/15", *under(fork["sympy"], plain["sympy"], 15)),
        ("warm call / ipykernel's", "<= 1/10", *under(fork["warm"], kernel["warm"], 10)),
        (f"fresh print, ms (a bare fork: {fork_ms:.2f})", "<= 8", f"{fork['print']:.2f}", fork["print"] <= 8),
        (f"warm call, ms (a bare round trip: {call_ms:.2f})", "<= 0.3", f"{fork['warm']:.2f}", fork["warm"] <= 0.3),
        (f"{count} fresh at concurrency 8 / python -c", ">= 3", f"{ours / theirs:.2f}", ours >= 3 * theirs),
        (f"{live} live sessions answer", str(live), f"{right} ({per_call:.2f} ms a call)", right == live),
        ("their memory", "<= 12 GiB a 1,000", f"{taken / live:.1f} MB each", taken / live <= 12 * 1.024),
        (f"{runs} runs: lost replies", "0", str(kept["lost"]), kept["lost"] == 0),
        ("processes left over", "0", str(kept["processes"]), kept["processes"] <= 0),
        ("descriptors more than before", "0", str(kept["fds"]), kept["fds"] <= 0),
    ]:
        bars.add_row(name, wanted, measured, "yes" if met else "NO")
    console.print(bars)


def under(ours: float, theirs: float, times: float) -> tuple[str, bool]:
    return f"1/{theirs / ours:.1f}", ours * times <= theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    asyncio.run(measure(parser.parse_args().quick, Console(width=120)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
