"""The world outside: network, other sessions' sockets, host files, environment, privileges."""

from __future__ import annotations

import asyncio
import os
import socket

from solostream.sandbox.conformance import host
from solostream.sandbox.conformance.case import Arena, case, expect


@case("TCP out", "network")
async def tcp(arena: Arena) -> None:
    reached = 0

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal reached
        reached += 1
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        code = f"""
import socket
for address in (('127.0.0.1', {port}), ('192.0.2.1', 80), ('1.1.1.1', 443)):
    try:
        socket.create_connection(address, timeout=1).close()
        print('connected to', address)
    except OSError:
        pass
"""
        seen = await arena.run(code)
        expect(seen.stdout == "" and reached == 0, f"no connection is made; the host saw {reached}", seen)


@case("UDP out", "network")
async def udp(arena: Arena) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        code = f"""
import socket
try:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b'out', ('127.0.0.1', {listener.getsockname()[1]}))
        sender.sendto(b'out', ('192.0.2.1', 53))
        print('sent outside')
except OSError as error:
    print(type(error).__name__)
"""
        seen = await arena.run(code)
        await asyncio.sleep(0.1)
        try:
            heard = listener.recv(10)
        except BlockingIOError:
            heard = b""
    expect(heard == b"" and "sent outside" not in seen.stdout, "no datagram leaves", seen)


@case("DNS out", "network")
async def dns(arena: Arena) -> None:
    code = (
        "import socket\ntry:\n    print(socket.getaddrinfo('example.com', 80))\nexcept OSError:\n    print('unknown')"
    )
    seen = await arena.run(code, timeout=10)
    expect(seen.stdout in ("unknown\n", ""), "no name is resolved", seen)


@case("abstract sockets between sessions, and to the host", "sessions")
async def abstract_sockets(arena: Arena) -> None:
    listen = f"import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0{arena.tag}')\ns.listen()\nprint('bound')"
    connect = """
import socket
for name in {names}:
    try:
        socket.socket(socket.AF_UNIX).connect(name)
        print('connected')
    except OSError:
        pass
"""
    first, second = await arena.open(), await arena.open()
    await first.run(listen)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(f"\0{arena.tag}h")
        own.listen()
        names = [f"\0{arena.tag}", f"\0{arena.tag}h", "/var/run/docker.sock", "/run/docker.sock"]
        seen = await second.run(connect.format(names=names))
    expect(seen.stdout == "", "neither the neighbour's nor the host's socket can be reached", seen)


@case("System V shared memory between sessions", "sessions")
async def shared_memory(arena: Arena) -> None:
    key = int(arena.tag[2:8], 16) + 1000
    first, second = await arena.open(), await arena.open()
    library = "import ctypes\nlibc = ctypes.CDLL(None)\n"
    await first.run(f"{library}segment = libc.shmget({key}, 4096, 0o1666)")
    seen = await second.run(f"{library}print(libc.shmget({key}, 4096, 0) >= 0)")
    await first.run(f"{library}libc.shmctl(libc.shmget({key}, 4096, 0), 0, 0)\nNone")
    expect(seen.stdout != "True\n", "a neighbour's segment is not found", seen)


_READ = """
import os, subprocess
def attempt(path):
    for read in (lambda: open(path).read(), lambda: os.read(os.open(path, os.O_RDONLY), 100).decode(),
                 lambda: subprocess.run(['cat', path], capture_output=True, text=True).stdout):
        try:
            print(read())
        except Exception:
            pass
"""


@case("files of the host", "filesystem")
async def host_files(arena: Arena) -> None:
    paths = [*arena.hidden, *(f"/proc/{os.getpid()}/root{path}" for path in arena.hidden)]
    seen = await arena.run(_READ + f"for path in {paths}:\n    attempt(path)\nattempt('/etc/shadow')\n")
    expect(arena.secret not in seen.stdout, "a file that everyone on the host may read stays unread", seen)
    expect("root:" not in seen.stdout, "/etc/shadow stays unread", seen)


@case("symlinks and .. in paths", "filesystem")
async def odd_paths(arena: Arena) -> None:
    code = f"""
for number, path in enumerate({list(arena.hidden)}):
    os.symlink(path, f'{arena.tag}{{number}}')
    attempt(f'{arena.tag}{{number}}')
    attempt('../' * 20 + path.lstrip('/'))
    attempt('/proc/self/cwd/' + '../' * 20 + path.lstrip('/'))
    attempt('/tmp/..' + path)
    os.unlink(f'{arena.tag}{{number}}')
print('tried')
"""
    seen = await arena.run(_READ + code)
    expect("tried\n" in seen.stdout, "links may be made", seen)
    expect(arena.secret not in seen.stdout, "neither leads to a file of the host", seen)


_HOMES = sorted({"/root", os.path.expanduser("~")})


@case("/root and the home folder", "filesystem")
async def home(arena: Arena) -> None:
    code = f"""
import os
found = []
for home in {_HOMES}:
    for name in ('.ssh', '.bash_history', '.bashrc', '.profile', '.netrc', '.gitconfig', '.cache', '.config', '.aws'):
        if os.path.lexists(os.path.join(home, name)):
            found.append(os.path.join(home, name))
print(found)
"""
    seen = await arena.run(code)
    expect(seen.stdout == "[]\n", "nothing personal is there", seen)


@case("environment variables", "environment")
async def environment(arena: Arena) -> None:
    code = "import os, subprocess\nprint(dict(os.environ))\nprint(subprocess.run(['env'], capture_output=True).stdout)"
    seen = await arena.run(code)
    expect(arena.secret not in seen.stdout + seen.stderr, "a variable of the host is not passed on", seen)


@case("/proc/*/environ", "environment")
async def proc_environ(arena: Arena) -> None:
    code = f"""
import glob
found = []
for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/task/*/environ') + ['/proc/{os.getpid()}/environ']:
    try:
        with open(path, 'rb') as file:
            found += [path] if b'SOLOSTREAM_CANARY' in file.read() else []
    except OSError:
        pass
print(found)
"""
    seen = await arena.run(code)
    expect(seen.stdout == "[]\n", "no process's environment shows the host's", seen)


@case("inherited descriptors", "filesystem")
async def inherited(arena: Arena) -> None:
    code = f"""
import os
for fd in os.listdir('/proc/self/fd'):
    for path in {[path.lstrip("/") for path in arena.hidden]}:
        try:
            print(os.read(os.open('../' * 20 + path, os.O_RDONLY, dir_fd=int(fd)), 100))
        except (OSError, ValueError):
            pass
    try:
        print(os.read(os.open(f'/proc/self/fd/{{fd}}/../' + '../' * 20 + path, os.O_RDONLY), 100))
    except (OSError, ValueError):
        pass
"""
    seen = await arena.run(code)
    expect(arena.secret not in seen.stdout, "no open folder leads out", seen)


# Without /proc, which not every tier shows. Of a call's own, nothing is open yet.
_INHERITED = """
import fcntl, os, stat
found = []
for fd in range(1024):
    try:
        seen = os.fstat(fd)
    except OSError:
        continue
    harmless = stat.S_ISFIFO(seen.st_mode) or stat.S_ISSOCK(seen.st_mode) or not stat.S_IFMT(seen.st_mode)
    if stat.S_ISCHR(seen.st_mode):  # null, zero, full, random, urandom
        harmless = os.major(seen.st_rdev) == 1 and os.minor(seen.st_rdev) in (3, 5, 7, 8, 9)
    if stat.S_ISREG(seen.st_mode):  # memory, or a file that has no name
        harmless = seen.st_nlink == 0
    if not harmless:
        found.append((fd, oct(seen.st_mode), oct(fcntl.fcntl(fd, fcntl.F_GETFL))))
print(found)
"""


@case("what a session inherits: no folder, no file of the host", "filesystem")
async def nothing_inherited(arena: Arena) -> None:
    for code in (_INHERITED, f"import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', {_INHERITED!r}], "
                 "capture_output=True, text=True, close_fds=False).stdout, end='')"):  # fmt: skip
        seen = await arena.run(code)
        expect(seen.stdout == "[]\n", "pipes, sockets and harmless devices are all that is open", seen)


@case("flags of descriptors are no neighbour's", "sessions")
async def own_descriptions(arena: Arena) -> None:
    """Who shares an open file shares its flags and position: one session could stop another's reads and writes."""
    flags = "import fcntl\n[fcntl.fcntl(fd, fcntl.F_GETFL) for fd in range(3)]"
    neighbour = await arena.open()
    before = (await neighbour.run(flags)).result
    code = """
import fcntl, os
for fd in range(3):
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) ^ (os.O_NONBLOCK | os.O_APPEND))
"""
    expect((await arena.run(code)).ok, "it may change its own")
    after = (await neighbour.run(flags)).result
    expect(before == after, f"the neighbour's flags stay {before}, not {after}")


@case("raising its own limits: setrlimit", "processes")
async def setrlimit(arena: Arena) -> None:
    code = """
import resource as r
raised = []
for name in ('NOFILE', 'NPROC', 'AS', 'FSIZE', 'CORE', 'DATA', 'STACK'):
    which = getattr(r, 'RLIMIT_' + name)
    hard = r.getrlimit(which)[1]
    if hard != r.RLIM_INFINITY:
        try:
            r.setrlimit(which, (hard, hard + 1000))
            raised += [name] if r.getrlimit(which)[1] > hard else []
        except (OSError, ValueError):
            pass
print(raised)
"""
    seen = await arena.run(code)
    expect(seen.stdout == "[]\n", "no hard limit can be raised", seen)


@case("raising its priority: nice", "processes")
async def nice(arena: Arena) -> None:
    code = """
import os
before = os.nice(0)
try:
    os.nice(-10)
except OSError:
    pass
print(before, os.nice(0))
"""
    seen = await arena.run(code)
    before, after = map(int, seen.stdout.split())
    expect(after >= before, "its niceness does not fall", seen)


_SYSCALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
done = []
def attempt(name, *args):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if getattr(libc, name)(*args) == 0 else 1)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        done.append((name, *args))
"""


@case("unshare and setns", "processes")
async def unshare(arena: Arena) -> None:
    # user, mount, pid, net, ipc, uts namespaces; any new one would bring capabilities or hide its processes
    flags = [0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000]
    code = f"for flag in {flags}:\n    attempt('unshare', flag)\n    attempt('unshare', flag | 0x10000000)\nprint(done)"
    seen = await arena.run(_SYSCALLS + code)
    expect(seen.stdout == "[]\n", "no namespace is made", seen)


@case("mount, umount, chroot, pivot_root", "filesystem")
async def mount(arena: Arena) -> None:
    code = f"""
os.makedirs('{arena.tag}m', exist_ok=True)
attempt('mount', b'none', b'{arena.tag}m', b'tmpfs', 0, 0)
attempt('mount', b'proc', b'{arena.tag}m', b'proc', 0, 0)
attempt('mount', b'/', b'{arena.tag}m', 0, 4096, 0)
attempt('mount', 0, b'/', 0, 32 | 1 << 5, 0)
attempt('umount2', b'/proc', 2)
attempt('umount2', b'/tmp', 2)
attempt('chroot', b'{arena.tag}m')
os.rmdir('{arena.tag}m')
print(done)
"""
    seen = await arena.run(_SYSCALLS + code)
    expect(seen.stdout == "[]\n", "every one is refused", seen)


@case("becoming root: setuid, capabilities", "processes")
async def privileges(arena: Arena) -> None:
    code = """
attempt('setuid', 0)
attempt('setgid', 0)
attempt('setgroups', 0, 0)
asked, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # by system call: /proc may be hidden
print([d for d in done if os.getuid() != 0], libc.capget(asked, held) or sum(held), libc.prctl(39, 0, 0, 0, 0))
"""
    seen = await arena.run(_SYSCALLS + code)
    expect(seen.stdout == "[] 0 1\n", "no uid 0, no capabilities, no new privileges", seen)


@case("writes to site-packages and system folders", "filesystem")
async def packages(arena: Arena) -> None:
    name = arena.tag + "w.py"
    code = f"""
import os, sys, sysconfig
folders = {{os.path.dirname(os.__file__), *sysconfig.get_paths().values(), sys.prefix, '/', '/etc', '/usr', '/home'}}
for folder in sorted(folders):
    try:
        with open(os.path.join(folder, '{name}'), 'w') as file:
            file.write('planted = 1')
        print(os.path.join(folder, '{name}'))
    except OSError:
        pass
"""
    seen = await arena.run(code)
    planted = seen.stdout.split()
    on_host = host.remove(planted)
    expect(not on_host, f"nothing is written to the host, but {on_host[:3]} are")
    after = await arena.run(f"import os\nprint([p for p in {planted} if os.path.exists(p)])")
    expect(after.stdout == "[]\n", "no other session sees what was written", after)


@case("replacing a package's code in place", "filesystem", "sessions")
async def patched_package(arena: Arena) -> None:
    code = """
import json, os
try:
    with open(json.__file__, 'r+') as file:
        text = file.read()
        file.seek(0)
        file.write(text)
    print('rewritten', json.__file__)
except OSError:
    print('refused')
"""
    seen = await arena.run(code)  # writes back what it read: a backend that lets it through is not broken by it
    expect(seen.stdout == "refused\n", "the standard library is read-only", seen)
