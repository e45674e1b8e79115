"""A sandbox plug-in: wraps another sandbox and writes down everything that runs in it, one JSON object a line.

There is nothing to inherit from: a sandbox is whatever has the members of `sandbox.Sandbox`, a session whatever has
those of `sandbox.Session`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from solostream.sandbox import Execution, Sandbox, Session
from solostream.sandbox.spec import open_sandbox
from solostream.sandbox.types import Forkable


class DiarySandbox:
    """Sessions of `around`, a spec string; `options` are its own. Each call is appended to `path` (nowhere if None)."""

    def __init__(self, *, around: str = "fork", path: str | None = None, **options: Any) -> None:
        self._inner: Sandbox = open_sandbox(around, **options)
        self._path = None if path is None else Path(path)

    @property
    def limits(self):
        return self._inner.limits

    @property
    def isolation(self) -> str:
        return self._inner.isolation

    @property
    def claims(self):
        return self._inner.claims

    async def open(self) -> DiarySession:
        return DiarySession(await self._inner.open(), self._path)

    async def close(self) -> None:
        await self._inner.close()


class DiarySession:
    def __init__(self, inner: Session, path: Path | None) -> None:
        self.isolation = inner.isolation
        self._inner = inner
        self._path = path

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        seen = await self._inner.run(code, timeout=timeout)
        if self._path is not None:
            with self._path.open("a") as diary:
                diary.write(json.dumps({"code": code, **seen.to_dict()}) + "\n")
        return seen

    async def fork(self) -> DiarySession:
        """Only what claims "fork" is asked for it."""
        return DiarySession(await cast(Forkable, self._inner).fork(), self._path)

    async def close(self) -> None:
        await self._inner.close()
