"""Landlock: a process gives up, for itself and all it starts, every path that is not named here.

Source: the kernel's Documentation/userspace-api/landlock.rst, ABI 1 (Linux 5.13) to 7. Where the ABI is 6 or newer,
signals and abstract Unix sockets are confined to the session as well. A Landlocked process cannot ptrace one outside.
"""

from __future__ import annotations

import ctypes
import os
import struct

from .. import linux

NEWEST = 7  # the newest ABI that is known here
_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_IOCTL_DEV = 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
DEVICE = READ_FILE | WRITE_FILE | _IOCTL_DEV
_FD_OF_RULE = 8  # where in struct landlock_path_beneath_attr
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


class Rules:
    """Paths by right, opened before the fork; those that do not exist are left out."""

    def __init__(self, version: int, readable: list[str], devices: list[str]) -> None:
        self._everything = _all_rights(version)
        attributes = struct.pack("<QQQ", self._everything, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
        self._attributes = ctypes.create_string_buffer(attributes, 24)
        self._size = ctypes.c_size_t(24 if version >= 6 else 16 if version >= 4 else 8)
        self._fds: list[int] = []
        self._rules: list[ctypes.Array[ctypes.c_char]] = []
        for paths, rights in ((readable, READ), (devices, DEVICE)):
            for path in paths:
                if os.path.exists(path):
                    self._fds.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
                    rights_here = rights if os.path.isdir(path) else rights & _FILE_RIGHTS
                    self._rules.append(_rule(self._fds[-1], rights_here & self._everything))

    def prepare(self, calls: linux.Calls, *writable: str) -> None:
        """Confine the caller for good, with every right below `writable`. Needs no_new_privs."""
        ruleset = ctypes.c_int()
        calls.add_syscall(_CREATE, self._attributes, self._size, 0, into=ruleset)
        opened = [ruleset]
        rules = list(self._rules)
        for path in writable:
            rules.append(_rule(-1, self._everything))
            opened.append(ctypes.c_int.from_buffer(rules[-1], _FD_OF_RULE))
            linux.open_folder(calls, path, into=opened[-1])
        for rule in rules:
            calls.add_syscall(_ADD_RULE, ruleset, 1, rule, 0)
        calls.add_syscall(_RESTRICT_SELF, ruleset, 0)
        for fd in opened:
            calls.add("close", fd)

    def close(self) -> None:
        """In a process that is confined and does not close all else that it has inherited."""
        for fd in self._fds:
            os.close(fd)


def _rule(fd: int, rights: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack("<Qi", rights, fd), 12)
