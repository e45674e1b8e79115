"""Which tier this machine grants, found by trying, and the way into it for the fork server."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from typing import Any

from .. import linux
from . import landlock, rootfs, seccomp
from .confinement import INSIDE_UID, Confinement, prepare_namespaces

# nobody: what the fork server becomes when root starts it
NOBODY = 65534
_FALL = ("namespaces", "landlock", "rlimits")


def confinement(options: dict[str, Any]) -> Confinement:
    """Enter the strongest tier that this kernel grants, or the one that was asked for. Raises OSError.

    What can fail is tried in a child first: an attempt that breaks off half-way must not leave a half-built root.
    """
    asked = options["isolation"]
    tier = next(t for t in (_FALL if asked == "auto" else (asked,)) if t == asked or _grants(t))
    abi = landlock.abi()
    if tier == "landlock" and not abi:
        raise OSError("this kernel has no Landlock")
    abi = min(abi, options.get("landlock_abi", landlock.NEWEST))
    program, counted = b"", options.get("counted", True)
    if seccomp.supported():
        shared = tier != "namespaces" and not options.get("contained")
        epoll = options.get("epoll", False)
        program = seccomp.build(os.uname().machine, shared=shared, epoll=epoll, landlock_abi=abi, counted=counted)
    limits = {name: options[name] for name in ("memory_mb", "processes", "disk_mb", "open_files", "output_bytes")}
    folder = "/tmp"
    if tier == "namespaces":
        _enter_namespaces()
    else:
        folder = options["folder"] or tempfile.gettempdir()
        _open_python()
    return Confinement(tier, **limits, landlock_abi=abi, seccomp=program, folder=folder, counted=counted)


class ClosedPython(OSError):
    """The user that root becomes could neither start this Python nor import from it; says the remedy."""


def _open_python() -> None:
    """Without namespaces root still becomes nobody, who must reach this Python. Raises ClosedPython."""
    if os.geteuid() != 0 or _nobody_reaches_python():
        return
    with contextlib.suppress(OSError):
        rootfs.let_in(NOBODY)
        if _nobody_reaches_python():
            return
    raise ClosedPython(
        "sessions run as an unprivileged user, who may not enter a folder of this Python, "
        f"{' or '.join(dict.fromkeys((sys.prefix, sys.base_prefix)))}; "
        "open the folders above it (chmod o+x), use a Python outside of them, or start as another user than root"
    )


def _nobody_reaches_python() -> bool:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    try:
        drop_root()
        needed = (sys.executable, sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))
        reached = all(os.access(path, os.R_OK | os.X_OK) for path in needed)
        os._exit(0 if reached else 1)
    except BaseException:
        os._exit(1)


def _grants(tier: str) -> bool:
    if tier == "landlock":
        return landlock.abi() > 0
    if tier == "rlimits":
        return True
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    try:
        _enter_namespaces()
        inner = os.fork()
        if inner:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
        rootfs.mount_proc()
        # What a session does: this also needs a user namespace within ours.
        linux.unshare(linux.CLONE_NEWPID)
        child = os.fork()
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        calls = linux.Calls()
        prepare_namespaces(calls, Confinement("namespaces", 64, 8, 1, 64, 1, 0, b""))
        calls.make()
        os._exit(0)
    except BaseException:
        os._exit(1)


def _enter_namespaces() -> None:
    """As root the tree is built with root's eyes (Python may live in /root), then root is given up for good."""
    ours = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
    root = os.geteuid() == 0
    if root:
        linux.unshare(linux.CLONE_NEWNS)
        rootfs.build()
        drop_root()
    uid, gid = os.getuid(), os.getgid()
    calls = linux.Calls()
    calls.add("unshare", linux.CLONE_NEWUSER | ours)
    proc_self = linux.open_folder(calls, "/proc/self")
    linux.map_user(calls, INSIDE_UID, uid, gid, proc_self)
    calls.add("close", proc_self)
    calls.make()
    socket.sethostname("sandbox")
    if not root:
        rootfs.build()


def drop_root() -> None:
    """Become nobody where root started this. Raises OSError."""
    if os.geteuid() != 0:
        return
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else /proc/self belongs to root and the user map cannot be written
