"""What has been computed already: one line of JSON a cell, appended when it is done, so that a killed run goes on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Cells:
    """`cells.jsonl` of a folder. Two processes may share one: each line is written at once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "cells.jsonl"
        self._known: dict[str, Any] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    cell = json.loads(line)
                except ValueError:  # the process was killed while it wrote
                    continue
                self._known[json.dumps(cell["key"])] = cell["found"]

    def get(self, key: Sequence[Any], compute: Callable[[], Any]) -> Any:
        """The cell, computed unless it is known; `key` says everything that it depends on."""
        name = json.dumps(list(key))
        if name not in self._known:
            found = json.loads(json.dumps(compute()))
            line = json.dumps({"key": list(key), "found": found}) + "\n"
            with open(self.path, "ab", buffering=0) as file:
                if file.tell() and not self._ends_whole():
                    line = "\n" + line
                file.write(line.encode())
                os.fsync(file.fileno())
            self._known[name] = found
            print(".", end="", file=sys.stderr, flush=True)
        return self._known[name]

    def everything(self) -> list[tuple[list[Any], Any]]:
        """(key, found) of every cell."""
        return [(json.loads(name), found) for name, found in self._known.items()]

    def _ends_whole(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
