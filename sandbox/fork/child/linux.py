"""The system calls that Python's standard library lacks, through ctypes; each raises OSError.

Numbers above 423 are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
_SYS_MOUNT_SETATTR = 442
_AT_RECURSIVE = 0x8000
_CAP_VERSION_3 = 0x20080522
_MADV_COLLAPSE = 25
_KCMP, _KCMP_VM = {"x86_64": 312, "aarch64": 272}, 1

# PyDLL keeps the interpreter lock: nothing here blocks, and the fork server is single-threaded.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _checked(value: int, *names: object) -> int:
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), " ".join(map(str, names)))
    return value


def syscall(number: int, *args: object) -> int:
    """A system call that the C library has no function for; its result. Raises OSError."""
    return _checked(_libc.syscall(ctypes.c_long(number), *args), "system call", number)


class Calls:
    """Calls of the C library that are prepared before a fork and made after it, one after another.

    In a fresh fork each page that is written to must be copied, and every object that Python uses is written to. What a
    session does first, line by line, took half of its cost; this loop uses few objects, which lie together.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[Any, tuple[object, ...], ctypes.c_int | None, bool, str]] = []

    def add(self, name: str, *args: object, into: ctypes.c_int | None = None, needed: bool = True) -> None:
        """`into` takes the result: an argument of later calls. One that is not `needed` may fail."""
        self._calls.append((getattr(_libc, name), args, into, needed, name))

    def add_syscall(self, number: int, *args: object, into: ctypes.c_int | None = None) -> None:
        """As `add`, for a system call that the C library has no function for."""
        self.add("syscall", ctypes.c_long(number), *args, into=into)

    def add_write(self, folder: int | ctypes.c_int, path: str, text: str, needed: bool = True) -> None:
        """Write to a file that is there."""
        fd, data = ctypes.c_int(), text.encode()
        self.add("openat", folder, path.encode(), os.O_WRONLY | os.O_CLOEXEC, into=fd, needed=needed)
        self.add("write", fd, data, ctypes.c_size_t(len(data)), needed=needed)
        self.add("close", fd, needed=needed)

    def add_mount(self, source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
        """As the function of that name."""
        self.add("mount", *_mounting(source, target, kind, flags, data))

    def make(self) -> None:
        """Raises OSError."""
        for function, args, into, needed, name in self._calls:
            value = function(*args)
            if value < 0 and needed:
                _checked(value, name)
            if into is not None:
                into.value = value


def fork() -> int:
    """The C library's own, without Python's after-fork hooks.

    For a single-threaded parent they have nothing to repair (no lock can be held by a thread that is gone), and they
    write to 200 pages that child and parent then no longer share, a fifth of a session's cost. What they would have
    done for `random` the caller does.
    """
    return _checked(_libc.fork(), "fork")


def same_memory(pid: int, other: int) -> bool:
    """Whether two processes have one memory; False also where the kernel does not say."""
    number = _KCMP.get(os.uname().machine)
    return number is not None and _libc.syscall(ctypes.c_long(number), pid, other, _KCMP_VM, 0, 0) == 0


def unshare(flags: int) -> None:
    """Enter new namespaces of the kinds in `flags` (CLONE_NEW…). Raises OSError."""
    _checked(_libc.unshare(flags), "unshare", hex(flags))


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that `fd` refers to, which is of `kind`. Raises OSError."""
    _checked(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """As the command of that name; `kind` is the file system's type. Raises OSError that names the target."""
    _checked(_libc.mount(*_mounting(source, target, kind, flags, data)), "mount", target)


def _mounting(source: str, target: str, kind: str, flags: int, data: str) -> tuple[object, ...]:
    return source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() if data else None


def unmount(target: str) -> None:
    """Detach `target` now, and free it when nobody uses it any more. Raises OSError."""
    _checked(_libc.umount2(target.encode(), MNT_DETACH), "umount", target)


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root and put the old one at `old`. Raises OSError."""
    _checked(_libc.pivot_root(new.encode(), old.encode()), "pivot_root", new)


def protect_mount(path: str, flags: int) -> None:
    """Set MS_RDONLY, MS_NOSUID, MS_NODEV on a mount and everything mounted below it."""
    attributes = ctypes.create_string_buffer(struct.pack("<QQQQ", flags, 0, 0, 0), 32)
    syscall(_SYS_MOUNT_SETATTR, -100, path.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(32))


def prctl(option: int, value: int = 0, pointer: int = 0) -> None:
    """Set one attribute of this process. Raises OSError."""
    _checked(_libc.prctl(option, value, pointer, 0, 0), "prctl", option)


_NOBODY_CAN = (ctypes.create_string_buffer(struct.pack("<Ii", _CAP_VERSION_3, 0), 8), ctypes.create_string_buffer(24))


def drop_capabilities(calls: Calls) -> None:
    """No capability from then on; under no_new_privs none ever again, whatever is executed."""
    calls.add("capset", *_NOBODY_CAN)


def collapse(start: int, size: int) -> None:
    """Put these bytes of anonymous memory into huge pages now (Linux 6.1; elsewhere nothing happens)."""
    _libc.madvise(start, size, _MADV_COLLAPSE)


def map_user(calls: Calls, inside: int, outside_uid: int, outside_gid: int, proc_self: int | ctypes.c_int) -> None:
    """Give the caller's fresh user namespace one user. `proc_self`: an open /proc/self, which may be hidden by then."""
    calls.add_write(proc_self, "setgroups", "deny")
    calls.add_write(proc_self, "uid_map", f"{inside} {outside_uid} 1")
    calls.add_write(proc_self, "gid_map", f"{inside} {outside_gid} 1")


def open_folder(calls: Calls, path: str, into: ctypes.c_int | None = None) -> ctypes.c_int:
    """Open a folder as a place; where its descriptor will be."""
    fd = ctypes.c_int() if into is None else into
    calls.add("open", path.encode(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, into=fd)
    return fd
