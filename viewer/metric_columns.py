"""The numbers of a growing `metrics.jsonl` by phase and name; only what was appended is read.

Columns of doubles, 8 bytes a number: a run of 10^5 steps with 60 names takes 48 MB.
"""

from __future__ import annotations

import json
import math
import threading
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

NAN = math.nan


class Columns:
    """The rows of one phase. `length` rows; a name that a row did not write is NaN there."""

    def __init__(self) -> None:
        self.length = 0
        self._of: dict[str, array[float]] = {}

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row: its numbers; texts, booleans and None are passed over."""
        for name, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                column = self._of.setdefault(name, array("d"))
                column.extend([NAN] * (self.length - len(column)))
                column.append(value)
        self.length += 1

    def names(self) -> list[str]:
        """Of all that was ever a number here."""
        return sorted(self._of)

    def column(self, name: str, start: int = 0) -> list[float | None]:
        """[length - start]; None where a row has no number."""
        values = self._of.get(name, array("d"))[start:]
        known = [None if math.isnan(value) else value for value in values]
        return known + [None] * (self.length - start - len(known))

    def last(self, name: str) -> float | None:
        """The latest number under a name; None where there never was one."""
        return next((value for value in reversed(self.column(name)) if value is not None), None)

    def first(self, name: str) -> float | None:
        """The earliest number under a name; None where there never was one."""
        return next((value for value in self.column(name) if value is not None), None)


class RunMetrics:
    """Of one run; no file, or one that may not be read, is no rows. Damaged lines (the last is often half-written) are
    skipped.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._forget()

    def phases(self) -> dict[str, Columns]:
        """`cold_start`, `rl`, `eval`, as far as they have begun."""
        with self._lock:
            self._refresh()
            return dict(self._phases)

    def since(self, seen: Mapping[str, int]) -> dict[str, Any]:
        """Phase -> {"start": rows that are left out, "columns": name -> numbers}; a phase may have been written anew,
        then all of it is there. seen: rows of each phase that the caller has.
        """
        with self._lock:
            self._refresh()
            found = {}
            for phase, columns in self._phases.items():
                start = seen.get(phase, 0)
                start = start if start <= columns.length else 0
                found[phase] = {"start": start, "columns": {n: columns.column(n, start) for n in columns.names()}}
            return {"born": self._born, "phases": found}

    def _forget(self) -> None:
        self._phases: dict[str, Columns] = {}
        self._offset, self._born = 0, 0

    def _refresh(self) -> None:
        try:
            about = self._path.stat()
            file = self._path.open("rb")
        except OSError:
            self._forget()
            return
        if about.st_ino != self._born or about.st_size < self._offset:  # a resumed run has written it anew
            self._forget()
            self._born = about.st_ino
        with file:
            for row in self._appended(file):
                phase = row.get("phase")
                if isinstance(phase, str) and isinstance(row.get("step"), int):
                    self._phases.setdefault(phase, Columns()).append(row)

    def _appended(self, file: BinaryIO) -> Iterator[dict[str, Any]]:
        file.seek(self._offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            self._offset += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
