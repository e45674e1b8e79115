"""Processes: the session's own end, signals to others, ptrace, and what would like to live on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from solostream.errors import SandboxError
from solostream.sandbox.conformance import host
from solostream.sandbox.conformance.case import Arena, Skip, case, expect
from solostream.sandbox.types import Claim

_ALL: tuple[Claim, ...] = ("processes", "sessions")


async def dies(arena: Arena, code: str) -> None:
    """`code` ends its own process: the call says "killed", the state is gone, and the session goes on afresh."""
    session = await arena.open()
    await session.run("x = 1")
    seen = await session.run("print('last words', flush=True)\n" + code, timeout=20)
    expect(seen.status == "killed" and not seen.state_kept, "status is killed, state_kept false", seen)
    expect(seen.stdout == "last words\n", "what was printed before is kept", seen)
    after = await session.run("print('x' in globals())")
    expect(after.stdout == "False\n", "the session goes on afresh", after)


@case("os._exit(0) is never ok", "state")
async def exit_0(arena: Arena) -> None:
    await dies(arena, "import os\nos._exit(0)")


@case("os._exit(3) from a thread", "state")
async def exit_3(arena: Arena) -> None:
    await dies(arena, "import os, threading, time\nthreading.Timer(0.1, os._exit, [3]).start()\ntime.sleep(30)")


@case("segmentation fault")
async def segfault(arena: Arena) -> None:
    await dies(arena, "import ctypes\nctypes.string_at(0)")


@case("abort")
async def abort(arena: Arena) -> None:
    await dies(arena, "import os\nos.abort()")


@case("SIGKILL to itself")
async def kill_self(arena: Arena) -> None:
    # Process 1 of a pid namespace is deaf to its own signals.
    code = "import os, signal\nif os.getpid() == 1:\n    os._exit(9)\nos.kill(os.getpid(), signal.SIGKILL)"
    await dies(arena, code)


@case("SIGSTOP to itself")
async def stop_self(arena: Arena) -> None:
    session = await arena.open()
    seen = await session.run("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nprint('woken')", timeout=1)
    expect(seen.status in ("timeout", "killed", "ok"), "a stopped process is ended, or cannot stop itself", seen)
    after = await session.run("print('on')")
    expect(after.stdout == "on\n", "the session goes on", after)


@case("a child that holds the output after its parent died", "orphans")
async def child_holds_pipe(arena: Arena) -> None:
    code = "import os, time\nif os.fork() == 0:\n    time.sleep(50)\n    os._exit(0)\nos._exit(1)"
    session = await arena.open()
    seen = await asyncio.wait_for(session.run(code, timeout=20), 15)
    expect(seen.status == "killed", "the call ends with its process, not with the child", seen)


@case("a child that holds the output after a time-out", "orphans")
async def child_after_timeout(arena: Arena) -> None:
    code = """
import os, signal, time
if os.fork() == 0:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(50)
    os._exit(0)
while True:
    try:
        time.sleep(1)
    except BaseException:
        pass
"""
    session = await arena.open()
    seen = await asyncio.wait_for(session.run(code, timeout=1), 20)
    expect(seen.status == "timeout", "the call ends near its time-out", seen)
    after = await session.run("print('on')")
    expect(after.stdout == "on\n", "the session goes on", after)


@case("double-forked daemons die with the session", "orphans")
async def daemons(arena: Arena) -> None:
    code = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        time.sleep(120)
    os._exit(0)
os.wait()
print('gone')
"""
    seen = await arena.run(code)
    expect(seen.stdout == "gone\n", "the daemon starts", seen)  # that none is left is looked at after every case


@case("zombies are reaped with the session", "orphans")
async def zombies(arena: Arena) -> None:
    code = "import os\nfor _ in range(30):\n    if os.fork() == 0:\n        os._exit(0)\nprint('made')"
    seen = await arena.run(code)
    expect(seen.stdout == "made\n", "thirty children that nobody waits for", seen)


@case("background work of a call that returned dies with the session", "orphans")
async def background(arena: Arena) -> None:
    code = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-S', '-c', {!r}])\nprint('started')"
    rename = f"import ctypes, time; ctypes.CDLL(None).prctl(15, b'{arena.tag}'); time.sleep(120)"
    seen = await arena.run(code.format(rename))
    expect(seen.stdout == "started\n", "a child may run on while the session is open", seen)
    await asyncio.sleep(0.3)


@case("a child without a parent-death signal whose fork server is gone", "orphans", alone=True)
async def without_death_signal(arena: Arena) -> None:
    code = """
import ctypes, os, resource, signal, time
server = os.getppid()
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
if os.fork() == 0:
    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    time.sleep(120)
if server > 1:
    try:
        resource.prlimit(server, resource.RLIMIT_CPU, (1, 1))
    except OSError:
        pass
print('left')
"""
    seen = await arena.run(code)
    expect(seen.stdout == "left\n", "the child is started", seen)  # that none is left is looked at after every case


@case("a child that is given to the session's parent: CLONE_PARENT", "orphans")
async def adopted(arena: Arena) -> None:
    code = """
import ctypes, os, time
number = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]
for seconds in (0, 60):
    if ctypes.CDLL(None).syscall(ctypes.c_long(number), ctypes.c_long(0x8000 | 17), 0, 0, 0, 0) == 0:
        time.sleep(seconds)
        os._exit(0)
print('tried')
"""
    seen = await arena.run(code)
    expect(seen.stdout == "tried\n", "the session goes on", seen)  # that it can be closed is looked at afterwards


@case("folders with mode 0 go with the session", "orphans", "filesystem")
async def closed_folders(arena: Arena) -> None:
    code = f"""
import os
os.makedirs('{arena.tag}keep/inner')
open('{arena.tag}keep/inner/file', 'w').write('x' * 100)
for folder in ('{arena.tag}keep/inner', '{arena.tag}keep'):
    os.chmod(folder, 0)
os.mkdir('{arena.tag}born', 0)
print('made')
"""
    seen = await arena.run(code)
    expect(seen.stdout == "made\n", "the folders are made", seen)  # that no file is left is looked at after every case


@case("3,000 nested folders go with the session", "orphans", "filesystem")
async def nested_folders(arena: Arena) -> None:
    code = f"""
import os
for _ in range(3000):
    os.mkdir('{arena.tag}n')
    os.chdir('{arena.tag}n')
print('made')
"""
    seen = await arena.run(code)
    expect(seen.stdout == "made\n" or not seen.ok, "the folders are made, or refused", seen)
    await arena.close()
    after = await arena.run("print('on')")
    expect(after.stdout == "on\n", "the backend goes on", after)


# Signals go out only where something contains them: another pid namespace, or another uid behind a seccomp filter.
_CONTAINED = """
import ctypes, os, signal
try:
    own = os.readlink('/proc/self/ns/pid')
except OSError:
    own = None
filtered = ctypes.CDLL(None).prctl(21, 0, 0, 0, 0) == 2  # by system call: /proc may be hidden
contained = own not in (None, {namespace!r}) or (os.getuid() != {uid} and filtered)
"""


async def _fires(arena: Arena, code: str) -> None:
    neighbour, session = await arena.open(), await arena.open()
    if "state" in arena.sandbox.claims:
        await neighbour.run("alive = 'yes'")
    contained = _CONTAINED.format(namespace=os.readlink("/proc/self/ns/pid"), uid=os.getuid())
    seen = await session.run(contained + code, timeout=5)
    expect("not contained" not in seen.stdout, "a pid namespace or another uid contains its signals", seen)
    if "state" in arena.sandbox.claims:
        after = await neighbour.run("alive")
        expect(after.result == "'yes'", "another session is unharmed", after)


@case("kill(-1)", *_ALL, alone=True)
async def kill_all(arena: Arena) -> None:
    code = """
if not contained:
    print('not contained')
else:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(-1, number)
        except OSError as error:
            print(error)
"""
    await _fires(arena, code)


@case("killing its process group", *_ALL, alone=True)
async def kill_group(arena: Arena) -> None:
    # Group 0 means that the leader lives outside: the signal would cross the namespace.
    code = f"""
if os.getpgrp() == 0 or (not contained and os.getpgrp() == {os.getpgrp()}):
    print('not contained')
else:
    os.killpg(0, signal.SIGKILL)
"""
    await _fires(arena, code)


@case("killing its parent and pid 1", *_ALL, alone=True)
async def kill_parent(arena: Arena) -> None:
    code = f"""
if not contained or os.getppid() == {os.getpid()}:
    print('not contained')
else:
    for pid in {{os.getppid(), 1}} - {{0}}:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(pid, number)
            except OSError as error:
                print(error)
"""
    await _fires(arena, code)


async def _others(arena: Arena) -> tuple[list[int], list[int]]:
    """Pids of a neighbour session: as the host sees them and as it sees itself."""
    neighbour = await arena.open()
    inside = int((await neighbour.run("import os\nprint(os.getpid())")).stdout)
    outside = list(host.tagged(arena.tag))
    return outside, [inside]


@case("killing another session", *_ALL)
async def kill_neighbour(arena: Arena) -> None:
    outside, inside = await _others(arena)
    neighbour = arena.sessions[0]
    if "state" in arena.sandbox.claims:
        await neighbour.run("alive = 'yes'")
    code = f"""
import os, signal
for pid in {outside + inside}:
    if pid != os.getpid():
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError as error:
            print(error)
"""
    await arena.run(code)
    if "state" in arena.sandbox.claims:
        after = await neighbour.run("alive")
        expect(after.result == "'yes'", "the other session is unharmed", after)


@case("ptrace of the host, of its parent and of another session", *_ALL)
async def ptrace(arena: Arena) -> None:
    outside, inside = await _others(arena)
    code = f"""
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
attached = []
for pid in {[os.getpid(), *outside]} + [os.getppid(), 1]:
    if pid in (0, os.getpid()) or (pid in {inside} and pid not in {outside}):
        continue
    if libc.ptrace(16, pid, 0, 0) == 0:
        attached.append(pid)
        os.waitpid(pid, 0x40000000)
        libc.ptrace(17, pid, 0, 0)
print('attached', attached)
"""
    seen = await arena.run(code, timeout=10)
    expect(seen.stdout == "attached []\n" or not seen.ok, "every attach is refused", seen)


@case("reading other processes' memory: /proc/1/mem", *_ALL)
async def memory_of_others(arena: Arena) -> None:
    outside, _ = await _others(arena)
    code = f"""
import os
read = []
for pid in {{{os.getpid()}, os.getppid(), 1, *{outside}}} - {{0, os.getpid()}}:
    try:
        with open(f'/proc/{{pid}}/maps') as maps:
            start = int(maps.readline().split('-')[0], 16)
        with open(f'/proc/{{pid}}/mem', 'rb', buffering=0) as memory:
            memory.seek(start)
            if memory.read(16):
                read.append(pid)
    except (OSError, ValueError, OverflowError):
        pass
print('read', read)
"""
    seen = await arena.run(code)
    expect(seen.stdout == "read []\n", "no other process's memory can be read", seen)


@case("a cancelled call leaves no stale reply")
async def cancelled(arena: Arena) -> None:
    session = await arena.open()
    running = asyncio.create_task(session.run("import time\ntime.sleep(1)\nprint('stale')", timeout=30))
    await asyncio.sleep(0.3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    try:
        seen = await session.run("print('fresh')")
    except SandboxError:
        return  # cancelling closed the session: as good
    expect(seen.stdout == "fresh\n", "the next call gets its own reply", seen)


# Runs in a process of its own, which is then killed: one session idle with a daemon, one in the middle of a call.
_OWNER = """
import asyncio, json, sys
from solostream.sandbox.conformance.suite import LIMITS
from solostream.sandbox.spec import open_sandbox

async def main(spec, tag):
    rename = f"import ctypes; ctypes.CDLL(None).prctl(15, b'{tag}')"
    sandbox = open_sandbox(spec, limits=LIMITS)
    idle, busy = await sandbox.open(), await sandbox.open()
    await idle.run(rename + "\\nimport os, time\\nif os.fork() == 0:\\n    os.setsid()\\n    time.sleep(120)")
    await busy.run(rename)
    call = asyncio.create_task(busy.run(rename + "\\nimport time\\ntime.sleep(100)", timeout=110))
    await asyncio.sleep(0.5)
    print("ready", flush=True)
    await call

asyncio.run(main(*json.loads(sys.argv[1])))
"""


@case("nothing survives when the owner is killed", "orphans")
async def owner_killed(arena: Arena) -> None:
    if arena.spec is None:
        raise Skip("needs a spec string, to open the backend in a process that can be killed")
    argument = json.dumps([arena.spec, arena.tag])
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _OWNER, argument, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    assert owner.stderr is not None
    try:
        line = await asyncio.wait_for(owner.stdout.readline(), 40)
        if line != b"ready\n":
            raise SandboxError((await owner.stderr.read()).decode().strip().splitlines()[-1])
        below = set(host.descendants(owner.pid)) | set(host.tagged(arena.tag))
    finally:
        owner.send_signal(signal.SIGKILL)
        await owner.wait()
    left = await host.settle(lambda: [pid for pid in below if os.path.exists(f"/proc/{pid}")], 10)
    expect(not left, f"processes outlive their killed owner: {left}")
    expect(not await host.settle(lambda: host.tagged(arena.tag), 10), "sessions outlive their killed owner")
    expect(not await host.settle(lambda: host.containers(owner.pid), 10), "containers outlive their killed owner")
