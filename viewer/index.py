"""An SQLite index beside a JSONL file of trajectories: 10^5 of them are paged and filtered without loading them.

The index grows with the file: `refresh` reads what was appended since. A file that was cut or rewritten is noticed (the
last indexed line is no longer where it was) and indexed anew. Rows hold what the list shows; bodies stay in the file.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from solostream.agent.trajectory_file import Given, Line, read_line, read_lines
from solostream.errors import UserError
from solostream.evaluation.metrics import SOLVED
from solostream.evaluation.samples import reduce

_VERSION = 5  # of the schema below: an index of another version is thrown away
_SCHEMA = """
CREATE TABLE rows (
    id INTEGER PRIMARY KEY, event INTEGER, offset INTEGER, length INTEGER, task_id TEXT, prompt TEXT, answer TEXT,
    step INTEGER, sample INTEGER, reward REAL, advantage REAL, advantages TEXT, value REAL, ending TEXT,
    response_length INTEGER, action_tokens INTEGER, first_call INTEGER, calls INTEGER, errors INTEGER,
    error_names TEXT, late_calls INTEGER, trivial INTEGER, void INTEGER, sandbox_s REAL, passed INTEGER,
    code_lines INTEGER);
CREATE INDEX rows_of_task ON rows (task_id);
CREATE INDEX rows_of_event ON rows (event);
CREATE TABLE damage (number INTEGER PRIMARY KEY, why TEXT);
CREATE TABLE progress (offset INTEGER, number INTEGER, last_offset INTEGER, last_length INTEGER, last_crc INTEGER);
INSERT INTO progress VALUES (0, 0, 0, 0, 0);
"""

# What the list can be narrowed to; several hold together.
FILTERS = {
    "right": f"reward > {SOLVED}",
    "wrong": f"reward <= {SOLVED}",
    "tool": "first_call IS NOT NULL",
    "no_tool": "first_call IS NULL",
    "error": "errors > 0",
    "void": "void",
    "late": "late_calls > 0",
    "trivial": "trivial",
    "unfinished": "ending != 'answered'",
}
SORTS = {
    "id", "reward", "advantage", "response_length", "first_call", "calls", "errors", "sandbox_s", "step", "task_id",
}  # fmt: skip
_COLUMNS = (
    "id, task_id, prompt, answer, step, sample, reward, advantage, value, ending, response_length, action_tokens, "
    "first_call, calls, errors, error_names, late_calls, trivial, void, sandbox_s"
)


class Index:
    """The trajectories of one JSONL file. Every method may be called from any thread and process at any time."""

    def __init__(self, path: Path, place: Path | None = None) -> None:
        """place: of the index itself; default: beside the file, or a temporary folder where that cannot be written."""
        self.path = path
        if place is None:
            place = path.with_name(f".{path.name}.index")
            if not os.access(path.parent, os.W_OK):
                self._folder = tempfile.TemporaryDirectory(prefix="solostream-view-")  # goes when this object goes
                place = Path(self._folder.name) / place.name
        self.place = place
        self.refresh(0)

    def refresh(self, most: int = 1000) -> int:
        """Index up to `most` appended lines; returns how many lines were read, 0 when the index is up to date."""
        with self._open(writing=True) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:  # new, of another version, or deleted
                self._start_anew(db)
            offset, number, *last = db.execute("SELECT * FROM progress").fetchone()
            if not number and not self.path.exists():  # of a run that has just begun
                return 0
            if not self._still_there(*last):
                self._start_anew(db)
                offset, number, *last = 0, 0, 0, 0, 0
            at = db.execute("SELECT COALESCE(MAX(id) + 1, 0) FROM rows").fetchone()[0]
            rows: list[tuple[Any, ...]] = []
            update: list[tuple[float | None, str, int]] = []
            damage: list[tuple[int, str | None]] = []
            seen = 0
            for line in islice(read_lines(self.path, offset, number), most):
                if line.trajectory is not None:
                    rows.append((at + len(rows), *_row(line)))
                elif line.update is not None:
                    update += [(*_advantage(given), event) for event, given in line.update.items()]
                else:
                    damage.append((line.number, line.damage))
                offset, number, seen = line.offset + line.length, line.number + 1, seen + 1
                last = [line.offset, line.length, line.crc]
            if seen:
                db.executemany(f"INSERT INTO rows VALUES ({', '.join('?' * 26)})", rows)
                # The rows of an update come before it.
                db.executemany("UPDATE rows SET advantage = ?, advantages = ? WHERE event = ?", update)
                db.executemany("INSERT INTO damage VALUES (?, ?)", damage)
                db.execute("UPDATE progress SET offset=?, number=?, last_offset=?, last_length=?, last_crc=?",
                           (offset, number, *last))  # fmt: skip
            return seen

    def status(self) -> dict[str, Any]:
        """rows, bytes indexed of bytes there, and up to 20 damaged lines as (line number from 1, why)."""
        with self._open() as db:
            offset = db.execute("SELECT offset FROM progress").fetchone()[0]
            count = db.execute("SELECT COUNT(*) FROM damage").fetchone()[0]
            damage = db.execute("SELECT number + 1, why FROM damage ORDER BY number LIMIT 20").fetchall()
            rows = db.execute("SELECT COUNT(*) FROM rows").fetchone()[0]
        size = self.path.stat().st_size if self.path.exists() else 0
        return {"rows": rows, "indexed": offset, "size": size, "damaged": count, "damage": [list(d) for d in damage]}

    def page(
        self, filters: Sequence[str] = (), query: str = "", sort: str = "id", descending: bool = False,
        offset: int = 0, limit: int = 100,
    ) -> dict[str, Any]:  # fmt: skip
        """{"total": matches, "rows": a window of them}. `query` matches task, prompt, answer and names of errors.

        Raises UserError for an unknown filter or sort.
        """
        where, values = _where(filters, query)
        if sort not in SORTS:
            raise UserError(f"unknown sort '{sort}'; one of: {', '.join(sorted(SORTS))}")
        order = f"{sort} {'DESC' if descending else 'ASC'} NULLS LAST, id"
        with self._open() as db:
            total = db.execute(f"SELECT COUNT(*) FROM rows {where}", values).fetchone()[0]
            found = db.execute(f"SELECT {_COLUMNS} FROM rows {where} ORDER BY {order} LIMIT ? OFFSET ?",
                               [*values, limit, offset])  # fmt: skip
            return {"total": total, "rows": [dict(row) for row in found]}

    def counts(self, query: str = "") -> dict[str, int]:
        """How many trajectories each filter would leave, on its own."""
        where, values = _where((), query)
        sums = ", ".join(f"COALESCE(SUM({condition}), 0) AS {name}" for name, condition in FILTERS.items())
        with self._open() as db:
            return dict(db.execute(f"SELECT {sums} FROM rows {where}", values).fetchone())

    def task(self, task_id: str, limit: int = 500) -> list[dict[str, Any]]:
        """The rows of one task in file order."""
        with self._open() as db:
            found = db.execute(f"SELECT {_COLUMNS} FROM rows WHERE task_id = ? ORDER BY id LIMIT ?", (task_id, limit))
            return [dict(row) for row in found]

    def record(self, row: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(the row, the JSON object behind it); None when there is no such row. Raises ValueError: the file changed.

        Beside the columns of a page the row has `advantages`: one number an assistant turn, None where all are equal.
        """
        with self._open() as db:
            columns = f"{_COLUMNS}, advantages, offset, length"
            found = db.execute(f"SELECT {columns} FROM rows WHERE id = ?", (row,)).fetchone()
        if found is None:
            return None
        fields = dict(found)
        fields["advantages"] = json.loads(fields["advantages"] or "null")
        return fields, read_line(self.path, fields.pop("offset"), fields.pop("length"))

    def scan(self, columns: str) -> Iterator[tuple[Any, ...]]:
        """Chosen columns of every row in file order, for a report."""
        with self._open() as db:
            yield from (tuple(row) for row in db.execute(f"SELECT {columns} FROM rows ORDER BY id"))

    @contextmanager
    def _open(self, writing: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection; `writing` holds the write lock from the start: two processes never index one line twice."""
        with closing(sqlite3.connect(self.place, timeout=60, isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")  # an index can always be made again
            if not writing:
                yield db
                return
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def _start_anew(self, db: sqlite3.Connection) -> None:
        for table in ("rows", "damage", "progress"):
            db.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_VERSION}")

    def _still_there(self, offset: int, length: int, crc: int) -> bool:
        if not length:
            return True
        with self.path.open("rb") as file:
            file.seek(offset)
            return zlib.crc32(file.read(length)) == crc


def _where(filters: Sequence[str], query: str) -> tuple[str, list[str]]:
    unknown = next((name for name in filters if name not in FILTERS), None)
    if unknown is not None:
        raise UserError(f"unknown filter '{unknown}'; one of: {', '.join(FILTERS)}")
    conditions = [f"({FILTERS[name]})" for name in filters]
    values: list[str] = []
    for word in query.split():
        pattern = "%" + word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        fields = ("task_id", "prompt", "answer", "error_names")
        conditions.append("(" + " OR ".join(f"{field} LIKE ? ESCAPE '\\'" for field in fields) + ")")
        values += [pattern] * len(fields)
    return ("WHERE " + " AND ".join(conditions) if conditions else ""), values


def _advantage(given: Given) -> tuple[float | None, str]:
    """What the list shows and sorts by (the mean over the turns), and the turns' own as JSON."""
    if isinstance(given, float):
        return given, "null"
    known = [a for a in given if a is not None]
    return (fmean(known) if known else None), json.dumps(given)


def _row(line: Line) -> tuple[Any, ...]:
    trajectory, record = line.trajectory, line.record
    assert trajectory is not None
    assert record is not None
    sample, dispatch = reduce(trajectory), trajectory.dispatch
    seen = sample.behaviour
    opening = next((turn.text for turn in trajectory.turns if turn.role == "user"), "")
    asked = record.get("prompt") or opening.strip().rpartition("\n\n")[2]  # instructions come first, the problem last
    step = record.get("step", None if "sample" in record else dispatch.version)  # an evaluation has no steps
    return (
        dispatch.event, line.offset, line.length, sample.task_id, " ".join(asked.split())[:200], sample.answer,
        step, record.get("sample"), sample.reward, None, None,
        dispatch.value, sample.ending, seen.response_length, seen.action_tokens, seen.first_call, seen.calls,
        len(seen.errors), " ".join(seen.errors), seen.late_calls, seen.trivial, seen.void, seen.sandbox_s,
        seen.passed, sum(seen.code_lines),
    )  # fmt: skip
