"""Seccomp: a filter that refuses the system calls a calculation never needs, built here as classic BPF (no libseccomp).

A refused call returns an error, it does not kill: Python reports it as an exception and goes on. Sockets of every
family are refused, and so are datagram pairs, which can send to any path, and messages that carry descriptors; stream
pairs stay. Refused as well: namespaces, mounts, tracing, other processes' memory, kernel keys, System V IPC, memory
files, BPF, perf, io_uring, `sendfile` and `splice` (Python copies without them), and every call newer than this table;
and what draws on a pool that the kernel keeps for a user or for the machine: inotify, fanotify, asynchronous I/O, epoll
(Python falls back to poll), larger pipes, leases; further filters and rules; children that are given to the caller's
own parent. Of `prctl` and `ioctl` only what is named here is let through.

Where sessions share the host's pid namespace or its user (`shared`), other processes and the modes, owners, times and
extended attributes of files cannot be reached either: Landlock does not cover them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from .. import linux

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
    "statmount": (457, 457), "listmount": (458, 458), "lsm_set_self_attr": (460, 460),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "personality": (135, 92), "uselib": (134, None), "sysfs": (139, None),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    # doors into the kernel that have led further before
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "lookup_dcookie": (212, 18),
    # kernel memory that no limit of the session counts
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "mbind": (237, 235), "set_mempolicy": (238, 237), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "set_mempolicy_home_node": (450, 450), "vmsplice": (278, 75),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
    # a pipe stays locked while they wait for their source: whoever reads our output would wait in the kernel with us
    "sendfile": (40, 71), "splice": (275, 76), "tee": (276, 77),
    # System V and POSIX objects: whoever guesses a number or a name reaches those of its user
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # pools that all processes of a user, or of the machine, share
    "io_setup": (206, 0), "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "timer_create": (222, 107),
    # the network, and Unix sockets with it: abstract names would join sessions
    "socket": (41, 198), "bind": (49, 200), "connect": (42, 203), "listen": (50, 201),
    # descriptors in flight are counted per user; a session has nobody to send one to
    "sendmsg": (46, 211), "sendmmsg": (307, 269),
}  # fmt: skip
# The compiled filters of all processes are one pool, too, and each may write to the machine's log.
_REFUSED_LATER: dict[str, tuple[int | None, int | None]] = {"seccomp": (317, 277)}
# "There is no such call", so that libraries take another way: the watches of all of a user's epolls are one pool.
_ABSENT: dict[str, tuple[int | None, int | None]] = {"epoll_create": (213, None), "epoll_create1": (291, 20)}
# Without a pid namespace a session is killed as a process group, so nothing may leave it. These calls seem to succeed
# and do nothing: what daemonises itself runs, and dies with the rest. So do modes and times of files, which would reach
# the files of a user that host and sessions share, and which copying a file sets.
_IGNORED: dict[str, tuple[int | None, int | None]] = {
    "setsid": (112, 157), "setpgid": (109, 154),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
_REFUSED_SHARED: dict[str, tuple[int | None, int | None]] = {
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
# What takes a process number as its first argument: only 0, the caller itself.
_ONLY_ITSELF: dict[str, tuple[int | None, int | None]] = {
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274),
}  # fmt: skip
_OLD_TRUNCATE = (76, 45)  # Landlock knows of truncation since ABI 3
_OPEN, _OPENAT, _OPENAT2 = (2, None), (257, 56), 437

_CLONE, _CLONE3, _IOCTL, _FCNTL, _PRCTL = (56, 220), 435, (16, 29), (72, 25), (157, 167)
_SOCKETPAIR, _SETSOCKOPT, _SETPRIORITY, _IOPRIO_SET = (53, 199), (54, 208), (141, 140), (251, 30)
_PRLIMIT, _SETRLIMIT = _ONLY_ITSELF["prlimit64"], (160, 164)
# Every CLONE_NEW* flag that clone() takes, and CLONE_PARENT: a child of the fork server's would be in no account, and
# its namespace could not end before somebody buries it.
_CLONES = 0x7E028000
# Terminals and how much can be read (the requests of type T), without those that type into a terminal, take it or load
# a driver for it; and FICLONE, FICLONERANGE. Others change files that are only open for reading (flags, verity,
# subvolumes), send signals, or tell of the machine's network cards through any socket.
_TERMINAL, _TYPE = 0x5400, 0xFF00
_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD = 0x5412, 0x541C, 0x541D, 0x5423
_FICLONE, _FICLONERANGE = 0x40049409, 0x4020940D
# prctl knows an option for everything, memory of the kernel without limit among it (PR_FUTEX_HASH, 78). No math needs
# one newer than tagged addresses, but for vectors on aarch64 (63, 64); nor memory maps, nor filters.
_PR_SET_SECCOMP, _PR_SET_MM, _PR_NEWER, _PR_VECTORS = 22, 35, 57, (63, 64)
_MMAP = (9, 222)
SMALL_SHARED = 16_384  # bytes
# SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF and _EBPF: compiled into a pool that the machine shares, and
# without which no session can be confined.
_SOL_SOCKET, _ATTACH = 1, (26, 50, 51, 52)
# F_SETOWN, F_SETSIG, F_SETOWN_EX: signals to others. F_SETLEASE, F_NOTIFY: holding up or watching who uses a file.
# F_SETPIPE_SZ: the pages of a user's pipes are one pool.
_FCNTLS = (8, 10, 15, 1024, 1026, 1031)
_SOCK_STREAM, _SOCK_SEQPACKET = 1, 5
_RLIMIT_CORE = 4
_O_TRUNC, _O_ACCMODE = 0o1000, 3
_NEWEST = 462  # mseal; calls above it "do not exist"
_ARCH = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _EQUAL, _ATLEAST, _RETURN, _AND, _JUMP = 0x20, 0x15, 0x35, 0x06, 0x54, 0x05
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _ENOTTY, _EINVAL, _ENOMEM = (
    _ERRNO | number for number in (errno.EPERM, errno.ENOSYS, errno.ENOTTY, errno.EINVAL, errno.ENOMEM)
)
_SUCCESS = _ERRNO  # without doing anything
_NUMBER, _MACHINE = 0, 4
_SET_SECCOMP, _MODE_FILTER = 22, 2
_SECCOMP, _SET_FILTER, _ALL_THREADS = (317, 277), 1, 1


_Line = tuple[int, int, int, int]  # code, lines to skip if true, if false, value


class _Test(NamedTuple):
    """Whether an argument's half (`high`: its upper 32 bits), after a mask, equals a value, or `differs` from it, or is
    `atleast` it.
    """

    argument: int
    value: int
    differs: bool = False
    mask: int = 0xFFFFFFFF
    high: bool = False
    atleast: bool = False

    def lines(self, otherwise: int) -> list[_Line]:
        """Three lines; where the test fails, `otherwise` lines after them are skipped."""
        yes, no = (otherwise, 0) if self.differs else (0, otherwise)
        offset = 16 + 8 * self.argument + 4 * self.high
        compare = _ATLEAST if self.atleast else _EQUAL
        return [(_LOAD, 0, 0, offset), (_AND, 0, 0, self.mask), (compare, yes, no, self.value)]


def supported() -> bool:
    """Whether filters are written for this machine's architecture."""
    return os.uname().machine in _ARCH


def build(machine: str, *, shared: bool, epoll: bool = False, landlock_abi: int = 7, counted: bool = True) -> bytes:
    """The filter for "x86_64" or "aarch64" as an array of struct sock_filter.

    Args:
        shared: the session has the process numbers and perhaps the user of the host: see above.
        epoll: leave epoll, without which ZeroMQ does not run, and further filters: one more will follow.
        landlock_abi: below 3, calls that truncate are refused here.
        counted: a cgroup counts the session's memory. Else memory that processes share without a file must be small:
            nobody can see what of it is held.
    """
    column, arch = _ARCH[machine]
    refused = {**_REFUSED, **(_REFUSED_SHARED if shared else {}), **({} if epoll else _REFUSED_LATER)}
    verdicts = dict.fromkeys((pair[column] for pair in refused.values()), _EPERM)
    verdicts |= dict.fromkeys((pair[column] for pair in _ABSENT.values() if not epoll), _ENOSYS)
    verdicts |= dict.fromkeys((pair[column] for pair in _IGNORED.values() if shared), _SUCCESS)
    # Its flags lie in memory, out of a filter's sight: the C library falls back to clone.
    verdicts[_CLONE3] = _ENOSYS
    if shared and landlock_abi < 3:
        verdicts |= {_OLD_TRUNCATE[column]: _EPERM, _OPENAT2: _ENOSYS}
    answers: dict[int, list[_Line]] = {}
    answers |= {n: [(_RETURN, 0, 0, verdict)] for n, verdict in verdicts.items() if n is not None}
    conditional = _conditional(column, shared, landlock_abi) | ({} if counted else {_MMAP[column]: _SMALL_SHARED})
    answers |= {n: _checked(checks) for n, checks in conditional.items()}
    # x86_64: also catches the x32 calls, which start at 0x40000000
    ranges = [*_ranges(answers, _NEWEST), (_NEWEST + 1, [(_RETURN, 0, 0, _ENOSYS)])]
    program = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    return b"".join(struct.pack("<HBBI", *line) for line in [*program, *_search(ranges)])


def _ranges(answers: dict[int, list[_Line]], last: int) -> list[tuple[int, list[_Line]]]:
    """All call numbers up to `last`, as runs with one answer: where each starts, and what is done there."""
    ranges: list[tuple[int, list[_Line]]] = []
    for number in range(last + 1):
        answer = answers.get(number, [(_RETURN, 0, 0, _ALLOW)])
        if not ranges or ranges[-1][1] != answer:
            ranges.append((number, answer))
    return ranges


def _search(ranges: list[tuple[int, list[_Line]]]) -> list[_Line]:
    """Find the range by halves. The kernel runs a new filter once for every call that there is, to remember which are
    always allowed: comparing one number after another took a twentieth of a session's cost.
    """
    if len(ranges) == 1:
        return ranges[0][1]
    half = len(ranges) // 2
    below, above = _search(ranges[:half]), _search(ranges[half:])
    return [(_ATLEAST, 0, 1, ranges[half][0]), (_JUMP, 0, 0, len(below)), *below, *above]


def build_absent(machine: str) -> bytes:
    """The filter for what was left open until a program had started: no new epoll, no further filter."""
    column, arch = _ARCH[machine]
    numbers = [pair[column] for pair in (*_ABSENT.values(), *_REFUSED_LATER.values())]
    program = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    for number in numbers:
        if number is not None:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ENOSYS)]
    return b"".join(struct.pack("<HBBI", *line) for line in [*program, (_RETURN, 0, 0, _ALLOW)])


_Checks = list[tuple[list[_Test], int]]
_IOCTLS: _Checks = [([_Test(1, request)], _EPERM) for request in (_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD)] + [
    (
        [
            _Test(1, _TERMINAL, mask=_TYPE, differs=True),
            *(_Test(1, request, differs=True) for request in (_FICLONE, _FICLONERANGE)),
        ],
        _ENOTTY,
    )
]
_PRCTLS: _Checks = [([_Test(0, option)], _EPERM) for option in (_PR_SET_SECCOMP, _PR_SET_MM)] + [
    ([_Test(0, _PR_NEWER, atleast=True), *(_Test(0, option, differs=True) for option in _PR_VECTORS)], _EINVAL)
]
# MAP_SHARED (or MAP_SHARED_VALIDATE) with MAP_ANONYMOUS, by length.
_SMALL_SHARED: _Checks = [
    ([_Test(3, 0x21, mask=0x21), _Test(1, 0, differs=True, high=True)], _ENOMEM),
    ([_Test(3, 0x21, mask=0x21), _Test(1, SMALL_SHARED + 1, atleast=True)], _ENOMEM),
]


def _conditional(column: int, shared: bool, landlock_abi: int) -> dict[int, _Checks]:
    """Calls whose arguments decide: the first check whose tests all hold gives the verdict, else it is allowed."""
    others: _Checks = [([_Test(0, 0, differs=True)], _EPERM)] if shared else []
    checks: dict[int | None, _Checks] = {pair[column]: others for pair in _ONLY_ITSELF.values()}
    checks[_CLONE[column]] = [([_Test(0, 0, differs=True, mask=_CLONES)], _EPERM)]
    checks[_IOCTL[column]] = _IOCTLS
    checks[_PRCTL[column]] = _PRCTLS
    checks[_SETSOCKOPT[column]] = [([_Test(1, _SOL_SOCKET), _Test(2, option)], _EPERM) for option in _ATTACH]
    checks[_FCNTL[column]] = [([_Test(1, command)], _EPERM) for command in _FCNTLS]
    checks[_SOCKETPAIR[column]] = [
        ([_Test(0, 1, differs=True)], _EPERM),  # AF_UNIX only
        ([_Test(1, kind, differs=True, mask=0xF) for kind in (_SOCK_STREAM, _SOCK_SEQPACKET)], _EPERM),
    ]
    # Scheduling of all processes of the user; where they can be named, of any but the caller.
    whom: _Checks = [([_Test(1, 0, differs=True)], _EPERM)] if shared else []
    checks[_SETPRIORITY[column]] = [([_Test(0, 2)], _EPERM), *whom]
    checks[_IOPRIO_SET[column]] = [([_Test(0, 3)], _EPERM), *whom]
    # The limit on core files stays at 1, which alone keeps the kernel from starting a helper for each crash (core(5)).
    checks[_SETRLIMIT[column]] = [([_Test(0, _RLIMIT_CORE)], _SUCCESS)]
    checks[_PRLIMIT[column]] = others + [
        ([_Test(1, _RLIMIT_CORE), _Test(2, 0, differs=True, high=half)], _SUCCESS) for half in (False, True)
    ]
    if shared and landlock_abi < 3:
        for number, flags in ((_OPEN[column], 1), (_OPENAT[column], 2)):
            cuts = _Test(flags, _O_TRUNC, mask=_O_TRUNC)
            checks[number] = [([cuts, _Test(flags, mode, mask=_O_ACCMODE)], _EPERM) for mode in (0, 3)]
    return {number: its for number, its in checks.items() if number is not None and its}


def _checked(checks: _Checks) -> list[_Line]:
    body: list[_Line] = []
    for tests, verdict in checks:
        for left, test in zip(range(len(tests) - 1, -1, -1), tests, strict=True):
            body += test.lines(otherwise=3 * left + 1)
        body.append((_RETURN, 0, 0, verdict))
    return [*body, (_RETURN, 0, 0, _ALLOW)]


class Filter:
    """A program in the form that the kernel takes, ready before the fork."""

    def __init__(self, program: bytes) -> None:
        self._code = ctypes.create_string_buffer(program, len(program))
        header = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(self._code))
        self._header = ctypes.create_string_buffer(header, len(header))
        self._address = ctypes.addressof(self._header)

    def prepare(self, calls: linux.Calls) -> None:
        """Put the caller and all it starts under the filter for good. Needs no_new_privs."""
        calls.add("prctl", _SET_SECCOMP, _MODE_FILTER, self._address, 0, 0)

    def install_everywhere(self) -> None:
        """Put all threads of this process under the filter. Raises OSError."""
        linux.syscall(_SECCOMP[_ARCH[os.uname().machine][0]], _SET_FILTER, _ALL_THREADS, self._header)
