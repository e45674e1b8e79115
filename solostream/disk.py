"""A full disk, told as what it is: libraries that write files have errors of their own for it."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM = 1 << 20  # bytes: more than what a failed write may have left free


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Held around a library that writes into `folder`. Raises OSError (ENOSPC, EDQUOT) where it failed for want of
    room, and lets every other error pass.
    """
    try:
        yield
    except Exception as error:
        full = error if isinstance(error, OSError) and error.errno in FULL else _full(folder)
        if full is None:
            raise
        raise OSError(full.errno, full.strerror, str(folder)) from error


def need_room(folder: Path) -> None:
    """Raises OSError (ENOSPC, EDQUOT) where `folder` takes no megabyte more."""
    if full := _full(folder):
        raise OSError(full.errno, full.strerror, str(folder))


def _full(folder: Path) -> OSError | None:
    """What the kernel says to one more megabyte in `folder`, where that is no room."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            left = _ROOM
            while left:
                left -= file.write(bytes(left)) or 0
    except OSError as error:
        return error if error.errno in FULL else None
    return None
