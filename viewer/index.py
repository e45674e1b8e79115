"""An SQLite index beside a JSONL file of trajectories: 10^6 of them are paged and filtered without loading them.

The index grows with the file: `refresh` reads what was appended since. A file that was cut or rewritten is noticed (the
last indexed line is no longer where it was) and indexed anew. Rows hold what the list shows; bodies stay in the file.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from solostream.agent.trajectory_file import Given, Line, read_line, read_lines
from solostream.errors import UserError
from solostream.evaluation.metrics import SOLVED
from solostream.evaluation.samples import reduce
from solostream.viewer import trees

_VERSION = 8  # of the schema below: an index of another version is thrown away
_ROOM = 1 << 20  # bytes free, below which a disk counts as full
_SCHEMA = f"""{trees.SCHEMA}
CREATE TABLE tasks (id INTEGER PRIMARY KEY, task_id TEXT UNIQUE, prompt TEXT);
CREATE TABLE words (id INTEGER PRIMARY KEY, kind TEXT, word TEXT, UNIQUE (kind, word));
CREATE TABLE rows (
    id INTEGER PRIMARY KEY, event INTEGER, offset INTEGER, length INTEGER, task INTEGER, answer INTEGER,
    source INTEGER, kind INTEGER, ending INTEGER, error_names INTEGER, step INTEGER, sample INTEGER, reward REAL,
    advantage REAL, value REAL, response_length INTEGER, action_tokens INTEGER, first_call INTEGER, calls INTEGER,
    errors INTEGER, late_calls INTEGER, trivial INTEGER, void INTEGER, sandbox_s REAL, passed INTEGER,
    code_lines INTEGER);
CREATE INDEX rows_of_task ON rows (task);
CREATE INDEX rows_of_event ON rows (event);
CREATE TABLE turn_advantages (id INTEGER PRIMARY KEY, given TEXT);
CREATE TABLE damage (number INTEGER PRIMARY KEY, why TEXT);
CREATE TABLE progress (
    offset INTEGER, number INTEGER, rows INTEGER, last_offset INTEGER, last_length INTEGER, last_crc INTEGER);
INSERT INTO progress VALUES (0, 0, 0, 0, 0, 0);
"""
_REMEMBERED = 200  # answers to filters
_WORDS = ("answer", "source", "kind", "ending", "error_names")  # columns that hold the number of a word

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
    "unfinished": "ending NOT IN (SELECT id FROM words WHERE kind = 'ending' AND word = 'answered')",
}
SORTS = {
    "id", "reward", "advantage", "response_length", "first_call", "calls", "errors", "sandbox_s", "step", "task_id",
}  # fmt: skip
NARROW = (
    "step",
    "source",
    "kind",
    "ending",
    "error",
    "task",
)  # what the list can be narrowed to besides, each to one value
_NUMBERS = (
    "id", "event", "step", "sample", "reward", "advantage", "value", "response_length", "action_tokens", "first_call",
    "calls", "errors", "late_calls", "trivial", "void", "sandbox_s", "passed", "code_lines",
)  # fmt: skip
# Of each column that a reader may name: how it is read from a row.
_READ = {
    **{name: name for name in _NUMBERS},
    **{name: f"(SELECT word FROM words WHERE words.id = rows.{name}) AS {name}" for name in _WORDS},
    **{name: f"(SELECT {name} FROM tasks WHERE tasks.id = rows.task) AS {name}" for name in ("task_id", "prompt")},
}
_COLUMNS = ", ".join(sql for name, sql in _READ.items() if name not in ("event", "code_lines"))


class Index:
    """The trajectories of one JSONL file. Every method may be called from any thread and process at any time."""

    def __init__(self, path: Path, place: Path | None = None) -> None:
        """place: of the index itself; default: beside the file; without right or room there, in a temporary folder."""
        self.path = path
        if place is None:
            place = path.with_name(f".{path.name}.index")
            if not os.access(path.parent, os.W_OK) or shutil.disk_usage(path.parent).free < _ROOM:
                self._folder = tempfile.TemporaryDirectory(prefix="solostream-view-")  # goes when this object goes
                place = Path(self._folder.name) / place.name
        self.place = place
        self._tallies: dict[tuple[Any, ...], tuple[int, int, tuple[int, ...]]] = {}  # question -> stamp, rows, sums
        self.refresh(0)

    def refresh(self, most: int = 1000) -> int:
        """Index up to `most` appended lines; returns how many lines were read, 0 when the index is up to date."""
        with self._open(writing=True) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:  # new, of another version, or deleted
                self._start_anew(db)
            offset, number, count, *last = db.execute("SELECT * FROM progress").fetchone()
            # Nothing is to be read, or the run has just begun and there is nothing yet.
            if not most or (not number and not self.path.exists()):
                return 0
            if not self._still_there(*last):
                self._start_anew(db)
                offset, number, count, *last = 0, 0, 0, 0, 0, 0
            seen, ids = 0, _Numbers(db)
            for line in islice(read_lines(self.path, offset, number), most):
                if line.trajectory is not None:
                    db.execute(_INSERT, (count, *_row(line, ids)))
                    trees.add(db, count, line.trajectory)
                    count += 1
                elif line.update is not None:
                    _weigh(db, line.update)
                else:
                    db.execute("INSERT INTO damage VALUES (?, ?)", (line.number, line.damage))
                offset, number, seen = line.offset + line.length, line.number + 1, seen + 1
                last = [line.offset, line.length, line.crc]
            if seen:
                db.execute("UPDATE progress SET offset=?, number=?, rows=?, last_offset=?, last_length=?, last_crc=?",
                           (offset, number, count, *last))  # fmt: skip
            return seen

    def status(self) -> dict[str, Any]:
        """rows, bytes indexed of bytes there, and up to 20 damaged lines as (line number from 1, why)."""
        with self._open() as db:
            offset, rows = db.execute("SELECT offset, rows FROM progress").fetchone()
            count = db.execute("SELECT COUNT(*) FROM damage").fetchone()[0]
            damage = db.execute("SELECT number + 1, why FROM damage ORDER BY number LIMIT 20").fetchall()
        size = self.path.stat().st_size if self.path.exists() else 0
        return {"rows": rows, "indexed": offset, "size": size, "damaged": count, "damage": [list(d) for d in damage]}

    def page(
        self, filters: Sequence[str] = (), query: str = "", sort: str = "id", descending: bool = False,
        offset: int = 0, limit: int = 100, narrow: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:  # fmt: skip
        """{"total": matches, "rows": a window of them}. `query` matches task, prompt, answer and names of errors.

        narrow: `step`, `source`, `kind`, `ending`, `error` or `task` -> the one value to show. Raises UserError for an
        unknown filter, sort or name.
        """
        where, values = _where(filters, query, narrow)
        if sort not in SORTS:
            raise UserError(f"unknown sort '{sort}'; one of: {', '.join(sorted(SORTS))}")
        order = "task" if sort == "task_id" else sort  # problems in the order of their first attempt
        order = f"{order} {'DESC' if descending else 'ASC'} NULLS LAST, id" if sort != "id" else _by_id(descending)
        with self._open() as db:
            if where:
                (total,) = self._tally(db, ["COUNT(*)"], where, values)
            else:
                total = db.execute("SELECT rows FROM progress").fetchone()[0]
                if sort == "id":  # ids have no gaps: no need to walk to the window
                    first = max(total - offset - limit, 0) if descending else offset
                    size = max(min(limit, total - offset), 0)
                    where, values, limit, offset = "WHERE id >= ? AND id < ?", [first, first + size], size, 0
            # The window first, by numbers alone; then the words of its few rows.
            window = f"SELECT id FROM rows {where} ORDER BY {order} LIMIT ? OFFSET ?"
            ids = [row[0] for row in db.execute(window, [*values, limit, offset])]
            found = db.execute(f"SELECT {_COLUMNS} FROM rows WHERE id IN ({', '.join('?' * len(ids))})", ids)
            by_id = {row["id"]: dict(row) for row in found}
            return {"total": total, "rows": [by_id[i] for i in ids]}

    def counts(self, query: str = "", narrow: Mapping[str, str] = MappingProxyType({})) -> dict[str, int]:
        """How many trajectories each filter would leave, on its own."""
        where, values = _where((), query, narrow)
        sums = [f"COALESCE(SUM({condition}), 0)" for condition in FILTERS.values()]
        with self._open() as db:
            return dict(zip(FILTERS, self._tally(db, sums, where, values), strict=True))

    def _tally(
        self, db: sqlite3.Connection, sums: Sequence[str], where: str, values: Sequence[str | int]
    ) -> tuple[int, ...]:
        """`sums` over the rows that fit. What was summed before is not read again: rows come, and none changes in what
        a filter asks. The stamp tells a file that was indexed anew.
        """
        key = (*sums, where, *values)
        stamp = db.execute("PRAGMA application_id").fetchone()[0]
        rows = db.execute("SELECT rows FROM progress").fetchone()[0]
        known_stamp, start, before = self._tallies.get(key, (stamp, 0, (0,) * len(sums)))
        if known_stamp != stamp:
            start, before = 0, (0,) * len(sums)
        new = f"{where} {'AND' if where else 'WHERE'} id >= ? AND id < ?"
        found = db.execute(f"SELECT {', '.join(sums)} FROM rows {new}", [*values, start, rows]).fetchone()
        total = tuple(a + b for a, b in zip(before, found, strict=True))
        if len(self._tallies) >= _REMEMBERED:
            self._tallies.clear()
        self._tallies[key] = stamp, rows, total
        return total

    def choices(self) -> dict[str, Any]:
        """What `narrow` may be: first and last step (None without any), sources, kinds, endings, names of errors."""
        with self._open() as db:
            words: dict[str, list[str]] = {kind: [] for kind in _WORDS}
            for kind, word in db.execute("SELECT kind, word FROM words WHERE kind != 'answer' ORDER BY word"):
                words[kind].append(word)
            edges = [db.execute(f"SELECT step FROM rows ORDER BY id {way} LIMIT 1").fetchone() for way in ("", "DESC")]
        errors = sorted({name for names in words["error_names"] for name in names.split("|") if name})
        steps = [edge[0] for edge in edges if edge is not None and edge[0] is not None]
        return {
            "steps": [min(steps), max(steps)] if steps else None,
            "sources": [name for name in words["source"] if name],
            "kinds": [name for name in words["kind"] if name],
            "endings": words["ending"],
            "errors": errors,
        }

    def task(self, task_id: str, limit: int = 500) -> list[dict[str, Any]]:
        """The rows of one task in file order."""
        with self._open() as db:
            one = "task = (SELECT id FROM tasks WHERE task_id = ?)"
            found = db.execute(f"SELECT {_COLUMNS} FROM rows WHERE {one} ORDER BY id LIMIT ?", (task_id, limit))
            return [dict(row) for row in found]

    def tasks(self, limit: int = 200) -> list[dict[str, Any]]:
        """Problems, the hardest first: task_id, prompt, attempts, reward and calls (means), row (its last attempt)."""
        with self._open() as db:
            found = db.execute(
                "SELECT task_id, prompt, attempts, reward, calls, row FROM (SELECT task, COUNT(*) AS attempts, "
                "AVG(reward) AS reward, AVG(calls) AS calls, MAX(id) AS row FROM rows GROUP BY task "
                "ORDER BY reward, attempts DESC, task LIMIT ?) JOIN tasks ON tasks.id = task "
                "ORDER BY reward, attempts DESC, task",
                (limit,),
            )
            return [dict(row) for row in found]

    def record(self, row: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(the row, the JSON object behind it); None when there is no such row. Raises ValueError: the file changed.

        Beside the columns of a page the row has `advantages`: one number an assistant turn, None where all are equal.
        """
        with self._open() as db:
            columns = f"{_COLUMNS}, (SELECT given FROM turn_advantages AS t WHERE t.id = rows.id) AS advantages"
            found = db.execute(f"SELECT {columns}, offset, length FROM rows WHERE id = ?", (row,)).fetchone()
        if found is None:
            return None
        fields = dict(found)
        fields["advantages"] = json.loads(fields["advantages"] or "null")
        return fields, read_line(self.path, fields.pop("offset"), fields.pop("length"))

    def select(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query over the schema above, for sums over a whole run."""
        with self._open() as db:
            return [tuple(row) for row in db.execute(sql)]

    def scan(self, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Chosen columns of every row in file order, for a report."""
        with self._open() as db:
            chosen = ", ".join(_READ[name] for name in columns)
            yield from (tuple(row) for row in db.execute(f"SELECT {chosen} FROM rows ORDER BY id"))

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
        for table in ("rows", "tasks", "words", "turn_advantages", "leaves", "damage", "progress"):
            db.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute(f"PRAGMA application_id = {int.from_bytes(os.urandom(4)) >> 1}")  # a stamp of this start

    def _still_there(self, offset: int, length: int, crc: int) -> bool:
        if not length:
            return True
        with self.path.open("rb") as file:
            file.seek(offset)
            return zlib.crc32(file.read(length)) == crc


class _Numbers:
    """Words and tasks to their numbers, which they get when they are first seen; for one transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._known: dict[tuple[str, ...], int] = {}

    def word(self, kind: str, word: str | None) -> int | None:
        if word is None:
            return None
        return self._number("words (kind, word)", "kind = ? AND word = ?", kind, word)

    def task(self, task_id: str, prompt: str) -> int:
        key = ("task", task_id)
        if key not in self._known:
            self._db.execute("INSERT OR IGNORE INTO tasks (task_id, prompt) VALUES (?, ?)", (task_id, prompt))
            self._known[key] = self._db.execute("SELECT id FROM tasks WHERE task_id = ?", (task_id,)).fetchone()[0]
        return self._known[key]

    def _number(self, into: str, where: str, *values: str) -> int:
        if values not in self._known:
            self._db.execute(f"INSERT OR IGNORE INTO {into} VALUES (?, ?)", values)
            self._known[values] = self._db.execute(f"SELECT id FROM words WHERE {where}", values).fetchone()[0]
        return self._known[values]


def _by_id(descending: bool) -> str:
    return f"id {'DESC' if descending else 'ASC'}"


def _where(filters: Sequence[str], query: str, narrow: Mapping[str, str]) -> tuple[str, list[str | int]]:
    unknown = next((name for name in filters if name not in FILTERS), None)
    if unknown is not None:
        raise UserError(f"unknown filter '{unknown}'; one of: {', '.join(FILTERS)}")
    conditions = [f"({FILTERS[name]})" for name in filters]
    values: list[str | int] = []
    for name, value in narrow.items():
        condition, given = _narrowed(name, value)
        conditions.append(condition)
        values.append(given)
    for word in query.split():
        found = " OR ".join(
            [
                "task IN (SELECT id FROM tasks WHERE task_id LIKE ? ESCAPE '\\' OR prompt LIKE ? ESCAPE '\\')",
                "answer IN (SELECT id FROM words WHERE kind = 'answer' AND word LIKE ? ESCAPE '\\')",
                "error_names IN (SELECT id FROM words WHERE kind = 'error_names' AND word LIKE ? ESCAPE '\\')",
            ]
        )
        conditions.append(f"({found})")
        values += [f"%{_literal(word)}%"] * 4
    return ("WHERE " + " AND ".join(conditions) if conditions else ""), values


def _narrowed(name: str, value: str) -> tuple[str, str | int]:
    if name == "step":
        if not value.isdecimal() or len(value) > 15:
            raise UserError(f"a step is a whole number, not '{value}'")
        return "step = ?", int(value)
    if name == "task":
        return "task = (SELECT id FROM tasks WHERE task_id = ?)", value
    if name in ("source", "kind", "ending"):
        return f"{name} = (SELECT id FROM words WHERE kind = '{name}' AND word = ?)", value
    if name == "error":
        one = "kind = 'error_names' AND '|' || word || '|' LIKE ? ESCAPE '\\'"
        return f"error_names IN (SELECT id FROM words WHERE {one})", f"%|{_literal(value)}|%"
    raise UserError(f"nothing to narrow by is called '{name}'; one of: {', '.join(NARROW)}")


def _literal(text: str) -> str:
    """For LIKE with a backslash as its ESCAPE."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _weigh(db: sqlite3.Connection, update: Mapping[int, Given]) -> None:
    """Give the rows of an update, which come before it, their advantages: the mean over the turns for the list, and
    the turns' own where they differ.
    """
    for event, given in update.items():
        one = [given] if isinstance(given, float) else [a for a in given if a is not None]
        rows = [(row[0],) for row in db.execute("SELECT id FROM rows WHERE event = ?", (event,))]
        db.execute("UPDATE rows SET advantage = ? WHERE event = ?", (fmean(one) if one else None, event))
        db.executemany("DELETE FROM turn_advantages WHERE id = ?", rows)  # of an update that a resume did again
        if not isinstance(given, float):
            own = json.dumps(given)
            db.executemany("INSERT INTO turn_advantages VALUES (?, ?)", [(row[0], own) for row in rows])


_INSERT = f"INSERT INTO rows VALUES ({', '.join('?' * 26)})"


def _row(line: Line, ids: _Numbers) -> tuple[Any, ...]:
    trajectory, record = line.trajectory, line.record
    assert trajectory is not None
    assert record is not None
    sample, dispatch = reduce(trajectory), trajectory.dispatch
    seen = sample.behaviour
    opening = next((turn.text for turn in trajectory.turns if turn.role == "user"), "")
    asked = record.get("prompt") or opening.strip().rpartition("\n\n")[2]  # instructions come first, the problem last
    step = record.get("step", None if "sample" in record else dispatch.version)  # an evaluation has no steps
    return (
        dispatch.event, line.offset, line.length, ids.task(sample.task_id, " ".join(asked.split())[:200]),
        ids.word("answer", sample.answer), ids.word("source", trajectory.source), ids.word("kind", trajectory.kind),
        ids.word("ending", sample.ending),
        ids.word("error_names", "|".join(seen.errors)), step, record.get("sample"), sample.reward, None,
        dispatch.value, seen.response_length, seen.action_tokens, seen.first_call, seen.calls,
        len(seen.errors), seen.late_calls, seen.trivial, seen.void, seen.sandbox_s,
        seen.passed, sum(seen.code_lines),
    )  # fmt: skip
