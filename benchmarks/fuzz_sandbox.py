"""A fuzzer of the sandbox's boundary: `python benchmarks/fuzz_sandbox.py --calls 1000000`.

Inside sessions: random system calls with random arguments, and random frames on every descriptor the host reads,
forged ones with the call's own nonce among them. After each round the host and a bystander session must live: the
bystander answers with its state, a new session opens, a file and a process of the host are as they were.

A round's seed is printed when it fails; `--seed N --rounds 1` repeats it. Exit code 1 when a promise broke.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path

from solostream.errors import SandboxError
from solostream.sandbox import open_sandbox
from solostream.sandbox.types import Execution, Limits, Sandbox, Session

BATCH = 400  # calls of one child, which may not survive them
CHILDREN = 12  # in a round, one after the other
LIMITS = Limits(timeout_s=30, memory_mb=256, processes=32, disk_mb=16, open_files=64, output_bytes=65_536)

# `exit` would only end the child. The others wait, or end the child at once: one in fifty of them is made.
_RARE = {
    "x86_64": (
        *(0, 7, 15, 19, 23, 34, 35, 45, 47, 60, 61, 62, 73, 128, 130, 200, 202, 230, 231, 232, 234, 247, 270, 271, 281),
    ),
    "aarch64": (22, 32, 63, 65, 72, 73, 93, 94, 95, 98, 101, 115, 129, 131, 133, 137, 139, 207, 212, 260),
}

# Each child marks its calls in a page that it shares with its parent, which so knows how many there were.
_CALLS = """
import ctypes, mmap, os, random, signal, struct, sys, time
libc = ctypes.CDLL(None)
page, rare = mmap.mmap(-1, 4096), {rare}
texts = [b'/', b'.', b'/tmp', b'/proc/self/mem', b'/dev/null', b'a' * 300, b'../..', b'/bin/sh', b'x']
memory = [ctypes.create_string_buffer(text + bytes(64), 4096) for text in texts]
memory.append(ctypes.create_string_buffer(random.Random({seed}).randbytes(4096), 4096))
def argument(r):
    kind = r.randrange(7)
    if kind == 0: return r.choice((0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 100, 4096))
    if kind == 1: return r.choice((-1, -100, 1 << 31, 1 << 32, (1 << 63) - 1, 0x7FFFFFFF, {pid}, os.getppid()))
    if kind == 2: return r.getrandbits(r.choice((8, 16, 32, 48, 64)))
    if kind == 3: return 1 << r.randrange(40)
    if kind == 4: return r.randrange(12)
    return ctypes.addressof(r.choice(memory)) + r.choice((0, 0, 8, 4000))
def child(seed):
    r = random.Random(seed)
    signal.setitimer(signal.ITIMER_REAL, 0.25)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for made in range({batch}):
        number = r.randrange(470)
        if r.random() < 0.02: number |= 0x40000000
        if number in rare and r.random() < 0.98: continue
        struct.pack_into('<I', page, 0, made + 1)
        libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument(r)) for _ in range(6)))
for turn in range({children}):
    page[:4] = bytes(4)
    pid = os.fork()
    if pid == 0:
        try:
            child({seed} * 1000 + turn)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    end = time.monotonic() + 1
    try:
        while not os.waitpid(pid, os.WNOHANG)[0]:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
    except OSError:
        pass
    os.write(1, b'%d\\n' % struct.unpack_from('<I', page)[0])
"""

# Random bytes, and random tails behind what the host expects, on whatever descriptor takes them, also after the call.
_BYTES = """
import os, random, struct, sys, threading, time
r = random.Random({seed})
frame, nonce = sys._getframe(), b''
while frame is not None and not nonce:
    nonce = frame.f_locals.get('nonce', b'')
    frame = frame.f_back
nonce = nonce if isinstance(nonce, bytes) else b''
def packet():
    size = r.choice((0, 1, 5, 17, 21, 38, 100, 512, 4000, 65536))
    body = r.randbytes(r.randrange(size + 1))
    head = r.choice((b'', b'R', b'A', b'B', b'D', b'F', b'S', b'f', b'h', b'l'))
    head += r.choice((b'', nonce))
    if r.random() < 0.3:
        lengths = [r.choice((0, 1, 9, 4096, 2**31, 2**32 - 1)) for _ in range(5)]
        body = struct.pack('<BIIIII', r.randrange(16), *lengths) + body
    return head + body
def flood(count, pause):
    for _ in range(count):
        for fd in range(1, 40):
            try:
                os.set_blocking(fd, False)
                os.write(fd, packet())
            except OSError:
                pass
        time.sleep(pause)
threading.Thread(target=flood, args=(20, 0.01), daemon=True).start()
flood({count}, 0)
"""


class Broken(AssertionError):
    """A promise that did not hold."""


async def round_of_calls(sandbox: Sandbox, seed: int) -> int:
    """How many calls were made. A session may die of them; that is no failure."""
    rare = _RARE[os.uname().machine]
    code = _CALLS.format(rare=rare, seed=seed, pid=os.getpid(), batch=BATCH, children=CHILDREN)
    seen = await _run(sandbox, code)
    return sum(int(word) for word in seen.stdout.split() if word.isdigit() and len(word) < 6)


async def round_of_bytes(sandbox: Sandbox, seed: int) -> int:
    await _run(sandbox, _BYTES.format(seed=seed, count=1 + seed % 4))
    return 0


async def _run(sandbox: Sandbox, code: str) -> Execution:
    session = await sandbox.open()
    try:
        seen = await session.run(code, timeout=20)
        after = await session.run("1", timeout=10)  # the next call is answered, whatever lies in the channel
        if not isinstance(seen, Execution) or not isinstance(after, Execution):
            raise Broken("a call was not answered by an execution")
        return seen
    finally:
        await session.close()


class Host:
    """What must stay as it is: a file, a process, a bystander session."""

    def __init__(self, sandbox: Sandbox, folder: str) -> None:
        self.sandbox = sandbox
        self.file = Path(folder, "secret")
        self.file.write_text("canary")
        self.process = subprocess.Popen(["sleep", "100000"])
        self.priority = os.getpriority(os.PRIO_PROCESS, self.process.pid)
        self.bystander: Session | None = None

    async def check(self) -> None:
        """Raises Broken."""
        if self.bystander is None:
            self.bystander = await self.sandbox.open()
            await self.bystander.run("word = 'kept'")
            before = os.stat(self.file)
            self.before = before.st_mode, before.st_mtime_ns, before.st_ctime_ns, before.st_size
        start = time.monotonic()
        seen = await self.bystander.run("word", timeout=30)
        if seen.result != "'kept'":
            raise Broken(f"the bystander was harmed: {seen}")
        session = await self.sandbox.open()
        seen = await session.run("print(6 * 7)", timeout=30)
        await session.close()
        if seen.stdout != "42\n":
            raise Broken(f"a new session does not work: {seen}")
        if time.monotonic() - start > 30:
            raise Broken("the host stood still")
        if self.process.poll() is not None or os.getpriority(os.PRIO_PROCESS, self.process.pid) != self.priority:
            raise Broken("a process of the host was harmed")
        after = os.stat(self.file)
        if (after.st_mode, after.st_mtime_ns, after.st_ctime_ns, after.st_size) != self.before:
            raise Broken("a file of the host was changed")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


async def fuzz(sandbox: Sandbox, *, seed: int, calls: int, seconds: float, rounds: int, jobs: int) -> tuple[int, int]:
    """Until `calls` are made, `seconds` are over or `rounds` played; (calls, rounds). Raises Broken, with the seed."""
    made = played = 0
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        host = Host(sandbox, folder)
        try:
            await host.check()
            while made < calls and played < rounds and time.monotonic() < deadline:
                seeds = [seed + played + job for job in range(min(jobs, rounds - played))]
                kinds = [round_of_bytes if each % 4 == 3 else round_of_calls for each in seeds]
                try:
                    made += sum(await asyncio.gather(*(kind(sandbox, s) for kind, s in zip(kinds, seeds, strict=True))))
                    await host.check()
                except (Broken, SandboxError) as error:
                    raise Broken(f"seeds {seeds}: {error}") from error
                played += len(seeds)
        finally:
            host.close()
    return made, played


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sandbox", default="fork", help="a spec (default: fork)")
    parser.add_argument("--isolation", help="fork's tier")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 40))
    parser.add_argument("--calls", type=int, default=1 << 60)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--rounds", type=int, default=1 << 60)
    parser.add_argument("--jobs", type=int, default=8)
    told = parser.parse_args()
    options = {"isolation": told.isolation} if told.isolation else {}
    sandbox = open_sandbox(told.sandbox, limits=LIMITS, **options)
    start = time.monotonic()
    try:
        made, played = await fuzz(
            sandbox, seed=told.seed, calls=told.calls, seconds=told.seconds, rounds=told.rounds, jobs=told.jobs
        )
    except Broken as error:
        print(f"broken: {error}")
        return 1
    finally:
        await sandbox.close()
    spent = time.monotonic() - start
    print(f"{sandbox.isolation}: {made} calls in {played} rounds, {spent:.0f} s, from seed {told.seed}: nothing broke")
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
