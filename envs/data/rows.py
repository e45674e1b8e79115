"""From rows to tasks: validated, without repetitions, and with every fault listed by its line.

An answer may be a list: each of its items is accepted (`Task.accepted`).
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from solostream.envs.data.layouts import Layout
from solostream.envs.data.sources import Row
from solostream.envs.space import SURROGATE
from solostream.envs.types import Task
from solostream.errors import UserError

_log = logging.getLogger(__name__)
_BLANK = re.compile(r"\A(?:[^\S\n]*\n)+")
_FIELDS = ("prompt", "answer", "id", "source")


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns a row into a task. `columns` come before `layout`; without one, fields have their own names."""

    source: str
    columns: Mapping[str, str] = field(default_factory=dict)
    layout: Layout | None = None
    answer_after: str = ""

    def task(self, row: Any) -> Task:
        """Raises ValueError that says what is wrong with the row."""
        if isinstance(row, ValueError):
            raise row
        if not isinstance(row, Mapping):
            raise ValueError(f"not an object but {type(row).__name__}")
        try:
            values = dict(self.layout.fields(row)) if self.layout else {name: row.get(name) for name in _FIELDS[:3]}
        except (KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(f"not of the layout that the first row has (it has: {', '.join(map(str, row))})") from None
        values |= {name: _reach(row, path) for name, path in self.columns.items()}
        prompt = _text(values.get("prompt"), self._column("prompt"), row)
        given = values.get("answer")
        several = given if isinstance(given, list | tuple) and given else [given]
        answers = tuple(dict.fromkeys(self._answer(each, row) for each in several))
        task_id = _content_id(prompt, "\0".join(answers)) if values.get("id") in (None, "") else str(values["id"])
        meta = {name: value for name, value in values.items() if name not in _FIELDS and value is not None}
        if len(answers) > 1:
            meta["answers"] = answers
        return Task(task_id, prompt, answers[0], str(values.get("source") or self.source), {**meta, "row": row})

    def _answer(self, value: Any, row: Mapping[str, Any]) -> str:
        column, after = self._column("answer"), self.answer_after
        text = _text(value, column, row)
        if after and after not in text:
            raise ValueError(f"{column!r} holds no {after!r}")
        text = text.rpartition(after)[2].strip() if after else text.strip()
        if not text:
            raise ValueError(f"{column!r} is empty")
        return text

    def _column(self, name: str) -> str:
        return self.columns.get(name, name)


def _text(value: Any, column: str, row: Mapping[str, Any]) -> str:
    if value is None:
        raise ValueError(f"no {column!r} (it has: {', '.join(map(str, row))})")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{column!r} is not text")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{column!r} is {value}")
    text = _BLANK.sub("", str(value)).rstrip()  # the first line may be indented, as in a problem that is code
    if not text:
        raise ValueError(f"{column!r} is empty")
    if SURROGATE.search(text):
        raise ValueError(f"{column!r} holds a lone surrogate")
    return text


def gathered(rows: Iterable[Row], reader: Reader, at: str, skip_bad: bool = False) -> list[Task]:
    """Validate and convert; `at` names what the numbers count. Raises UserError that lists every bad row."""
    found: dict[str, Task] = {}
    named: dict[str, str] = {}
    problems = _Problems()
    for number, row in rows:
        try:
            task = reader.task(row)
        except ValueError as error:
            problems.add(str(error), number)
            continue
        if named.setdefault(task.id, task.prompt) != task.prompt:
            problems.add(f"the id {task.id!r} again, for another prompt", number)
            continue
        earlier = found.setdefault(task.prompt, task)
        if earlier.accepted != task.accepted:
            problems.add(f"the prompt of task {earlier.id} again, with another answer", number)
    if problems.lines:
        if not skip_bad:
            remedy = "Fix these rows, name the columns, or set skip_bad"
            raise UserError(f"{reader.source}: {problems.report(at)}. {remedy}")
        _log.warning("%s: dropped %s", reader.source, problems.report(at))
    if not found:
        raise UserError(f"{reader.source} holds no task")
    return list(found.values())


def _reach(row: Any, path: str) -> Any:
    if isinstance(row, Mapping) and path in row:
        return row[path]
    for key in path.split("."):
        if isinstance(row, Mapping):
            row = row.get(key)
        elif isinstance(row, list) and key.isdigit() and int(key) < len(row):
            row = row[int(key)]
        else:
            return None
    return row


def _content_id(prompt: str, answer: str) -> str:
    return hashlib.blake2b(f"{prompt}\0{answer}".encode(errors="replace"), digest_size=8).hexdigest()


@dataclass(slots=True)
class _Problems:
    lines: dict[str, list[int]] = field(default_factory=dict)

    def add(self, what: str, number: int) -> None:
        self.lines.setdefault(what, []).append(number)

    def report(self, at: str) -> str:
        each = ((at if len(numbers) == 1 else f"{at}s", numbers, what) for what, numbers in self.lines.items())
        return "; ".join(f"{where} {_ranges(numbers)}: {what}" for where, numbers, what in each)


def _ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
