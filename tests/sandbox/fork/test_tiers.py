"""The weaker tiers keep what they claim, and the refused system calls are refused."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from solostream.sandbox.fork import ForkSandbox
from solostream.sandbox.fork.child.isolation import seccomp
from tests.sandbox.fork.conftest import LIMITS, interrupted, need, running


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of this test's own that everyone may enter and write to, so that only the sandbox can keep them out.
    Not below `tmp_path`, whose parents are closed to others and are not this test's to open."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@pytest.mark.parametrize("tier", ["landlock", "rlimits"])
async def test_weaker_tiers_run_and_clean_up(tier: str, open_folder: Path, monkeypatch) -> None:
    need(tier)
    monkeypatch.setattr(tempfile, "tempdir", str(open_folder))
    box = ForkSandbox(limits=LIMITS, isolation=tier, allow_unisolated=True, preimport=("subprocess", "glob"), pool=1)
    try:
        session = await box.open()
        assert tier == "rlimits" or "landlock" in session.isolation
        assert "namespaces" not in session.isolation
        assert (await session.run("open('a', 'w').write('x'); x = 3")).ok
        assert (await session.run("open('a').read() * x")).result == "'xxx'"
        assert (await interrupted(session, "x = 4", "while True: pass")).state_kept
        assert (await session.run("x")).result == "4"
        # leaving the process group, by which the session is killed, seems to work and does not
        assert (await session.run("import os\ngroup = os.getpgrp()\nos.setsid()\nos.setpgid(0, 0)")).ok
        assert (await session.run("os.getpgrp() == group == os.getpid()")).result == "True"
        child = "import subprocess\nsubprocess.Popen(['/bin/sleep', '1000'], start_new_session=True).pid"
        pid = int((await session.run(child)).result or 0)
        assert running(pid)
        await session.close()
        for _ in range(500):  # the group has its SIGKILL; the kernel takes its time
            if not running(pid):
                break
            await asyncio.sleep(0.01)
        assert not running(pid)
    finally:
        await box.close()
    assert os.listdir(open_folder) == []


@pytest.mark.parametrize("tier", ["landlock", "rlimits"])
async def test_weaker_tiers_start_python_and_import(tier: str) -> None:
    """Also as root with a Python below a folder that only root may enter, whose other files stay out of sight."""
    need(tier)
    box = ForkSandbox(limits=LIMITS, isolation=tier, allow_unisolated=True, preimport=(), pool=1)
    try:
        session = await box.open()
        child = "[sys.executable, '-c', 'import sympy; print(6 * 7)']"
        seen = await session.run(f"import subprocess, sys\nsubprocess.run({child}, capture_output=True).stdout")
        assert seen.result == "b'42\\n'"
        assert (await session.run("import os\nos.getuid() != 0")).result == "True"
        seen = await session.run("import pathlib\nlist(pathlib.Path('/root').glob('.profile'))")
        assert seen.result == "[]" or seen.status == "error"
    finally:
        await box.close()


def test_a_python_that_the_sessions_cannot_reach_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """As root without the right to mount, as in a default container, and with a Python that only root may enter."""
    need("landlock")
    if os.geteuid() != 0:
        pytest.skip("only root's sessions run as another user")
    closed = tmp_path / "closed"
    venv.create(closed / "venv", symlinks=True)
    closed.chmod(0o700)
    code = """
from solostream.sandbox.fork import ForkSandbox
try:
    print(ForkSandbox(isolation='landlock').tier)
except ValueError as error:
    print(type(error).__name__, error)
"""
    # PR_CAPBSET_DROP, CAP_SYS_ADMIN
    drop = "import os, sys\nfrom solostream.sandbox.fork.child import linux\nlinux.prctl(24, 21)\n"
    drop += "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    python = str(closed / "venv/bin/python")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([python, "-c", drop, code], capture_output=True, text=True, env=environment)
    assert done.stdout.count("\n") == 1, done
    assert done.stdout.startswith(
        "UserError isolation landlock: sessions run as an unprivileged user, who may not enter"
    )
    assert str(closed / "venv") in done.stdout
    assert "chmod o+x" in done.stdout
    assert "isolation='auto'" not in done.stdout


async def test_landlock_hides_the_hosts_files(open_folder: Path) -> None:
    need("landlock")
    secret = open_folder / "secret"
    secret.write_text("canary")
    box = ForkSandbox(limits=LIMITS, isolation="landlock", preimport=(), pool=1)
    try:
        session = await box.open()
        for code in (
            f"open({str(secret)!r}).read()",
            f"open({str(open_folder / 'new')!r}, 'w')",
            "open('/proc/1/environ')",
        ):
            seen = await session.run(code)
            assert seen.error is not None, code
            assert seen.error.name == "PermissionError", code
    finally:
        await box.close()


async def test_refused_system_calls(sandbox: ForkSandbox) -> None:
    """Each by its number, so that no library stands between: EPERM is 1, ENOSYS 38."""
    session = await sandbox.open()
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    numbers = {name: pair[column] for name, pair in seccomp._REFUSED.items() if pair[column] is not None}
    code = f"""
import ctypes
call = ctypes.CDLL(None, use_errno=True).syscall
def refused(number):
    ctypes.set_errno(0)
    return call(number, 0, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno()
{{name: refused(number) for name, number in {numbers!r}.items() if refused(number) != 1}}, refused(435), refused(463)
"""
    assert (await session.run(code)).result == "({}, 38, 38)"


async def test_allowed_system_calls_still_work(sandbox: ForkSandbox) -> None:
    code = """
import os, socket, subprocess, threading, time, sys
left, right = socket.socketpair()
left.send(b"a")
thread = threading.Thread(target=time.sleep, args=(0,))
thread.start(); thread.join()
child = subprocess.run([sys.executable, "-I", "-c", "print(6 * 7)"], capture_output=True, text=True).stdout
right.recv(1), child, os.getuid()
"""
    assert (await (await sandbox.open()).run(code)).result == "(b'a', '42\\n', 1000)"


@pytest.mark.parametrize("tier", ["namespaces", "landlock"])
async def test_nothing_that_waits_for_a_source_holds_the_output(tier: str) -> None:
    """`sendfile` from a quiet socket keeps the pipe locked: whoever reads it would hang in the kernel, unkillable."""
    need(tier)
    box = ForkSandbox(limits=LIMITS, isolation=tier, preimport=())
    try:
        session = await box.open()
        code = """
import os, shutil, socket
here, there = socket.socketpair()
def refused(call, *arguments):
    try:
        call(*arguments)
    except PermissionError:
        return True
print(refused(os.sendfile, 1, here.fileno(), None, 3), refused(os.splice, here.fileno(), 1, 3))
open('a', 'w').write('copied')
with open(shutil.copyfile('a', 'b'), 'rb') as copy:
    here.sendfile(copy)
there.recv(9)
"""
        seen = await session.run(code)
        assert (seen.stdout, seen.result) == ("True True\n", "b'copied'")
    finally:
        await box.close()


def interpret(machine: str, code: bytes, number: int, *arguments: int, of: int | None = None) -> int:
    """What the kernel would make of a call."""
    program = [struct.unpack("<HBBI", line) for line in _lines(code)]
    words = {0: number, 4: seccomp._ARCH[machine][1] if of is None else of}
    for place, value in enumerate((*arguments, 0, 0, 0, 0)[:4]):
        words |= {16 + 8 * place: value & 0xFFFFFFFF, 20 + 8 * place: value >> 32}
    at = loaded = 0
    while True:
        op, yes, no, k = program[at]
        if op == 0x06:
            return int(k)
        if op == 0x20:
            loaded, jump = words[k], 0
        elif op == 0x54:
            loaded, jump = loaded & k, 0
        elif op == 0x05:
            jump = k
        else:
            jump = yes if {0x15: loaded == k, 0x35: loaded >= k}[op] else no
        at += 1 + jump


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_is_well_formed(machine: str, shared: bool) -> None:
    """Interpreted here as the kernel would: every jump lands inside, and the verdicts are the documented ones."""
    column, arch = seccomp._ARCH[machine]
    program = seccomp.build(machine, shared=shared, landlock_abi=2)

    def verdict(number: int | None, *arguments: int, of: int = arch) -> int:
        assert number is not None
        return interpret(machine, program, number, *arguments, of=of)

    allow, eperm, enosys, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
    clone, ioctl, fcntl = seccomp._CLONE[column], seccomp._IOCTL[column], seccomp._FCNTL[column]
    pair = seccomp._SOCKETPAIR[column]
    assert verdict(0, of=0x40000003) == kill  # a 32-bit call
    assert verdict({"x86_64": 1, "aarch64": 64}[machine]) == allow  # write
    assert {verdict(pair[column]) for pair in seccomp._REFUSED.values() if pair[column] is not None} == {eperm}
    success, other = (0x50000, eperm) if shared else (allow, allow)  # "success", and nothing done
    assert verdict(seccomp._IGNORED["setsid"][column]) == verdict(seccomp._IGNORED["fchmodat"][column]) == success
    assert verdict(seccomp._REFUSED_SHARED["fchownat"][column]) == other
    assert verdict(clone, 0x11) == allow
    assert verdict(clone, 0x10000011) == verdict(clone, 0x8011) == eperm  # CLONE_NEWUSER, CLONE_PARENT
    assert verdict(435) == verdict(0x40000001) == verdict(999) == enosys
    assert verdict(seccomp._ABSENT["epoll_create1"][column]) == enosys
    # Type T (0x80045430: TIOCGPTN) without TIOCSTI; FICLONE; FIOSETOWN, FS_IOC_ENABLE_VERITY, BTRFS_IOC_SUBVOL_CREATE
    asked = [verdict(ioctl, 5, request) for request in (0x5412, 0x5413, 0x80045430, 0x40049409)]
    assert asked == [eperm, allow, allow, allow]
    assert {verdict(ioctl, 5, request) for request in (0x8901, 0x40806685, 0x5000940E)} == {0x50019}
    prctl, einval = seccomp._PRCTL[column], 0x50016
    asked = [verdict(prctl, option) for option in (1, 15, 56, 63, 22, 35, 57, 62, 78, 0x53564D41)]
    assert asked == [allow] * 4 + [eperm] * 2 + [einval] * 4
    attach = seccomp._SETSOCKOPT[column]
    assert [verdict(attach, 4, 1, option) for option in (26, 50, 7)] == [eperm, eperm, allow]
    assert [verdict(fcntl, 5, command) for command in (1031, 1032, 2)] == [eperm, allow, allow]
    # stream 1, datagram 2, raw 3, seqpacket 5, each with flags; family 1 is AF_UNIX
    assert [verdict(pair, 1, 0o2004000 | kind) for kind in (1, 2, 3, 5)] == [allow, eperm, eperm, allow]
    assert verdict(pair, 2, 1) == eperm
    prlimit, setrlimit = seccomp._PRLIMIT[column], seccomp._SETRLIMIT[column]
    assert [verdict(prlimit, 0, resource) for resource in (4, 7)] == [allow, allow]  # asking
    assert [verdict(prlimit, 0, 4, new) for new in (0x1000, 1 << 40)] == [0x50000, 0x50000]
    assert [verdict(prlimit, pid, 7, 0x1000) for pid in (0, 77)] == [allow, other]
    assert [verdict(setrlimit, resource) for resource in (4, 7)] == [0x50000, allow]
    assert [verdict(seccomp._SETPRIORITY[column], which, who) for which, who in ((0, 0), (0, 77), (2, 0))] == [
        allow, other, eperm,
    ]  # fmt: skip
    cut = [verdict(seccomp._OPENAT[column], 0, 0, flags) for flags in (0o1000, 0o1001, 0o1003, 0)]
    assert cut == ([eperm, allow, eperm, allow] if shared else [allow] * 4)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_large_memory_without_a_file_is_shared_only_where_it_is_counted(machine: str) -> None:
    """MAP_SHARED 1, MAP_PRIVATE 2, MAP_SHARED_VALIDATE 3, MAP_ANONYMOUS 0x20; other flags beside them."""
    allow, enomem = 0x7FFF0000, 0x5000C
    number = seccomp._MMAP[{"x86_64": 0, "aarch64": 1}[machine]]

    def verdicts(counted: bool, flags: int) -> list[int]:
        program = seccomp.build(machine, shared=False, counted=counted)
        return [interpret(machine, program, number, 0, size, 3, flags) for size in (13, 16_384, 16_385, 1 << 33)]

    for flags in (0x21, 0x23, 0x8021):
        assert verdicts(False, flags) == [allow, allow, enomem, enomem]
        assert verdicts(True, flags) == [allow] * 4
    for flags in (0x22, 0x01, 0x4022):  # private, or of a file
        assert verdicts(False, flags) == [allow] * 4


def _lines(program: bytes) -> list[bytes]:
    return [program[at : at + 8] for at in range(0, len(program), 8)]
