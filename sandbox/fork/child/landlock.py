"""Landlock: a process gives up, for itself and all it starts, every path that is not named here.

Source: the kernel's Documentation/userspace-api/landlock.rst, ABI 1 (Linux 5.13) to 7. Where the ABI is 6 or newer,
signals and abstract Unix sockets are confined to the session as well. A Landlocked process cannot ptrace one outside.
"""

from __future__ import annotations

import ctypes
import os
import struct

from . import linux

_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_IOCTL_DEV = 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
DEVICE = READ_FILE | WRITE_FILE | _IOCTL_DEV
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | _IOCTL_DEV


def abi() -> int:
    """The kernel's Landlock version; 0 without Landlock."""
    try:
        return linux.syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    except OSError:
        return 0


def _all_rights(version: int) -> int:
    bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    return (1 << bits) - 1


def restrict(version: int, readable: list[str], writable: list[str], devices: list[str]) -> None:
    """Confine this process for good. Needs no_new_privs. Paths that do not exist are skipped."""
    everything = _all_rights(version)
    attributes = struct.pack("<QQQ", everything, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = linux.syscall(_CREATE, ctypes.create_string_buffer(attributes, 24), ctypes.c_size_t(size), 0)
    try:
        for paths, rights in ((readable, READ), (writable, everything), (devices, DEVICE)):
            for path in paths:
                _allow(ruleset, path, rights & everything)
        linux.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, fd), 12)
        linux.syscall(_ADD_RULE, ruleset, 1, rule, 0)
    finally:
        os.close(fd)
