"""The driver's CPU an episode of the asynchronous collector, as the number in flight grows.

    python benchmarks/collector.py [--quick]

Episodes take no time and carry no tokens to speak of: what is left is the collector itself (filling, retries, the log,
landing, batches, `advance`, Python's garbage collection as a run sets it), on the event loop's thread. Bar: 0.05 ms an
episode at any size. Twice the batch is in flight; groups of 8 are measured too. The least and the median of rounds of
8,192 episodes or more, one after the other with all the other sizes: on a shared machine CPU time itself varies, since
others use up the caches. JSON is written by the log's thread, whose CPU for an episode of 4,096 tokens stands below:
the event loop cannot run while Python's lock is held there.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.agent.trajectory_file import TrajectoryLog
from solostream.training.rollouts.collector import AsyncCollector
from solostream.training.rollouts.rare_collections import rare_collections
from solostream.training.rollouts.request import PromptSource, RolloutRequest

SIZES = (256, 2048, 8192)
ROUND = 8192  # episodes of a round, at least
BAR_MS = 0.05


def episode() -> Trajectory:
    record = TokenRecord()
    record.add_observation("user", [1, 2], "hi")
    record.add_action([3, 4], [-0.5, -0.5], [0, 0], "x")
    return record.close("task", 1.0, "answered")


class Prompts:
    """Requests as fast as they are asked for, `group` streams a prompt."""

    def __init__(self, group: int) -> None:
        self.event, self.group, self.version, self.finished = 0, group, 0, episode()

    def draw(self) -> list[RolloutRequest]:
        number = self.event if self.group > 1 else None
        drawn = [
            RolloutRequest("task", 0, Dispatch(self.event + i, 0.5, self.version, number)) for i in range(self.group)
        ]
        self.event += self.group
        return drawn

    async def play(self, request: RolloutRequest) -> Trajectory:
        await asyncio.sleep(0)
        return self.finished


async def measure(batch: int, group: int) -> float:
    """Milliseconds of the event loop's thread, an episode that was taken; of one round."""
    prompts = Prompts(group)
    with tempfile.TemporaryDirectory() as folder:
        log = TrajectoryLog(Path(folder) / "trajectories.jsonl")
        source = PromptSource(prompts.draw, lambda old: prompts.draw()[0], prompts.play, 0)
        collector = AsyncCollector(source, log, batch=batch, in_flight=2 * batch, max_staleness=1 << 20)
        await collector.take()  # the first fills the places
        started, taken = time.thread_time(), 0
        for _ in range(max(2, ROUND // batch)):
            taken += len(await collector.take())
            prompts.version += 1
            collector.advance(prompts.version)
        spent = time.thread_time() - started
        await collector.close()
        log.close()
    return 1e3 * spent / taken


def json_ms(tokens: int, repeats: int = 50) -> float:
    """Milliseconds of CPU for one line of the log."""
    rng = np.random.default_rng(0)
    record = TokenRecord()
    record.add_observation("user", list(range(tokens // 16)), "?" * 500)
    for _ in range(3):
        sampled = tokens * 5 // 16
        ids, logprobs = rng.integers(0, 150_000, sampled).tolist(), (-rng.exponential(1, sampled)).tolist()
        record.add_action(ids, logprobs, [7] * sampled, "x" * 3 * sampled)
    finished = record.close("task", 1.0, "answered")
    started = time.thread_time()
    for _ in range(repeats):
        finished.to_json()
    return 1e3 * (time.thread_time() - started) / repeats


def table(*, quick: bool = False) -> dict[str, float]:
    """Print it. Returns the least milliseconds by batch size: the worse of single requests and groups."""
    rounds: dict[tuple[int, int], list[float]] = {(size, group): [] for size in SIZES for group in (1, 8)}
    with rare_collections():
        for _ in range(2 if quick else 7):
            for (size, group), found in rounds.items():
                found.append(asyncio.run(measure(size, group)))
    least = {size: max(min(rounds[size, 1]), min(rounds[size, 8])) for size in SIZES}
    print("batch   in flight   driver CPU, ms an episode: least (median)   in groups of 8")
    for size in SIZES:
        single, grouped = (
            f"{min(found):.3f} ({statistics.median(found):.3f})" for found in (rounds[size, 1], rounds[size, 8])
        )
        verdict = "held" if least[size] <= BAR_MS else f"missed: bar {BAR_MS}"
        print(f"{size:5}   {2 * size:9}   {single:>41}   {grouped:>14}   {verdict}")
    print(f"JSON of an episode of 4,096 tokens: {json_ms(4096):.2f} ms of the log's thread")
    return {str(size): spent for size, spent in least.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    table(quick=parser.parse_args().quick)


if __name__ == "__main__":
    main()
