"""The file tree that sessions see: an empty root with read-only views of Python and the system libraries.

Built once, in the fork server's own mount namespace; each session then mounts its own /tmp over the shared one. No
home, no project, no host /tmp, no /run, no sockets, no devices beyond the harmless five. /dev/shm and /var/tmp are
links into the session's /tmp, so one size limit covers all that a session can write.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys

from .. import linux
from . import init

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime")
ZERO = "/dev/zero"
DEVICES = ("/dev/null", ZERO, "/dev/full", "/dev/random", "/dev/urandom")
INIT = "/.init"  # process 1 of every session
_PACKAGES = ("site-packages", "dist-packages")  # what installers call the folders that hold packages and nothing else
_OLD = "/.host"
_DEEPEST = 64  # folders within folders that are deleted in one go
_READ_ONLY = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV


@functools.cache
def readable() -> list[str]:
    """What a session may read: the system's programs and libraries, and this Python with its packages."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    # A `.pth` file may add another environment's packages. A project that it adds is not shown: it may hold anything.
    prefixes |= {path for path in sys.path if os.path.basename(path) in _PACKAGES and os.path.isdir(path)}
    prefixes |= {os.path.realpath(prefix) for prefix in prefixes}
    # The interpreter's symbolic link may pass through other folders (a venv made from a linked python).
    prefixes.add(os.path.dirname(os.path.dirname(os.path.realpath(sys.executable))))
    outside = sorted(p for p in prefixes if p != "/" and not any(_inside(p, system) for system in _SYSTEM))
    topmost = [p for p in outside if not any(p != other and _inside(p, other) for other in outside)]
    return [*_SYSTEM, *_ETC, *topmost]


def let_in(uid: int) -> None:
    """Where `uid` may not enter a folder above this Python (root's home, say), cover that folder, in a mount namespace
    of our own, by one that holds nothing but Python. Needs CAP_SYS_ADMIN.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    closed = {path: _closed_above(path, uid) for path in readable() if os.path.isdir(path)}
    shown = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path, folder in closed.items() if folder}
    covers = sorted({folder for folder in closed.values() if folder})
    for folder in covers:
        linux.mount("tmpfs", folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=755")
    _show_again(shown)
    for folder in covers:
        linux.protect_mount(folder, _READ_ONLY)


def _show_again(covered: dict[str, int]) -> None:
    """Folders that a mount has covered, by path and open descriptor, which is closed."""
    umask = os.umask(0o022)
    for path, fd in covered.items():
        os.makedirs(path, 0o755, exist_ok=True)
        linux.mount(f"/proc/self/fd/{fd}", path, flags=linux.MS_BIND | linux.MS_REC)
        os.close(fd)
    os.umask(umask)


def _closed_above(path: str, uid: int) -> str | None:
    """The topmost folder above `path` that `uid`, in no group of its own, may not enter."""
    above = ["/".join(path.split("/")[:end]) for end in range(2, path.count("/") + 1)]
    return next((f for f in above if (seen := os.stat(f)).st_uid != uid and not seen.st_mode & 1), None)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def build() -> None:
    """Replace this mount namespace's root. Needs CAP_SYS_ADMIN over the namespace; /proc stays the host's until
    `mount_proc` covers it.
    """
    shown = readable()  # asked while the host's folders can still be looked at
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp" + _OLD, 0o700)
    linux.pivot_root("/tmp", "/tmp" + _OLD)
    os.chdir("/")
    os.umask(0o022)
    for path in shown:
        _show(path, _READ_ONLY)
    os.mkdir("/dev", 0o755)
    for device in DEVICES:
        # The full device reads as zeros, too, and cannot be mapped: as memory that processes share without a file.
        _show(device, linux.MS_RDONLY | linux.MS_NOSUID, "/dev/full" if device == ZERO else device)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"/dev/{name}")
    os.makedirs("/etc", 0o755, exist_ok=True)
    for name, text in (
        ("passwd", "sandbox:x:1000:1000:sandbox:/tmp:/bin/sh\n"),
        ("group", "sandbox:x:1000:\n"),
        ("hosts", "127.0.0.1 localhost\n"),
    ):
        with open(f"/etc/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    os.makedirs("/var", 0o755, exist_ok=True)
    init.write(INIT)
    for folder in ("/tmp", "/proc"):
        os.makedirs(folder, 0o755, exist_ok=True)  # Python may live below /tmp
    for link in ("/dev/shm", "/var/tmp"):
        os.symlink("/tmp", link)
    linux.mount(_OLD + "/proc", "/proc", flags=linux.MS_BIND | linux.MS_REC)
    linux.unmount(_OLD)
    os.rmdir(_OLD)
    linux.mount("none", "/", flags=linux.MS_REMOUNT | linux.MS_BIND | _READ_ONLY)


def _show(path: str, flags: int, what: str = "") -> None:
    """Bind the host's `path`, or `what`; a link stays a link when it is relative or stays within what is shown."""
    source = _OLD + (what or path)
    if os.path.islink(source):
        target = os.readlink(source)
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        if not target.startswith("/") or any(_inside(target, shown) for shown in _SYSTEM):
            os.symlink(target, path)
            return
        source = _OLD + target
    if not os.path.exists(source):
        return
    if os.path.isdir(source):
        os.makedirs(path, 0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    linux.mount(source, path, flags=linux.MS_BIND | linux.MS_REC)
    linux.protect_mount(path, flags)


def remove(folder: str) -> bool:
    """Delete a folder that sessions wrote, however deep it nests and whatever its modes say. True when it is gone.

    What lies deeper than _DEEPEST is moved up and found again: neither recursion, nor open folders, nor a path grows
    beyond that. No link is followed. Does not raise.
    """
    with contextlib.suppress(OSError):
        top = _open_folder(folder)
        try:
            while names := os.listdir(top):
                for name in names:
                    _delete(top, name, top, 1)
            os.rmdir(folder)
        finally:
            os.close(top)
    return not os.path.lexists(folder)


def _delete(folder: int, name: str, top: int, depth: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
        return
    except (IsADirectoryError, PermissionError):
        inner = _open_folder(name, folder)
    try:
        if depth > _DEEPEST:
            os.rename(name, os.urandom(8).hex(), src_dir_fd=folder, dst_dir_fd=top)
            return
        for entry in os.listdir(inner):
            _delete(inner, entry, top, depth + 1)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)


def _open_folder(name: str, at: int | None = None) -> int:
    """Give its owner all rights to a folder, and open it. Raises OSError for anything else, links included."""
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        os.chmod(f"/proc/self/fd/{place}", 0o700)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    finally:
        os.close(place)


_PROC = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


def mount_proc() -> None:
    """The process list of the current pid namespace, over whatever /proc shows now."""
    linux.mount("proc", "/proc", "proc", _PROC)


def prepare_session(calls: linux.Calls, size_mb: int) -> None:
    """A session's own /proc, and its own writable space: /tmp, and through links /dev/shm and /var/tmp.

    A Python that lives below /tmp is shown there again, as read-only as before.
    """
    hidden = {path: linux.open_folder(calls, path) for path in readable() if _inside(path, "/tmp")}
    options = f"size={size_mb}m,nr_inodes=4096,mode=1777"
    calls.add_mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    for path, fd in hidden.items():
        for end in range(3, path.count("/") + 2):
            calls.add("mkdir", "/".join(path.split("/")[:end]).encode(), 0o755, needed=False)
        calls.add("fchdir", fd)
        calls.add_mount(".", path, flags=linux.MS_BIND | linux.MS_REC)
        calls.add("close", fd)
    calls.add_mount("proc", "/proc", "proc", _PROC | linux.MS_RDONLY)
