"""Tasks from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.types import Task

TaskSource = str | Mapping[str, Any] | Sequence[Task]
BUILTIN = {"sample": "sample.jsonl", "lookup": "lookup.jsonl"}


def tasks(source: TaskSource) -> Sequence[Task]:
    if isinstance(source, str):
        return _load(source)
    if isinstance(source, Mapping):
        return _generate(json.dumps(source))
    return source


@lru_cache
def _load(source: str) -> tuple[Task, ...]:
    path = Path(__file__).parent / "problems" / BUILTIN[source]
    return tuple(Task(**json.loads(line)) for line in path.read_text().splitlines())


@lru_cache
def _generate(source: str) -> tuple[Task, ...]:
    from envs.families import generate

    options = json.loads(source)
    return tuple(generate(options.pop("generate"), **options))
