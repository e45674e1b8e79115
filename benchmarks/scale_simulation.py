"""Clusters that nobody here has, on one core: the real collector on a clock that jumps.

    python benchmarks/scale_simulation.py [--gpus 64 256 1024 4096] [--steps 12] [--quick]

`AsyncCollector` is the product's; its event loop jumps to the next timer instead of waiting, so an hour of a thousand
GPUs takes seconds. Simulated is what an episode and an update cost (`Machine`): turns of lognormal length, decoded at a
rate that falls as a GPU fills; tools with a long tail; an update at so many tokens a second; weights at so many bytes a
second. Beside it the same episodes in synchronous batches: all of a batch is awaited, learnt, and the weights are sent
before anything begins again.

The numbers are planned, not measured, except the driver's CPU. They say how time is lost, not how fast a cluster is:
change `Machine` to what yours does.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.training.rollouts.collector import AsyncCollector
from solostream.training.rollouts.request import PromptSource, RolloutRequest


@dataclass(frozen=True)
class Machine:
    """A 7 B model in bfloat16 on GPUs of about 1,000 TFLOP/s, three in four of them sampling."""

    sampling_share: float = 0.75
    slots: int = 128  # episodes that a sampling GPU decodes at a time
    rate: float = 80.0  # tokens a second of one episode on an empty GPU ...
    rate_full: float = 30.0  # ... and on a full one
    learn_rate: float = 8000.0  # tokens a second of one learning GPU: 6 N FLOPs a token at a third of the peak
    weight_bytes: float = 15e9
    wire: float = 25e9  # bytes a second into each replica, in a tree: the depth costs, not the number
    turns: float = 3.0  # mean of a geometric distribution
    turn_tokens: tuple[float, float] = (6.0, 0.9)  # lognormal: median 400, mean 600
    tool_s: tuple[float, float] = (0.3, 1.2)  # lognormal: median 1.3 s with a tail, cut at the time-out
    tool_timeout_s: float = 60.0
    episodes_a_gpu: float = 48.0  # of a batch, for each GPU of the cluster


class JumpingLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing else can happen."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


@dataclass
class Cluster:
    """What episodes run on. `version` is the learner's; an episode carries the version of its first turn."""

    machine: Machine
    gpus: int
    seed: int = 0
    version: int = 0
    event: int = 0
    decoding: int = 0
    decoded: float = 0.0
    length: dict[int, float] = field(default_factory=dict)  # event -> tokens

    def __post_init__(self) -> None:
        self.samplers = round(self.gpus * self.machine.sampling_share)
        self.learners = self.gpus - self.samplers
        self.batch = 8 * round(self.gpus * self.machine.episodes_a_gpu / 8)
        self._rng = np.random.default_rng(self.seed)

    def draw(self) -> list[RolloutRequest]:
        self.event += 1
        return [RolloutRequest("task", 0, Dispatch(self.event, 0.5, self.version))]

    async def play(self, request: RolloutRequest) -> Trajectory:
        m, tokens, began = self.machine, 0.0, self.version
        for turn in range(self._rng.geometric(1 / m.turns)):
            if turn:
                await asyncio.sleep(min(self._rng.lognormal(*m.tool_s), m.tool_timeout_s))
            length = self._rng.lognormal(*m.turn_tokens)
            self.decoding += 1
            load = self.decoding / (self.samplers * m.slots)
            rate = (m.rate + (m.rate_full - m.rate) * min(load, 1.0)) / max(load, 1.0)
            await asyncio.sleep(length / rate)
            self.decoding -= 1
            tokens += length
        self.decoded += tokens
        self.length[request.dispatch.event] = tokens
        record = TokenRecord()
        record.add_observation("user", [1], "")
        record.add_action([2], [0.0], [began], "")
        return record.close("task", 1.0, "answered", dispatch=request.dispatch)

    async def learn(self, batch: Sequence[Trajectory]) -> float:
        """The update; its tokens."""
        tokens = sum(self.length.pop(t.dispatch.event) for t in batch)
        await asyncio.sleep(tokens / (self.learners * self.machine.learn_rate))
        return tokens

    async def send(self) -> float:
        """The weights to every replica; seconds."""
        seconds = self.machine.weight_bytes / self.machine.wire * np.log2(max(self.samplers, 2)) / 4
        await asyncio.sleep(seconds)
        self.version += 1
        return float(seconds)


@dataclass
class Row:
    """Of a whole run; shares of its time."""

    tokens_a_s: float
    learner_idle: float
    sampler_idle: float
    transfer: float
    staleness: float = 0.0
    staleness_max: int = 0
    dropped: float = 0.0
    driver_ms: float = 0.0


class NoLog:
    async def append(self, *trajectories: Trajectory) -> None:
        """Nothing is kept."""


async def streams(cluster: Cluster, steps: int, *, over: float = 1.5, max_staleness: int = 4) -> Row:
    """The product's asynchronous collector."""
    loop, cpu = asyncio.get_running_loop(), time.process_time()
    collector = AsyncCollector(
        PromptSource(cluster.draw, lambda old: cluster.draw()[0], cluster.play, 0),
        NoLog(),  # type: ignore[arg-type]
        batch=cluster.batch,
        in_flight=round(cluster.batch * over),
        max_staleness=max_staleness,
    )
    tokens = waited = sent = 0.0
    ages: list[int] = []
    start = 0.0
    for step in range(steps + 1):
        if step == 1:  # the first batch fills an empty cluster: not of the long run
            start, tokens, waited, sent, cluster.decoded, ages = loop.time(), 0.0, 0.0, 0.0, 0.0, []
        before = loop.time()
        batch = await collector.take()
        waited += loop.time() - before
        ages += [cluster.version - t.dispatch.version for t in batch]
        tokens += await cluster.learn(batch)
        sent += await cluster.send()
        collector.advance(cluster.version)
    spent = loop.time() - start
    stale = collector.counts["stale"] / max(cluster.event, 1)
    await collector.close()
    full = cluster.samplers * cluster.machine.slots * cluster.machine.rate_full
    driver = 1e3 * (time.process_time() - cpu) / ((steps + 1) * cluster.batch)
    return Row(
        tokens / spent,
        waited / spent,
        max(0.0, 1 - cluster.decoded / spent / full),
        sent / spent,
        float(np.mean(ages)),
        max(ages),
        stale,
        driver,
    )


async def groups(cluster: Cluster, steps: int) -> Row:
    """Synchronous: a batch is played to its last episode, learnt, and sent."""
    loop = asyncio.get_running_loop()
    tokens = waited = sent = 0.0
    for _ in range(steps):
        before = loop.time()
        batch = await asyncio.gather(*(cluster.play(cluster.draw()[0]) for _ in range(cluster.batch)))
        waited += loop.time() - before
        tokens += await cluster.learn(batch)
        sent += await cluster.send()
    full = cluster.samplers * cluster.machine.slots * cluster.machine.rate_full
    return Row(tokens / loop.time(), waited / loop.time(), 1 - cluster.decoded / loop.time() / full, sent / loop.time())


def run(work: Coroutine[Any, Any, Row]) -> Row:
    loop = JumpingLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="the two smaller clusters, three steps")
    options = parser.parse_args()
    sizes, steps = (options.gpus[:2], 3) if options.quick else (options.gpus, options.steps)
    machine = Machine()
    print(machine)
    print(
        "| GPUs | batch | in flight | M tokens/s | against groups | learner idle | samplers idle | transfer "
        "| staleness (max) | dropped | driver ms an episode |\n|" + "---|" * 11
    )
    for gpus in sizes:
        ours, theirs = (run(kind(Cluster(machine, gpus), steps)) for kind in (streams, groups))
        batch = Cluster(machine, gpus).batch
        print(
            f"| {gpus} | {batch:,} | {round(1.5 * batch):,} "
            f"| {ours.tokens_a_s / 1e6:.2f} ({theirs.tokens_a_s / 1e6:.2f}) "
            f"| {ours.tokens_a_s / theirs.tokens_a_s:.2f}x | {ours.learner_idle:.0%} ({theirs.learner_idle:.0%}) "
            f"| {ours.sampler_idle:.0%} ({theirs.sampler_idle:.0%}) | {ours.transfer:.0%} ({theirs.transfer:.0%}) "
            f"| {ours.staleness:.2f} ({ours.staleness_max}) | {ours.dropped:.1%} | {ours.driver_ms:.3f} |",
            flush=True,
        )
    print(
        "In brackets: the same episodes in synchronous batches. The driver's time is CPU, simulated episodes included."
    )


if __name__ == "__main__":
    main()
