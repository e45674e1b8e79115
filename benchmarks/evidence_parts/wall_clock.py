"""Wall-clock to a target where tools are slow and their times have a long tail: single streams against groups.

Every call of a real sandbox waits besides: log-normal, median 1.5 s, spread 1.12 (the latencies of `batching.py`), so
that waiting decides and not these two cores. All learn from one cold start, at one rate, in batches of 128. The target
is a mean training reward over three updates in a row (no evaluation stops the clock); the time is that of the updates,
the filling of the first batch included. `in rounds` waits for every group of a batch, as synchronous GRPO does; without
that word the first whole groups, or the first streams, are a batch, and what is older than four updates is left out.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from reproduction import is_done, work

from solostream.agent.trajectory import Trajectory
from solostream.sandbox.spec import open_sandbox
from solostream.sandbox.types import Execution, Sandbox, Session
from solostream.training.run import metric_logger

from .methods import METHODS
from .model import ModelRuns

MEDIAN_S, SPREAD = 1.5, 1.12
TARGET, IN_A_ROW = 0.85, 3
SYNC, ASYNC = 'rollout.mode="sync"', 'rollout.mode="async"'
CONTESTANTS: dict[str, Sequence[str]] = {
    "ours": (*METHODS["ours"].settings, ASYNC),
    "GRPO, G = 8": (*METHODS["grpo"].settings, ASYNC),
    "GRPO, G = 8, in rounds": (*METHODS["grpo"].settings, SYNC),
}
SETTINGS = (
    'env.sandbox="evidence_parts.wall_clock:slow"',
    'run.callbacks=["evidence_parts.wall_clock:Target"]',
    "rollout.max_staleness=4",
    "eval.every=0",
    "eval.greedy=false",
    "data.test=8",
)


class _SlowSession:
    """Waits before each call, as for a search or a long computation elsewhere."""

    def __init__(self, session: Session, waits: random.Random) -> None:
        self._session, self._waits = session, waits
        self.isolation = session.isolation

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        await asyncio.sleep(MEDIAN_S * self._waits.lognormvariate(0.0, SPREAD))
        return await self._session.run(code, timeout=timeout)

    async def close(self) -> None:
        await self._session.close()


class _SlowSandbox:
    """Another sandbox's sessions, each call of them late."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox, self._waits = sandbox, random.Random(0)
        self.isolation, self.limits, self.claims = sandbox.isolation, sandbox.limits, sandbox.claims

    async def open(self) -> Session:
        return _SlowSession(await self._sandbox.open(), self._waits)

    async def close(self) -> None:
        await self._sandbox.close()


def slow() -> Sandbox:
    """The fork server, late."""
    return _SlowSandbox(open_sandbox("fork"))


class Target:
    """Ends the run once the training reward has been at the target for three updates in the mean."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=IN_A_ROW)

    def on_step(self, step: int, metrics: dict[str, Any], batch: Sequence[Trajectory]) -> bool:
        self._last.append(fmean(trajectory.reward for trajectory in batch))
        return reached(list(self._last))


def reached(rewards: Sequence[float]) -> bool:
    """Whether the last of these mean rewards are at the target."""
    return len(rewards) >= IN_A_ROW and fmean(rewards[-IN_A_ROW:]) >= TARGET


def run(runs: ModelRuns, contestant: str, cold_start: Path, seed: int, steps: int) -> dict[str, Any]:
    """Mean reward and seconds of each update until the target, and whether it was met in `steps` of them."""
    begin = ("cold_start={}", f"model.path={json.dumps(str(cold_start))}", f"run.steps={steps}")
    wanted = runs.configure(seed, (*begin, *CONTESTANTS[contestant], *SETTINGS))
    folder = runs.out / f"clock-{contestant.replace(', ', '-').replace(' ', '')}-{seed}"
    if not is_done(folder, wanted, "summary"):
        work(folder, wanted)
    rows = [row for row in metric_logger.read(folder / "metrics.jsonl") if row["phase"] == "rl"]
    rewards = [row["reward/mean"] for row in rows]
    seconds = [row["time/step_s"] for row in rows]
    return {"rewards": rewards, "seconds": seconds, "met": reached(rewards)}


def table(found: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """Rows of Markdown, and each contestant's time over that of ours."""
    lines = ["| tools with a long tail | seconds to the target | updates | seconds an update | ours is faster |"]
    lines.append("|---|---|---|---|---|")
    for name, seeds in found.items():
        cells: list[list[str]] = [[], [], [], []]
        for seed, one in sorted(seeds.items()):
            took = sum(one["seconds"])
            more = "" if one["met"] else "> "  # the run ended before
            cells[0].append(f"{more}{took:.0f}")
            cells[1].append(f"{more}{len(one['seconds'])}")
            cells[2].append(f"{took / len(one['seconds']):.1f}")
            if name != "ours" and (own := found.get("ours", {}).get(seed)) and own["met"]:
                cells[3].append(f"{more}{took / sum(own['seconds']):.1f} ×")
        lines.append("| " + " | ".join([name, *(", ".join(cell) for cell in cells)]) + " |")
    return lines
