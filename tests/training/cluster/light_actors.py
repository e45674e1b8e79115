"""What the tests put into Ray's processes: an engine and a player that import no torch and wait for files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from solostream.agent.engine import Generation, Sampling
from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory


class FileEngine:
    """A turn is a function of ledger, seed and weights. It, and taking weights, wait while a file `hold-…` is there."""

    dtype = "float32"

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.version, self.weight = -1, 0.0
        (folder / f"pid-{number}").write_text(str(os.getpid()))

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        await self._hold("turn")
        token = (sum(prompt_ids) * 7 + (sampling.seed or 0) + round(self.weight)) % 1009
        return Generation([token], [-0.25], [self.version], "stop")

    async def release(self, key: str) -> None:
        pass

    async def load_weights(self, weights: Any, version: int) -> None:
        await self._hold("load")
        self.version, self.weight = version, float(weights["w"].sum())

    async def close(self) -> None:
        pass

    async def _hold(self, what: str) -> None:
        wait = self.folder / f"hold-{what}-{self.number}"
        if wait.exists():
            (self.folder / f"held-{what}-{self.number}").touch()
        while wait.exists():  # noqa: ASYNC110 - another process removes it
            await asyncio.sleep(0.02)


class OpenFileEngine:
    """Makes one; a class, so that it travels to another process."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number

    async def __call__(self) -> FileEngine:
        return FileEngine(self.folder, self.number)


class FilePlayer:
    """Plays episodes of three tokens; each waits while the file `hold-play` names its process."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        (folder / f"pid-player-{number}").write_text(str(os.getpid()))

    async def grow(self, task_id: str, sampling: Sampling, dispatch: Dispatch, seed: int) -> Trajectory:
        wait = self.folder / "hold-play"
        while wait.exists() and wait.read_text() == str(os.getpid()):
            (self.folder / "held-play").touch()
            await asyncio.sleep(0.02)
        record = TokenRecord()
        record.add_observation("user", [1, 2], "question")
        record.add_action([3, 5, int(seed)], np.full(3, -0.5).tolist(), [dispatch.version] * 3, "answer")
        return record.close(task_id, seed / 100, "answered", dispatch=dispatch, seed=seed).with_line()

    async def ready(self) -> None:
        pass

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass
