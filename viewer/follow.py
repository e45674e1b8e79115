"""The process that builds the indexes and keeps them fresh: `python -m solostream.viewer.follow INDEX FILE […]`.

A process of its own, at low priority: parsing in the server's process would hold the interpreter lock against requests.
Readers of the index never wait for its writer (SQLite's write-ahead log). It ends when its standard input does, that is
with the server, however that ends. Each line that it prints is JSON: [which file, what is wrong with it or null].
"""

from __future__ import annotations

import json
import os
import select
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from solostream.viewer.index import Index

BATCH = 250  # lines a transaction: what is indexed becomes visible this often
IDLE_S = 0.2


def follow(indexes: Sequence[Index], stdin: int) -> None:
    """Until `stdin` is closed."""
    trouble: list[str | None] = [None] * len(indexes)
    wait = 0.0
    while not select.select([stdin], [], [], wait)[0]:
        wait = IDLE_S
        for i, index in enumerate(indexes):
            try:
                read, wrong = index.refresh(BATCH), None
            except (OSError, sqlite3.Error) as error:  # moved, deleted, a full disk: say so, and look again
                read, wrong = 0, str(error)
            if read:
                wait = 0.0
            if wrong != trouble[i]:
                trouble[i] = wrong
                print(json.dumps([i, wrong]), flush=True)


if __name__ == "__main__":
    os.nice(10)
    given = [Path(argument) for argument in sys.argv[1:]]
    follow([Index(path, place) for place, path in zip(given[::2], given[1::2], strict=True)], sys.stdin.fileno())
