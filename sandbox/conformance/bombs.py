"""Code that takes too much: processes, threads, memory, disk, descriptors, stack. Each stops far below what is asked.

Every bomb is bounded: it counts, its children end by themselves, and it asks for a few times the limit at most.
"""

from __future__ import annotations

import asyncio
import time

from solostream.sandbox.conformance.case import Arena, case, expect
from solostream.sandbox.types import Execution, Session

_FORKS = """
import os, signal, time
made, why = 0, 'none'
for _ in range({asked}):
    try:
        pid = os.fork()
    except OSError as error:
        why = type(error).__name__
        break
    if pid == 0:
        signal.alarm(4)
        time.sleep(4)
        os._exit(0)
    made += 1
print(made, why)
"""

_THREADS = """
import threading, time
made = 0
stop = threading.Event()
try:
    for _ in range({asked}):
        threading.Thread(target=stop.wait, args=(20,), daemon=True).start()
        made += 1
except (RuntimeError, MemoryError):
    pass
print(made)
stop.set()
"""

# 16 MB at a time, every page touched, at most {mb} MB in all.
_PYTHON_MEMORY = """
kept = []
while len(kept) * 16 < {mb}:
    kept.append(b'x' * (16 << 20))
print('took it all')
"""

_C_MEMORY = """
import ctypes
libc = ctypes.CDLL(None)
libc.{call}.restype = ctypes.c_void_p
libc.{call}.argtypes = {types}
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size, taken, failed = 16 << 20, 0, (None, 0, 2**64 - 1)
while taken < {mb}:
    block = libc.{call}({args})
    if block in failed:
        raise MemoryError('refused')
    libc.memset(block, 1, size)
    taken += 16
print('took it all')
"""

# Each child touches its share, waits until the others have too, and reports only if it is still alive then.
_SHARES = """
import os, signal, time
reader, writer = os.pipe()
for _ in range({children}):
    if os.fork() == 0:
        signal.alarm(25)
        try:
            block = b'x' * ({mb} << 20)
            time.sleep(3)
            os.write(writer, b'.')
        finally:
            os._exit(0)
os.close(writer)
alive = 0
while data := os.read(reader, 100):
    alive += len(data)
print('alive', alive)
"""

# As above, each child an orphan, after whatever `hide` does.
_HIDDEN_SHARES = """
import ctypes, os, signal, time
prctl = ctypes.CDLL(None).prctl
{hide}
reader, writer = os.pipe()
for _ in range({children}):
    if os.fork() == 0:
        if os.fork():
            os._exit(0)
        {hide}
        signal.alarm(25)
        try:
            block = b'x' * ({mb} << 20)
            time.sleep(3)
            os.write(writer, b'.')
        finally:
            os._exit(0)
    os.wait()
os.close(writer)
alive = 0
while data := os.read(reader, 100):
    alive += len(data)
print('alive', alive)
"""

# Whatever file this process can write to behind a descriptor is kept over the calls and filled.
_HOARD = """
import os, stat
try:
    kept
except NameError:
    kept = []
for fd in range(32):
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode) and fd not in kept:
            kept.append(os.dup(fd))
            for mb in range(1024):
                os.pwrite(kept[-1], b'x' * (1 << 20), mb << 20)
    except OSError:
        pass
print('mb', sum(os.fstat(fd).st_blocks for fd in kept) >> 11)
"""

_MAPPINGS = """
import ctypes, os, signal, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
for number in range({mappings}):  # neighbours with different rights do not merge
    libc.mmap(None, 4096, 1 + 2 * (number % 2), 0x8022, -1, 0)
for _ in range({children}):
    if os.fork() == 0:
        signal.alarm(8)
        time.sleep(8)
        os._exit(0)
time.sleep(4)
print('mapped')
"""

_DISK = """
import os
block, total = b'd' * (1 << 20), 0
for number, folder in enumerate({folders}):
    try:
        with open(os.path.join(folder, f'{name}{{number}}'), 'wb', buffering=0) as file:
            while total < {mb}:
                total += file.write(block) / (1 << 20)
    except OSError:
        pass
print(round(total))
"""

_INODES = """
import os, time
os.makedirs('{name}', exist_ok=True)
deadline, made = time.time() + 5, 0
try:
    while made < 100_000 and time.time() < deadline:
        os.close(os.open(f'{name}/{{made}}', os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError:
    pass
print(made)
"""


def number(seen: Execution, promise: str) -> int:
    """The first word of stdout. A call that was ended before it could print counts as 0."""
    words = seen.stdout.split()
    expect(bool(words) or not seen.ok, promise, seen)
    return int(float(words[0])) if words else 0


async def goes_on(session: Session) -> None:
    """Assert that the session still runs code: a bomb may end the code, not the session."""
    seen = await session.run("print('on')")
    expect(seen.stdout == "on\n", "the session goes on", seen)


@case("fork bomb", "processes", alone=True)
async def fork_bomb(arena: Arena) -> None:
    session = await arena.open()
    seen = await session.run(_FORKS.format(asked=400), timeout=10)
    made = number(seen, "the bomb prints how many forks it got")
    expect(made <= arena.limits.processes, f"at most {arena.limits.processes} processes, not {made}", seen)


@case("fork bomb that forks itself", "processes", alone=True)
async def exponential_fork_bomb(arena: Arena) -> None:
    code = """
import os, signal, time
signal.alarm(4)
for _ in range(9):  # 2**9 processes if nothing holds it
    try:
        os.fork()
        signal.alarm(4)
    except OSError:
        break
time.sleep(4)
"""
    seen = await arena.run(code, timeout=1.5)
    expect(seen.status in ("timeout", "killed", "memory", "error"), "the call is ended", seen)


@case("thread bomb", "processes", alone=True)
async def thread_bomb(arena: Arena) -> None:
    session = await arena.open()
    seen = await session.run(_THREADS.format(asked=600), timeout=10)
    made = number(seen, "the bomb prints how many threads it got")
    expect(made <= arena.limits.processes, f"at most {arena.limits.processes} threads, not {made}", seen)
    await goes_on(session)


async def _refused(arena: Arena, code: str) -> None:
    session = await arena.open()
    seen = await session.run(code, timeout=20)
    expect("took it all" not in seen.stdout, f"not more than {arena.limits.memory_mb} MB are given", seen)
    refused = seen.status in ("memory", "killed") or (seen.error is not None and seen.error.name == "MemoryError")
    expect(refused, "status is memory, or the code got a MemoryError", seen)
    await goes_on(session)


@case("Python memory bomb", "memory", alone=True)
async def python_memory(arena: Arena) -> None:
    await _refused(arena, _PYTHON_MEMORY.format(mb=4 * arena.limits.memory_mb))


@case("C memory bomb: malloc", "memory", alone=True)
async def malloc(arena: Arena) -> None:
    code = _C_MEMORY.format(call="malloc", types="[ctypes.c_size_t]", args="size", mb=4 * arena.limits.memory_mb)
    await _refused(arena, code)


@case("C memory bomb: shared anonymous mmap", "memory", alone=True)
async def shared_mmap(arena: Arena) -> None:
    types = "[ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]"
    args = "None, size, 3, 0x21, -1, 0"
    await _refused(arena, _C_MEMORY.format(call="mmap", types=types, args=args, mb=4 * arena.limits.memory_mb))


@case("one huge allocation", "memory")
async def huge(arena: Arena) -> None:
    session = await arena.open()
    for code in ("x = bytearray(10**12)", "x = [0] * 10**11", "x = 'a' * 10**12"):
        seen = await session.run(code)
        expect(seen.status in ("memory", "error"), f"{code!r} is refused", seen)
    await goes_on(session)


@case("N processes times the memory limit", "memory", alone=True)
async def shares(arena: Arena) -> None:
    share, limit = int(0.6 * arena.limits.memory_mb), arena.limits.memory_mb
    seen = await arena.run(_SHARES.format(children=5, mb=share), timeout=20)
    alive = int(seen.stdout.split()[-1]) if seen.stdout.startswith("alive") else 0
    expect(alive * share <= 1.25 * limit, f"together at most {limit} MB, not {alive} x {share} MB at once", seen)


async def _held_back(arena: Arena, hide: str) -> None:
    share, limit = int(0.6 * arena.limits.memory_mb), arena.limits.memory_mb
    code = _HIDDEN_SHARES.format(children=4, mb=share, hide=hide)
    seen = await arena.run(code, timeout=20)
    alive = int(seen.stdout.split()[-1]) if seen.stdout.startswith("alive") else 0
    expect(alive * share <= 1.25 * limit, f"together at most {limit} MB, not {alive} x {share} MB at once", seen)


@case("memory of orphans whose session is no subreaper", "memory", alone=True)
async def no_subreaper(arena: Arena) -> None:
    await _held_back(arena, "prctl(36, 0, 0, 0, 0)")


@case("memory of processes that cannot be read: PR_SET_DUMPABLE", "memory", alone=True)
async def not_dumpable(arena: Arena) -> None:
    await _held_back(arena, "prctl(4, 0, 0, 0, 0)")


@case("memory of daemons in sessions of their own", "memory", alone=True)
async def daemon_memory(arena: Arena) -> None:
    await _held_back(arena, "os.getpid() != os.getpgrp() and os.setsid()")


@case("memory behind descriptors that are kept over the calls", "memory", alone=True)
async def hoard(arena: Arena) -> None:
    session = await arena.open()
    held = 0
    for _ in range(8):
        seen = await session.run(_HOARD, timeout=20)
        held = int(seen.stdout.split()[1]) if seen.stdout.startswith("mb") else held
    expect(held <= arena.limits.memory_mb // 4, f"what no process maps stays small, not {held} MB")
    await goes_on(session)


@case("many mappings do not hold up the host or a neighbour", "memory", alone=True)
async def mappings(arena: Arena) -> None:
    neighbour = await arena.open()
    attackers = [await arena.open() for _ in range(2)]
    code = _MAPPINGS.format(mappings=15_000, children=arena.limits.processes // 2)
    running = [asyncio.create_task(attacker.run(code, timeout=15)) for attacker in attackers]
    worst = 0.0
    while not all(task.done() for task in running):
        start = time.monotonic()
        await neighbour.run("1 + 1", timeout=30)
        worst = max(worst, time.monotonic() - start)
        await asyncio.sleep(0.05)
    await asyncio.gather(*running)
    expect(worst < 5, f"a neighbour's call of a millisecond takes no {worst:.1f} s")


@case("disk fill, then another session writes", "disk", alone=True)
async def disk(arena: Arena) -> None:
    await _fill(arena, "['.', '/tmp', '/var/tmp', os.path.expanduser('~')]", "fill")


@case("/dev/shm fill, then another session writes", "disk", alone=True)
async def shm(arena: Arena) -> None:
    await _fill(arena, "['/dev/shm', '/run', '/run/lock']", "shm")


async def _fill(arena: Arena, folders: str, name: str) -> None:
    victim, session = await arena.open(), await arena.open()
    limit = arena.limits.disk_mb
    code = _DISK.format(folders=folders, name=arena.tag + name, mb=8 * limit)
    written = number(await session.run(code), "the fill prints how many MB it wrote")
    expect(written <= 2 * limit, f"about {limit} MB at most, not {written}")
    seen = await victim.run(f"print(open('{arena.tag}v', 'wb').write(b'v' * (1 << 20)))")
    expect(seen.stdout == "1048576\n", "another session can still write 1 MB", seen)


@case("inode fill, then another session creates files", "disk", alone=True)
async def inodes(arena: Arena) -> None:
    victim, session = await arena.open(), await arena.open()
    await session.run(_INODES.format(name=arena.tag + "in"), timeout=15)
    seen = await victim.run(f"for n in range(50):\n    open(f'{arena.tag}v{{n}}', 'w').close()\nprint('made')")
    expect(seen.stdout == "made\n", "another session can still create 50 files", seen)
    await session.close()


@case("descriptor exhaustion", "processes")
async def descriptors(arena: Arena) -> None:
    session = await arena.open()
    code = """
import os
held = []
try:
    while len(held) < 20_000:
        held.append(os.open('/dev/null', os.O_RDONLY))
except OSError as error:
    import errno
    print(len(held), errno.errorcode[error.errno])
"""
    seen = await session.run(code)
    expect(seen.stdout.endswith("EMFILE\n"), "EMFILE ends it", seen)
    expect(number(seen, "") <= arena.limits.open_files, f"at most {arena.limits.open_files} descriptors", seen)
    after = await session.run("print('on')")  # a backend may need a descriptor inside for each call
    expect(after.stdout == "on\n" or after.status == "killed", "the session goes on, or says that it cannot", after)
    await goes_on(session)


@case("deep recursion")
async def recursion(arena: Arena) -> None:
    session = await arena.open()
    seen = await session.run("def f(n):\n    return f(n + 1)\nf(0)")
    expect(seen.error is not None and seen.error.name == "RecursionError", "it is a RecursionError", seen)
    await goes_on(session)
    seen = await session.run(
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(n):\n    return [f(n + 1)]\nf(0)", timeout=5
    )
    expect(not seen.ok, "without Python's own limit it is ended too", seen)
    await goes_on(session)


@case("100,000 nested parentheses")
async def parentheses(arena: Arena) -> None:
    session = await arena.open()
    for left, right in ("()", "[]"):
        seen = await session.run(left * 100_000 + right * 100_000)
        expect(seen.status in ("error", "memory", "killed"), "the parser's refusal is an error of the code", seen)
    seen = await session.run("-" * 100_000 + "1", timeout=5)
    expect(seen.status != "ok" or seen.result == "1", "so is a row of minus signs", seen)
    await goes_on(session)
