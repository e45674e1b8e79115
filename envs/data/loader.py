"""Tasks from files, from Hugging Face data sets, from generators and from mixtures of them.

A published form of rows is recognised (`solostream.envs.data.layouts`). `columns` comes on top of it: our field -> the
column it is in, dots reaching into nested values (`reward_model.ground_truth`, `prompt.0.content`). Fields are
`prompt`, `answer`, `id` and `source`; any other goes into the task's `meta`, and so does the whole row, as
`meta["row"]`: a reward of one's own may need more. Rows without id get a hash of their content: ids are stable in any
order of rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from solostream import registry
from solostream.envs.data import combine, forms, generators, sources
from solostream.envs.data.layouts import recognised
from solostream.envs.data.rows import Reader, gathered
from solostream.envs.data.sources import PRESETS, Row
from solostream.envs.types import Task
from solostream.errors import UserError

TaskSource = str | Mapping[str, Any] | Sequence[Task] | Sequence[Mapping[str, Any]]
_log = logging.getLogger(__name__)
DEFAULT_SHARE = 0.1  # of one source that is divided into train and test
LOOKED_AT = 64  # rows, among which the first whole one tells the layout
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

    def find(self, task_id: str) -> Task | None:
        """The task of that id, or the form of one (`envs.data.forms`); None where there is none. Raises UserError."""
        return forms.find(task_id, self.by_id, self)

    @cached_property
    def fingerprint(self) -> str:
        """Of all that the tasks say, in their order: an edited file is another data set. 16 hex digits."""
        digest = hashlib.sha256()
        for task in self:
            everything = (task.id, task.prompt, task.answer, task.source, task.meta)
            digest.update(json.dumps(everything, sort_keys=True, default=repr).encode() + b"\n")
        return digest.hexdigest()[:16]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tasks:
        return self  # gymnasium.make copies its arguments


def load(
    source: str | Path,
    *,
    split: str | None = None,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    layout: str | None = None,
    answer_after: str | None = None,
    skip_bad: bool = False,
    test_share: float | None = None,
    part: Literal["train", "test"] | None = None,
    limit: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> list[Task]:
    """Tasks of a preset ("aime25"), a .jsonl/.json/.csv/.parquet file, a folder with SPLIT.*, or a Hugging Face id.

    layout: a name of the registry, or module:object; default: what the first row looks like. columns adds to it, or to
    the preset's map. answer_after: the answer is what follows the last of these strings. Equal prompts are kept once.
    Ids of a preset begin with its name (`aime25/7`), so that presets can be mixed. part: one side of `test_share`,
    divided by `combine.split`. What is made (`generators`, "reasoning-gym:gcd") has the splits train and test, `limit`
    problems, and takes seed and options; nothing else is asked of it.
    Raises UserError for a name that is none of these, when a data set is neither in the cache nor reachable, and for
    bad rows, a prompt with two answers and an id with two prompts among them: all are listed with their line numbers.
    `skip_bad` drops these rows and logs the list instead.
    """
    name = str(source)
    if options and not generators.is_made(name):
        raise UserError(f"{name} is read, not made: it takes no options {dict(options)}")
    if generators.is_made(name):
        of_rows = {"config": config, "columns": columns, "layout": layout, "answer_after": answer_after}
        if wrong := [option for option, value in {**of_rows, "test_share": test_share, "part": part}.items() if value]:
            raise UserError(f"{name} is made, not read: {wrong[0]} says nothing about it")
        return generators.made(name, split, limit, seed=seed, options=options)
    preset = PRESETS.get(name.lower())
    columns = dict(columns or {})
    if preset is not None:
        columns = {**preset.columns, **columns}
        answer_after = preset.answer_after if answer_after is None else answer_after
        rows, at = sources.hub_rows(preset.path, config or preset.config, split or preset.split), "row"
    else:
        rows, at = sources.rows(name, config, split)
        rows, layout, remark = _recognise(rows, name, columns, layout)
    reader = Reader(name, columns, registry.make("layout", layout) if layout else None, answer_after or "")
    found = gathered(rows, reader, at, skip_bad)
    if preset is None and remark:
        _log.info("%s", remark)
    if part is not None:
        share, rows_read = DEFAULT_SHARE if test_share is None else test_share, len(found)
        found = combine.split(found, share)[part == "test"]
        if not found:
            raise UserError(f"{name}: test_share = {share:g} of {rows_read} problems left none for {part}: change it")
    return [replace(task, id=f"{name.lower()}/{task.id}") for task in found[:limit]] if preset else found[:limit]


def _recognise(
    rows: Iterator[Row], name: str, columns: Mapping[str, str], layout: str | None
) -> tuple[Iterator[Row], str | None, str]:
    """(the rows, the layout's name, a remark about it, unless there was nothing to find out)."""
    if layout is not None or {"prompt", "answer"} <= columns.keys():
        return rows, layout, ""
    ahead = list(islice(rows, LOOKED_AT))
    first = next((row for _, row in ahead if isinstance(row, Mapping)), {})
    found = recognised(first)
    if found is None:
        return chain(ahead, rows), None, ""
    over = "".join(f"; {field} from {column}" for field, column in columns.items())
    remark = f"{name}: rows of the layout {found[0]} ({found[1].says}{over})"
    return chain(ahead, rows), found[0], "" if sources.is_built_in(name) else remark


def tasks(source: TaskSource) -> Tasks:
    """What environments and configurations take; strings and mappings are loaded once a process and state of the files.

    A string is `load`'s source. Mappings: {"load": source, …`load`'s options}, {"generate": n, …`families.generate`'s},
    {"mix": [[source, weight], …], "n": …, "seed": …}. A sequence holds `Task`s or rows (prompt, answer, id).
    Raises UserError, also when there is no task at all or one id names two problems.
    """
    if isinstance(source, str):
        source = {"load": source}
    if isinstance(source, Mapping):
        try:
            return _cached(json.dumps(source), tuple(_stamps(source)))
        except TypeError as error:
            raise UserError(f"tasks={dict(source)}: {error}") from None
    return source if isinstance(source, Tasks) else _indexed(_listed(source))


def _listed(items: Sequence[Task] | Sequence[Mapping[str, Any]]) -> Iterable[Task]:
    if all(isinstance(item, Mapping) and set(item) == _TASK for item in items):  # an environment's spec that was JSON
        return [Task(**item) for item in items]  # type: ignore[arg-type]
    if all(isinstance(item, Task) for item in items):
        return items  # type: ignore[return-value]
    rows, layout, _ = _recognise(iter(enumerate(items, 1)), "tasks", {}, None)
    return gathered(rows, Reader("tasks", layout=registry.make("layout", layout) if layout else None), "row")


def _indexed(items: Iterable[Task]) -> Tasks:
    found = Tasks(items)
    if not found.by_id:
        raise UserError("an environment needs at least one task")
    return found


def _stamps(source: Any) -> Iterator[tuple[str, int, int]]:
    """(file, time of its last change, size) of every file that a source reads."""
    if isinstance(source, str):
        yield from sources.stamps(source)
    elif isinstance(source, Mapping):
        for part in (source.get("load"), *(part for part, _ in source.get("mix", ()))):
            yield from _stamps(part)


@lru_cache(maxsize=32)
def _cached(source: str, stamps: tuple[tuple[str, int, int], ...]) -> Tasks:
    options = json.loads(source)
    if "generate" in options:
        from solostream.envs.data.arithmetic import generate

        found = generate(options.pop("generate"), **options)
    elif "mix" in options:
        found = combine.mix([(tasks(part), weight) for part, weight in options.pop("mix")], **options)
    elif "load" in options:
        found = load(options.pop("load"), **options)
    else:
        raise UserError(f'tasks need "load", "generate" or "mix", not {sorted(options)}')
    return _indexed(found)
