"""The system calls that Python's standard library lacks, through ctypes; each raises OSError.

Numbers above 423 are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct

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
    return _checked(_libc.syscall(ctypes.c_long(number), *args), "system call", number)


def fork() -> int:
    """fork() of the C library without Python's after-fork hooks.

    For a single-threaded parent they have nothing to repair (no lock can be held by a thread that is gone), and they
    write to 200 pages that child and parent then no longer share, a fifth of a session's cost. What they would have
    done for `random` the caller does.
    """
    return _checked(_libc.fork(), "fork")


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare", hex(flags))


def setns(fd: int, kind: int) -> None:
    _checked(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    done = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() if data else None
    )
    _checked(done, "mount", target)


def unmount(target: str) -> None:
    _checked(_libc.umount2(target.encode(), MNT_DETACH), "umount", target)


def pivot_root(new: str, old: str) -> None:
    _checked(_libc.pivot_root(new.encode(), old.encode()), "pivot_root", new)


def protect_mount(path: str, flags: int) -> None:
    """Set MS_RDONLY, MS_NOSUID, MS_NODEV on a mount and everything mounted below it."""
    attributes = ctypes.create_string_buffer(struct.pack("<QQQQ", flags, 0, 0, 0), 32)
    syscall(_SYS_MOUNT_SETATTR, -100, path.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(32))


def prctl(option: int, value: int = 0, pointer: int = 0) -> None:
    _checked(_libc.prctl(option, value, pointer, 0, 0), "prctl", option)


_NOBODY_CAN = (ctypes.create_string_buffer(struct.pack("<Ii", _CAP_VERSION_3, 0), 8), ctypes.create_string_buffer(24))


def drop_capabilities() -> None:
    """No capability now; under no_new_privs none ever again, whatever is executed."""
    _checked(_libc.capset(*_NOBODY_CAN), "capset")


def collapse(start: int, size: int) -> None:
    """Put these bytes of anonymous memory into huge pages now (Linux 6.1; elsewhere nothing happens)."""
    _libc.madvise(start, size, _MADV_COLLAPSE)


def map_user(inside: int, outside_uid: int, outside_gid: int, proc_self: int | None = None) -> None:
    """Give the caller's fresh user namespace one user. `proc_self`: an open /proc/self, where /proc itself is hidden
    or read-only by now."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {outside_uid} 1"),
        ("gid_map", f"{inside} {outside_gid} 1"),
    ):
        path = f"/proc/self/{name}" if proc_self is None else name
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_self)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
