"""Who writes a folder of results: one process at a time, and whoever looks can tell whether it still does.

The kernel holds the lock (`flock`) and gives it back when the process ends, however it ends: a run that was killed does
not look alive, and one that is slow does not look dead. The file says who it is, for messages and for a folder that was
copied from another machine, whose locks cannot be seen from here.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from solostream.errors import UserError

LOCK = ".lock"
_TRIES, _PAUSE_S = 40, 0.05  # a reader holds the lock for the moment of its look: that is no second writer

State = Literal["writing", "gone", "unknown"]


@dataclass(frozen=True, slots=True)
class Writer:
    """The process that has the folder, or had it last. started: seconds since 1970. boot: of the kernel it runs under,
    which the containers of a machine share.
    """

    process: int
    host: str
    boot: str
    started: float

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"process {self.process} on {self.host} since {when}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the folder, which is made where there is none, for this process. Raises UserError while another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if not _take(file):
            said = _read(file)
            who = said or "another process"
            raise UserError(f"{folder} is being written ({who}): wait for it, or choose another folder") from None
        file.truncate(0)
        file.write(json.dumps(asdict(Writer(os.getpid(), socket.gethostname(), _boot(), time.time()))))
        file.flush()
        yield


def seen(folder: Path) -> tuple[State, Writer | None]:
    """Whether a process writes the folder now, and which one did last.

    writing: it holds the lock. gone: nobody does, and the last one ran on this machine. unknown: no process of this
    version ever wrote here, or it ran on another machine, whose locks need not be seen from this one.
    """
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            free = _try(file, fcntl.LOCK_SH)
            writer = _read(file)
    except OSError:
        return "unknown", None
    if not free:
        return "writing", writer
    here = writer is not None and (writer.boot == _boot() or writer.host == socket.gethostname())
    return ("gone" if here else "unknown"), writer


def _take(file: IO[str]) -> bool:
    for _ in range(_TRIES):
        if _try(file, fcntl.LOCK_EX):
            return True
        time.sleep(_PAUSE_S)
    return False


def _try(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: IO[str]) -> Writer | None:
    """None where the file says nothing that we know."""
    file.seek(0)
    try:
        return Writer(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
