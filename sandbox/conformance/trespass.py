"""What belongs to others: attributes of the host's files, limits of its processes, its sockets, pools of the kernel.

The kernel counts some things per user or per machine, and checks others by the user alone; sessions, and often the
host, share both. Every case asks the host, or a neighbour, whether anything changed.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import subprocess
import tempfile
from pathlib import Path

from solostream.sandbox.conformance import host
from solostream.sandbox.conformance.case import Arena, Skip, case, expect

_LIBC = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def attempt(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        return error
"""


def _attributes(path: str) -> tuple[object, ...]:
    seen = os.stat(path)
    return seen.st_mode, seen.st_uid, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, os.listxattr(path)


@case("modes, owners, times and attributes of the host's files", "filesystem")
async def attributes(arena: Arena) -> None:
    folders = [os.path.dirname(path) for path in arena.hidden]
    code = f"""
for path in {[*arena.hidden, *folders]}:
    attempt(os.chmod, path, 0o600)
    attempt(os.chown, path, os.getuid(), -1)
    attempt(os.utime, path, (1, 1))
    attempt(os.setxattr, path, 'user.mark', b'1')
    attempt(os.truncate, path, 1)
    libc.chmod(path.encode(), 0o600)
"""
    before = {path: _attributes(path) for path in (*arena.hidden, *folders)}
    await arena.run(_LIBC + code)
    changed = [path for path, its in before.items() if _attributes(path) != its]
    expect(not changed, f"no attribute of a host's file changes, but those of {changed}")


@case("attributes of installed packages, through a descriptor", "filesystem")
async def package_attributes(arena: Arena) -> None:
    code = """
import json
fd = os.open(json.__file__, os.O_RDONLY)
seen = os.fstat(fd)
attempt(os.fchmod, fd, seen.st_mode)  # to what it was: only the time of the change would tell
attempt(lambda: os.utime(fd, ns=(seen.st_atime_ns, seen.st_mtime_ns)))
attempt(os.setxattr, fd, 'user.mark', b'1')
attempt(os.removexattr, fd, 'user.mark')
print(os.fstat(fd).st_ctime_ns == seen.st_ctime_ns)
"""
    seen = await arena.run(_LIBC + code)
    expect(seen.stdout == "True\n", "a package's file is not touched", seen)


@case("watching the host's folders: inotify", "filesystem")
async def watching(arena: Arena) -> None:
    code = f"""
fd = libc.inotify_init1(0o4000)
for path in {[os.path.dirname(path) for path in arena.hidden]}:
    if fd >= 0 and libc.inotify_add_watch(fd, path.encode(), 0xFFF) >= 0:
        print('watches', path)
"""
    seen = await arena.run(_LIBC + code)
    expect(seen.stdout == "", "no folder of the host can be watched", seen)


# Harmless when it works: a victim that only sleeps.
_MEDDLE = """
import resource
def meddle(pid):
    attempt(resource.prlimit, pid, resource.RLIMIT_NOFILE, (7, 7))
    attempt(os.sched_setaffinity, pid, {0})
    attempt(os.setpriority, os.PRIO_PROCESS, pid, 7)
    attempt(os.sched_setscheduler, pid, os.SCHED_BATCH, os.sched_param(0))
    libc.syscall({'x86_64': 251, 'aarch64': 30}[os.uname().machine], 1, pid, 3 << 13)
    attempt(os.kill, pid, 10)  # SIGUSR1
"""


def _held(pid: int) -> tuple[object, ...]:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE), os.sched_getaffinity(pid), os.getpriority(0, pid)


@case("limits, priorities, processors and signals of the host's processes", "host")
async def meddling(arena: Arena) -> None:
    victim = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220 - it must be the host's own child
    try:
        before, own = _held(victim.pid), os.getpriority(0, 0)
        code = f"meddle({victim.pid})\nattempt(os.setpriority, os.PRIO_PROCESS, {os.getpid()}, 7)\n"
        await arena.run(_LIBC + _MEDDLE + code)
        expect(victim.poll() is None, "a process of the host lives")
        expect(_held(victim.pid) == before, f"its limits stay {before}, not {_held(victim.pid)}")
        expect(os.getpriority(0, 0) == own, "the host's own priority stays")
    finally:
        victim.kill()
        victim.wait()


@case("limits, priorities and processors of another session", "sessions")
async def meddling_with_neighbour(arena: Arena) -> None:
    neighbour = await arena.open()
    pids = list(host.tagged(arena.tag))
    look = "import os, resource\nprint(resource.getrlimit(resource.RLIMIT_NOFILE), os.getpriority(0, 0))"
    before = await neighbour.run(look)
    await arena.run(_LIBC + _MEDDLE + f"for pid in {pids}:\n    meddle(pid) if pid != os.getpid() else None\n")
    after = await neighbour.run(look)
    expect(after.stdout == before.stdout, f"its limits stay {before.stdout!r}", after)


@case("a crash starts no helper on the host", "host")
async def core_helper(arena: Arena) -> None:
    code = """
import resource
for wanted in ((0, 0), (0, 1)):
    try:
        resource.setrlimit(resource.RLIMIT_CORE, wanted)
        resource.prlimit(0, resource.RLIMIT_CORE, wanted)
    except (OSError, ValueError):
        pass
print(resource.getrlimit(resource.RLIMIT_CORE)[0])
"""
    seen = await arena.run(code)
    pattern = Path("/proc/sys/kernel/core_pattern").read_text(encoding="utf-8")  # noqa: ASYNC240 - the kernel answers at once
    if seen.stdout == "0\n" and not pattern.startswith("|"):
        raise Skip("the limit on core files is 0, by the host's own, and this host's core_pattern starts no helper")
    # core(5): a core_pattern that is a pipe heeds no limit but this one
    expect(seen.stdout == "1\n", "the limit on core files is 1 and stays 1", seen)


@case("datagrams to the host's sockets", "network")
async def datagrams(arena: Arena) -> None:
    with (
        tempfile.TemporaryDirectory(prefix=".datagram-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own,
    ):
        os.chmod(folder, 0o755)
        path = str(Path(folder, "log"))
        own.bind(path)
        os.chmod(path, 0o777)
        own.setblocking(False)
        code = f"""
import socket
for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
    try:
        one, other = socket.socketpair(socket.AF_UNIX, kind)
    except OSError:
        continue
    for address in ({path!r}, '/dev/log', '/run/systemd/notify'):
        for reach in (lambda: one.sendto(b'planted', address), lambda: one.connect(address)):
            if not isinstance(attempt(reach), OSError) and kind != socket.SOCK_SEQPACKET:
                print('reached', address)
"""
        seen = await arena.run(_LIBC + code)
        try:
            heard = own.recv(16)
        except BlockingIOError:
            heard = b""
    expect(heard == b"" and "reached" not in seen.stdout, f"nothing arrives at the host's socket, not {heard!r}", seen)


@case("sessions that meet at a datagram socket", "sessions")
async def rendezvous(arena: Arena) -> None:
    make = "import socket\npair = attempt(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    name = f"\0{arena.tag}d"
    first, second = await arena.open(), await arena.open()
    loose = "attempt(lambda: libc.connect(pair[0].fileno(), bytes(16), 16))\n"  # AF_UNSPEC: hears anyone from now on
    await first.run(_LIBC + make + loose + f"attempt(lambda: pair[0].bind({name!r}))\npair")
    await second.run(_LIBC + make + f"attempt(lambda: pair[0].sendto(b'met', {name!r}))")
    seen = await first.run("pair[0].setblocking(False)\nprint(pair[0].recv(9))")
    expect("met" not in seen.stdout, "nothing arrives from another session", seen)


async def _takes_nothing_from_a_neighbour(arena: Arena, take: str, look: str) -> None:
    """`look` prints the same in a neighbour before and while another session holds what `take` took."""
    neighbour, session = await arena.open(), await arena.open()
    before = await neighbour.run(_LIBC + look)
    await session.run(_LIBC + take, timeout=15)
    after = await neighbour.run(_LIBC + look)
    expect(after.ok == before.ok and after.stdout == before.stdout, f"a neighbour still sees {before.stdout!r}", after)


@case("inotify instances are not taken from other sessions", "sessions", alone=True)
async def inotify(arena: Arena) -> None:
    take = """
import time
for _ in range(4):
    if os.fork() == 0:
        held = [libc.inotify_init1(0) for _ in range(60)]
        time.sleep(20)
        os._exit(0)
time.sleep(1)
"""
    await _takes_nothing_from_a_neighbour(arena, take, "print(libc.inotify_init1(0) >= 0)")


@case("larger pipes are not taken from other sessions", "sessions", alone=True)
async def pipes(arena: Arena) -> None:
    take = """
import fcntl
held = []
for _ in range(40):
    try:
        held.append(os.pipe())
        fcntl.fcntl(held[-1][1], 1031, 1 << 20)
    except OSError:
        pass
"""
    look = "import fcntl\npair = os.pipe()\nprint(fcntl.fcntl(pair[1], 1032))\nfor end in pair:\n    os.close(end)"
    await _takes_nothing_from_a_neighbour(arena, take, look)


@case("timers and queued signals are not taken from other sessions", "sessions", alone=True)
async def timers(arena: Arena) -> None:
    take = """
event, number = (ctypes.c_int * 16)(0, 0, 0, 1), ctypes.c_void_p()
made = 0
while made < 200_000 and libc.timer_create(0, ctypes.byref(event), ctypes.byref(number)) == 0:
    made += 1
"""
    look = (
        "event, number = (ctypes.c_int * 16)(0, 0, 0, 1), ctypes.c_void_p()\n"
        "print(libc.timer_create(0, ctypes.byref(event), ctypes.byref(number)))"
    )
    await _takes_nothing_from_a_neighbour(arena, take, look)


@case("descriptors in flight are not taken from other sessions", "sessions", alone=True)
async def in_flight(arena: Arena) -> None:
    take = """
import array, socket
held = []
for _ in range(6):
    held.append(socket.socketpair())
    try:
        for _ in range(4):
            rights = array.array('i', [held[0][0].fileno()] * 60)
            held[-1][0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError:
        pass
"""
    look = """
import array, socket
one, other = socket.socketpair()
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [one.fileno()]))]
print(attempt(one.sendmsg, [b'x'], rights))
"""
    await _takes_nothing_from_a_neighbour(arena, take, look)


@case("epoll watches are not hoarded", "sessions", alone=True)
async def epoll(arena: Arena) -> None:
    code = f"""
import select, time
made, end = 0, time.time() + 5
reader, writer = os.pipe()
for _ in range(6):
    if os.fork() == 0:
        count, polls = 0, []
        try:
            targets = [os.dup(reader) for _ in range({arena.limits.open_files // 2})]
            while time.time() < end:
                polls.append(select.epoll())
                for fd in targets:
                    polls[-1].register(fd, 1)
                    count += 1
        except OSError:
            pass
        os.write(writer, b'%d\\n' % count)
        time.sleep(max(0, end - time.time()))
        os._exit(0)
os.close(writer)
data = b''
while piece := os.read(reader, 1000):
    data += piece
print(sum(map(int, data.split())))
"""
    neighbour = await arena.open()
    seen = await arena.run(_LIBC + code, timeout=15)
    taken = int(seen.stdout.split()[0]) if seen.stdout.split() else 0
    bound = 2 * arena.limits.open_files
    expect(taken <= bound, f"at most {bound} watches of a pool that all share, not {taken}", seen)
    after = await neighbour.run("import asyncio\nasync def six():\n    return 6\nprint(asyncio.run(six()))")
    expect(after.error is None or "Function not implemented" not in after.error.message, "asyncio goes on", after)


@case("asynchronous I/O of the whole machine: io_setup", "host", alone=True)
async def asynchronous_io(arena: Arena) -> None:
    code = """
number, context, made = {'x86_64': 206, 'aarch64': 0}[os.uname().machine], ctypes.c_void_p(), 0
while made < 40:
    context.value = None
    if libc.syscall(number, 128, ctypes.byref(context)):
        break
    made += 1
import time
print(made, flush=True)
time.sleep(1)
"""
    seen = await arena.run(_LIBC + code)
    expect(seen.stdout == "0\n", "none of the machine's contexts is given", seen)


@case("System V objects of the host", "host")
async def system_v(arena: Arena) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    # Made for everyone, and for this user, whom the session may share: shared memory, semaphores, a queue.
    made = libc.shmget(0, 4096, 0o1666), libc.semget(0, 1, 0o1666), libc.msgget(0, 0o1666)
    segment = libc.shmat(made[0], None, 0)
    try:
        ctypes.memmove(segment, b"canary", 6)
        code = f"""
libc.shmat.restype = ctypes.c_void_p
block = libc.shmat({made[0]}, None, 0)
if block not in (None, 2**64 - 1):
    print('reads', ctypes.string_at(block, 6))
    ctypes.memset(block, 120, 6)
print(libc.semctl({made[1]}, 0, 16, 7), libc.msgsnd({made[2]}, bytes([1] * 16), 4, 0o4000))
for remove in (lambda n: libc.shmctl(n, 0, None), lambda n: libc.semctl(n, 0, 0), lambda n: libc.msgctl(n, 0, None)):
    for number in {made}:
        remove(number)
"""
        seen = await arena.run(_LIBC + code)
        expect(seen.stdout == "-1 -1\n", "nothing of the host's is reached by its number", seen)
        expect(ctypes.string_at(segment, 6) == b"canary", "the host's shared memory stays as it was")
        expect(libc.semctl(made[1], 0, 12) == 0, "its semaphore stays 0")  # GETVAL; -1 when it is gone
    finally:
        libc.shmdt(ctypes.c_void_p(segment))
        for remove, number in zip((libc.shmctl, libc.semctl, libc.msgctl), made, strict=True):
            remove(number, 0, 0 if remove is libc.semctl else None)


@case("the machine's network cards, asked through a socket pair", "network")
async def cards(arena: Arena) -> None:
    code = f"""
import fcntl, socket, struct
one, other = socket.socketpair()
for name in {[name for _, name in socket.if_nameindex() if name != "lo"]}:
    for request in (0x8913, 0x8915, 0x8927):  # flags, address, hardware address
        if not isinstance(attempt(fcntl.ioctl, one, request, struct.pack('256s', name.encode())), OSError):
            print(name, hex(request))
"""
    seen = await arena.run(_LIBC + code)
    expect(seen.stdout == "", "no card of the host answers", seen)


@case("compiled filters and rules of the kernel's are not taken from other sessions", "sessions")
async def filters(arena: Arena) -> None:
    """The machine has one pool of memory for compiled filters; without room in it no session can be confined."""
    code = """
import socket, struct
one, other = socket.socketpair()
allow = ctypes.create_string_buffer(struct.pack('<HBBI', 6, 0, 0, 0x7FFF0000), 8)
program = struct.pack('<HxxxxxxQ', 1, ctypes.addressof(allow))
seccomp = {'x86_64': 317, 'aarch64': 277}[os.uname().machine]
rules = struct.pack('<QQQ', 1, 0, 0)
takes = (
    lambda: isinstance(attempt(one.setsockopt, 1, 26, program), OSError),
    lambda: libc.prctl(22, 2, program, 0, 0),
    lambda: libc.syscall(seccomp, 1, 0, program),
    lambda: libc.syscall(444, rules, ctypes.c_size_t(8), 0) < 0,
)
print([bool(take()) for take in takes])
"""
    seen = await arena.run(_LIBC + code)
    expect(seen.stdout == f"{[True] * 4}\n", "none is given", seen)
