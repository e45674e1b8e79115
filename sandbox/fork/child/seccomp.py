"""Seccomp: a filter that refuses the system calls a calculation never needs, built here as classic BPF (no libseccomp).

A refused call returns an error, it does not kill: Python reports it as an exception and goes on. Sockets of every
family are refused (socketpair is not), and so are namespaces, mounts, tracing, other processes' memory, kernel keys,
System V IPC, memory files, BPF, perf, io_uring, and every call newer than this table.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from . import linux

_REFUSED: dict[str, tuple[int | None, int | None]] = {  # (x86_64, aarch64)
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # the machine
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161),
    "setdomainname": (171, 162), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "vhangup": (153, 58), "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "personality": (135, 92), "uselib": (134, None), "sysfs": (139, None),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    # doors into the kernel that have led further before
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "lookup_dcookie": (212, 18),
    # kernel memory that no limit of the session counts
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # the network, and Unix sockets with it: abstract names would join sessions
    "socket": (41, 198),
}  # fmt: skip
# Without a pid namespace a session is killed as a process group, so nothing may leave it. These calls seem to succeed
# and do nothing: what daemonises itself runs, and dies with the rest.
_LEAVE_GROUP: dict[str, tuple[int | None, int | None]] = {"setsid": (112, 157), "setpgid": (109, 154)}

_CLONE, _CLONE3, _IOCTL = (56, 220), 435, (16, 29)
_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone() takes
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into somebody's terminal
_NEWEST = 462  # mseal; calls above it "do not exist"
_ARCH = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _EQUAL, _ATLEAST, _ANYBIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _MACHINE, _ARG0, _ARG1 = 0, 4, 16, 24
_SET_SECCOMP, _MODE_FILTER = 22, 2


def supported() -> bool:
    return os.uname().machine in _ARCH


def build(machine: str, stay_in_group: bool) -> bytes:
    """The filter for "x86_64" or "aarch64" as an array of struct sock_filter."""
    column, arch = _ARCH[machine]
    numbers = sorted(number for pair in _REFUSED.values() if (number := pair[column]) is not None)
    ignored = [pair[column] or -1 for pair in _LEAVE_GROUP.values()] if stay_in_group else []
    clone, ioctl = _CLONE[column], _IOCTL[column]
    program: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        # x86_64: also catches the x32 calls, which start at 0x40000000
        (_ATLEAST, 0, 1, _NEWEST + 1),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_EQUAL, 0, 1, _CLONE3),  # its flags lie in memory, out of a filter's sight: the C library falls back to clone
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _ARG0),
        (_ANYBIT, 0, 1, _NAMESPACES),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 5, ioctl),
        (_LOAD, 0, 0, _ARG1),
        (_EQUAL, 1, 0, _TERMINAL[0]),
        (_EQUAL, 0, 1, _TERMINAL[1]),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for number in ignored:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO)]
    program += [(_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    return b"".join(struct.pack("<HBBI", *line) for line in program)


class Filter:
    """A program in the form that the kernel takes, ready before the fork."""

    def __init__(self, program: bytes) -> None:
        self._code = ctypes.create_string_buffer(program, len(program))
        header = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(self._code))
        self._header = ctypes.create_string_buffer(header, len(header))
        self._address = ctypes.addressof(self._header)

    def install(self) -> None:
        """Put this thread and all it starts under the filter for good. Needs no_new_privs. Raises OSError."""
        linux.prctl(_SET_SECCOMP, _MODE_FILTER, self._address)
