"""Tasks from files, from Hugging Face data sets, from generators and from mixtures of them.

Rows are mapped by `columns`: our field -> the column it is in, dots reaching into nested values
(`reward_model.ground_truth`, `prompt.0.content`). Fields are `prompt`, `answer`, `id`; any other goes into the task's
`meta`. An answer may be a list: each of its items is accepted (`Task.accepted`). Rows without id get a hash of their
content, so ids are stable whatever the order of the rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from solostream.envs.data import sources
from solostream.envs.data.sources import PRESETS, Row
from solostream.envs.space import SURROGATE
from solostream.envs.types import Task
from solostream.errors import UserError

TaskSource = str | Mapping[str, Any] | Sequence[Task] | Sequence[Mapping[str, Any]]
_log = logging.getLogger(__name__)
_FIELDS: Mapping[str, str] = {"prompt": "prompt", "answer": "answer", "id": "id"}
_BLANK = re.compile(r"\A(?:[^\S\n]*\n)+")
_TASK = {field.name for field in fields(Task)}


class Tasks(tuple[Task, ...]):
    """Tasks and their index, shared by all who are given the same object: environments come in hundreds, tasks in
    thousands.
    """

    @cached_property
    def by_id(self) -> dict[str, Task]:
        """Raises UserError when one id names two problems."""
        found: dict[str, Task] = {}
        for task in self:
            if found.setdefault(task.id, task).prompt != task.prompt:
                raise UserError(f"the task id {task.id!r} names two problems; map another column to id")
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Tasks:
        return self  # gymnasium.make copies its arguments


def load(
    source: str | Path,
    *,
    split: str | None = None,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    answer_after: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
) -> list[Task]:
    """Tasks of a preset ("aime25"), a .jsonl/.json/.csv/.parquet file, a folder with SPLIT.*, or a Hugging Face id.

    columns adds to the preset's map, or to prompt/answer/id as they are. Equal prompts are kept once. Ids of a preset
    begin with its name (`aime25/7`), so that presets can be mixed.
    Raises UserError for a name that is none of these, when a data set is neither in the cache nor reachable, and for
    bad rows, a prompt with two answers and an id with two prompts among them: all are listed with their line numbers.
    `skip_bad` drops these rows and logs the list instead.
    """
    name = str(source)
    preset = PRESETS.get(name.lower())
    if preset is not None:
        columns = {**preset.columns, **(columns or {})}
        after = preset.answer_after if answer_after is None else answer_after
        rows, at = sources.hub_rows(preset.path, config or preset.config, split or preset.split), "row"
    else:
        columns = {**_FIELDS, **(columns or {})}
        after = answer_after or ""
        rows, at = sources.rows(name, config, split)
    found = from_rows(rows, source=name, columns=columns, answer_after=after, at=at, skip_bad=skip_bad)[:limit]
    return [replace(task, id=f"{name.lower()}/{task.id}") for task in found] if preset else found


def tasks(source: TaskSource) -> Tasks:
    """What environments and configurations take; strings and mappings are loaded once a process.

    A string is `load`'s source. Mappings: {"load": source, …`load`'s options}, {"generate": n, …`families.generate`'s},
    {"mix": [[source, weight], …], "n": …, "seed": …}. A sequence holds `Task`s or rows (prompt, answer, id).
    Raises UserError, also when there is no task at all or one id names two problems.
    """
    if isinstance(source, str):
        return _cached(json.dumps({"load": source}))
    if isinstance(source, Mapping):
        try:
            return _cached(json.dumps(source))
        except TypeError as error:
            raise UserError(f"tasks={dict(source)}: {error}") from None
    return source if isinstance(source, Tasks) else _indexed(_listed(source))


def _listed(items: Sequence[Task] | Sequence[Mapping[str, Any]]) -> Iterable[Task]:
    if all(isinstance(item, Mapping) and set(item) == _TASK for item in items):  # an environment's spec that was JSON
        return [Task(**item) for item in items]  # type: ignore[arg-type]
    if all(isinstance(item, Task) for item in items):
        return items  # type: ignore[return-value]
    return from_rows(enumerate(items, 1), source="tasks", columns=_FIELDS, at="row")


def _indexed(items: Iterable[Task]) -> Tasks:
    found = Tasks(items)
    if not found.by_id:
        raise UserError("an environment needs at least one task")
    return found


@lru_cache(maxsize=32)
def _cached(source: str) -> Tasks:
    options = json.loads(source)
    if "generate" in options:
        from solostream.envs.data.arithmetic import generate

        found = generate(options.pop("generate"), **options)
    elif "mix" in options:
        found = mix([(tasks(part), weight) for part, weight in options.pop("mix")], **options)
    elif "load" in options:
        found = load(options.pop("load"), **options)
    else:
        raise UserError(f'tasks need "load", "generate" or "mix", not {sorted(options)}')
    return _indexed(found)


def from_rows(
    rows: Iterable[Row],
    *,
    source: str,
    columns: Mapping[str, str],
    answer_after: str = "",
    at: str = "line",
    skip_bad: bool = False,
) -> list[Task]:
    """Validate and convert; `at` names what the numbers count. Raises UserError that lists every bad row."""
    found: dict[str, Task] = {}
    named: dict[str, str] = {}
    problems = _Problems()
    for number, row in rows:
        try:
            task = _task(row, source, columns, answer_after)
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
            raise UserError(f"{source}: {problems.report(at)}. Fix these rows, name the columns, or set skip_bad")
        _log.warning("%s: dropped %s", source, problems.report(at))
    if not found:
        raise UserError(f"{source} holds no task")
    return list(found.values())


def _task(row: Any, source: str, columns: Mapping[str, str], answer_after: str) -> Task:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError(f"not an object but {type(row).__name__}")
    values = {name: _reach(row, path) for name, path in columns.items()}
    prompt = _text(values.get("prompt"), columns["prompt"], row)
    given = values.get("answer")
    several = given if isinstance(given, list | tuple) and given else [given]
    answers = tuple(dict.fromkeys(_answer(each, columns["answer"], row, answer_after) for each in several))
    task_id = _content_id(prompt, "\0".join(answers)) if values.get("id") in (None, "") else str(values["id"])
    meta = {k: v for k, v in values.items() if k not in _FIELDS and v is not None}
    return Task(task_id, prompt, answers[0], source, {**meta, "answers": answers} if len(answers) > 1 else meta)


def _answer(value: Any, column: str, row: Mapping[str, Any], after: str) -> str:
    text = _text(value, column, row)
    if after and after not in text:
        raise ValueError(f"{column!r} holds no {after!r}")
    text = text.rpartition(after)[2].strip() if after else text.strip()
    if not text:
        raise ValueError(f"{column!r} is empty")
    return text


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
        return "; ".join(f"{at} {_ranges(numbers)}: {what}" for what, numbers in self.lines.items())


def _ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def dedup(items: Iterable[Task]) -> list[Task]:
    """The first task of each prompt. Ways to encode one text do not make prompts different (line ends, composed
    accents, white space at the ends of lines); case and indentation do: x is not X, and Python is indented.
    """
    found: dict[str, Task] = {}
    for task in items:
        lines = unicodedata.normalize("NFC", task.prompt).splitlines()
        found.setdefault("\n".join(line.rstrip() for line in lines).strip("\n"), task)
    return list(found.values())


def split(items: Iterable[Task], share: float, *, seed: int = 0) -> tuple[list[Task], list[Task]]:
    """(train, test), `share` of the tasks in expectation going to test.

    A task's side follows from its prompt and the seed alone: it stays there when other tasks come or go, and equal
    prompts are never on both sides. Raises UserError unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise UserError(f"share must be between 0 and 1, not {share}")
    sides: tuple[list[Task], list[Task]] = ([], [])
    for task in items:
        digest = hashlib.blake2b(f"{seed}\0{task.prompt}".encode(errors="replace"), digest_size=8).digest()
        sides[int.from_bytes(digest) < share * 2**64].append(task)
    return sides


def mix(parts: Sequence[tuple[Sequence[Task], float]], n: int, *, seed: int = 0) -> list[Task]:
    """`n` tasks, each source with its share of them (largest remainder), in random order.

    Within a source tasks are drawn without replacement; once all were drawn they start over. Raises UserError for
    weights that are negative or all zero, and for an empty source.
    """
    weights = [weight for _, weight in parts]
    if not weights or min(weights) < 0 or sum(weights) <= 0 or not all(items for items, _ in parts):
        raise UserError("mix needs sources that hold tasks, and weights that are not negative and not all 0")
    exact = [n * weight / sum(weights) for weight in weights]
    counts = [int(x) for x in exact]
    for index in sorted(range(len(parts)), key=lambda i: counts[i] - exact[i])[: n - sum(counts)]:
        counts[index] += 1
    rng = random.Random(seed)
    drawn: list[Task] = []
    for (items, _), count in zip(parts, counts, strict=True):
        while count > 0:
            drawn += rng.sample(list(items), min(count, len(items)))
            count -= min(count, len(items))
    rng.shuffle(drawn)
    return drawn
