"""Clusters that nobody here has, on one core: the real collector on a clock that jumps.

    python benchmarks/scale_simulation.py [--gpus 64 256 1024 4096] [--episodes 16] [--steps 8] [--quick]

`AsyncCollector` is the product's; its event loop jumps to the next timer instead of waiting, so an hour of a thousand
GPUs takes seconds. Simulated is what an episode and an update cost (`Machine`): turns of lognormal length, decoded at a
rate that falls as a GPU fills; tools with a long tail; an update at so many tokens a second; weights at so many bytes a
second. Beside it the same episodes in synchronous batches (all of a batch is awaited, learnt, and the weights are sent
before anything begins again), such batches one ahead of the learner, and the stream with each batch learnt in parts.

The numbers are planned, not measured, except the driver's CPU. They say how time is lost, not how fast a cluster is:
change `Machine` to what yours does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import heapq
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from solostream.agent.trajectory import Dispatch
from solostream.training.rollouts.collector import AsyncCollector
from solostream.training.rollouts.request import PromptSource, RolloutRequest

PARTS = 8  # of a batch that is learnt while the rest of it is still being played
SAMPLED = np.array([True])


@dataclass(frozen=True)
class Machine:
    """A 7 B model in bfloat16 on GPUs of about 1,000 TFLOP/s, three in four of them sampling."""

    sampling_share: float = 0.75
    slots: int = 128  # episodes that a sampling GPU decodes at a time
    rate: float = 80.0  # tokens a second of one episode on an empty GPU ...
    rate_full: float = 30.0  # ... and on a full one
    # Tokens a second of one learning GPU: 6 N FLOPs a token at 44 % of the peak, which the compiled update of a 1.5 B
    # model reached on an H200 (docs/results.md, "One GPU").
    learn_rate: float = 10_400.0
    weight_bytes: float = 15e9
    wire: float = 25e9  # bytes a second into each replica, in a tree: the depth costs, not the number
    turns: float = 3.0  # mean of a geometric distribution
    turn_tokens: tuple[float, float] = (6.0, 0.9)  # lognormal: median 400, mean 600
    tool_s: tuple[float, float] = (0.3, 1.2)  # lognormal: median 1.3 s with a tail, cut at the time-out
    tool_timeout_s: float = 60.0
    episodes_a_gpu: float = 48.0  # of a batch, for each GPU of the cluster


class JumpingLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing else can happen. No files, no threads: the selector is never asked.

    Timers lie in a heap of tuples, which compares in C; asyncio's own heap compares handles in Python, and a hundred
    thousand episodes compare a million times a step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._made = itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._made), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        while not ready:
            self.now, _, handle = heapq.heappop(self._timers)
            if not handle.cancelled():
                ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()


class Drawn:
    """Numbers of one distribution, drawn many at a time."""

    def __init__(self, draw: Callable[[int], np.ndarray]) -> None:
        self._draw, self._left = draw, iter(())

    def __call__(self) -> float:
        for number in self._left:
            return number
        self._left = iter(self._draw(1 << 16).tolist())
        return next(self._left)


@dataclass(slots=True)
class Finished:
    """What the collector reads of a trajectory. `tokens` stands for its ledger."""

    task_id: str
    dispatch: Dispatch
    tokens: float
    versions: np.ndarray
    action_mask: np.ndarray = field(default_factory=lambda: SAMPLED)
    ending: str = "answered"
    grading: None = None
    seed: int = 0


class Cluster:
    """What episodes run on. `version` is the learner's; an episode carries the version of its first turn."""

    def __init__(self, machine: Machine, gpus: int, seed: int = 0) -> None:
        self.machine, self.gpus, self.version, self.event = machine, gpus, 0, 0
        self.samplers = round(gpus * machine.sampling_share)
        self.learners = gpus - self.samplers
        self.batch = PARTS * round(gpus * machine.episodes_a_gpu / PARTS)
        self.decoding, self.decoded = 0, 0.0
        rng = np.random.default_rng(seed)
        self._turns = Drawn(lambda n: rng.geometric(1 / machine.turns, n))
        self._length = Drawn(lambda n: rng.lognormal(*machine.turn_tokens, n))
        self._tool_s = Drawn(lambda n: np.minimum(rng.lognormal(*machine.tool_s, n), machine.tool_timeout_s))

    def draw(self) -> list[RolloutRequest]:
        self.event += 1
        return [RolloutRequest("task", 0, Dispatch(self.event, 0.5, self.version))]

    async def play(self, request: RolloutRequest) -> Any:
        m, tokens, began = self.machine, 0.0, self.version
        for turn in range(int(self._turns())):
            if turn:
                await asyncio.sleep(self._tool_s())
            length = self._length()
            self.decoding += 1
            load = self.decoding / (self.samplers * m.slots)
            rate = (m.rate + (m.rate_full - m.rate) * min(load, 1.0)) / max(load, 1.0)
            await asyncio.sleep(length / rate)
            self.decoding -= 1
            tokens += length
        self.decoded += tokens
        return Finished("task", request.dispatch, tokens, versions_of(began))

    async def learn(self, batch: Sequence[Any]) -> float:
        """The update, or a part of it; its tokens."""
        tokens = sum(one.tokens for one in batch)
        await asyncio.sleep(tokens / (self.learners * self.machine.learn_rate))
        return tokens

    async def send(self) -> float:
        """The weights to every replica; seconds."""
        seconds = self.machine.weight_bytes / self.machine.wire * np.log2(max(self.samplers, 2)) / 4
        await asyncio.sleep(seconds)
        self.version += 1
        return float(seconds)

    @property
    def capacity(self) -> float:
        """Tokens a second of all samplers when they are full."""
        return self.samplers * self.machine.slots * self.machine.rate_full


@cache
def versions_of(version: int) -> np.ndarray:
    return np.array([version])


@dataclass
class Row:
    """Of a whole run; shares of its time."""

    tokens_a_s: float
    learner_idle: float
    sampler_idle: float
    transfer: float
    step_s: float
    staleness: float = 0.0
    staleness_max: int = 0
    dropped: float = 0.0
    driver_ms: float = 0.0
    episodes: int = 0


class NoLog:
    async def append(self, *trajectories: Any) -> None:
        """Nothing is kept."""


async def stream(cluster: Cluster, steps: int, *, parts: int = 1, over: float = 1.5, max_staleness: int = 4) -> Row:
    """The product's asynchronous collector. parts: of a batch, each learnt as soon as it is there."""
    loop, cpu = asyncio.get_running_loop(), time.process_time()
    collector = AsyncCollector(
        PromptSource(cluster.draw, lambda old: cluster.draw()[0], cluster.play, 0),
        NoLog(),  # type: ignore[arg-type]
        batch=cluster.batch // parts,
        in_flight=round(cluster.batch * over),
        max_staleness=max_staleness,
    )
    tokens = waited = sent = start = 0.0
    ages: list[int] = []
    for step in range(steps + 1):
        if step == 1:  # the first batch fills an empty cluster: not of the long run
            start, tokens, waited, sent, cluster.decoded, ages = loop.time(), 0.0, 0.0, 0.0, 0.0, []
        for _ in range(parts):
            before = loop.time()
            batch: Sequence[Any] = await collector.take()
            waited += loop.time() - before
            ages += [cluster.version - one.dispatch.version for one in batch]
            tokens += await cluster.learn(batch)
        sent += await cluster.send()
        collector.advance(cluster.version)
    spent = loop.time() - start
    await collector.close()
    return Row(
        tokens / spent,
        waited / spent,
        max(0.0, 1 - cluster.decoded / spent / cluster.capacity),
        sent / spent,
        spent / steps,
        float(np.mean(ages)),
        max(ages),
        collector.counts["stale"] / max(cluster.event, 1),
        1e3 * (time.process_time() - cpu) / ((steps + 1) * cluster.batch),
        cluster.event,
    )


async def groups(cluster: Cluster, steps: int, *, overlapped: bool = False) -> Row:
    """Synchronous: a batch is played to its last episode, learnt, sent. overlapped: the next one plays meanwhile."""
    loop = asyncio.get_running_loop()

    def begin() -> asyncio.Future[list[Any]]:
        return asyncio.gather(*(cluster.play(cluster.draw()[0]) for _ in range(cluster.batch)))

    tokens = waited = sent = 0.0
    playing = begin()
    for _ in range(steps):
        before = loop.time()
        batch = await playing
        waited += loop.time() - before
        if overlapped:
            playing = begin()
        tokens += await cluster.learn(batch)
        sent += await cluster.send()
        if not overlapped:
            playing = begin()
    playing.cancel()
    spent = loop.time()
    idle = max(0.0, 1 - cluster.decoded / spent / cluster.capacity)
    return Row(tokens / spent, waited / spent, idle, sent / spent, spent / steps, float(overlapped), int(overlapped))


CONTESTANTS: dict[str, Callable[[Cluster, int], Coroutine[Any, Any, Row]]] = {
    "synchronous": groups,
    "one batch ahead": lambda cluster, steps: groups(cluster, steps, overlapped=True),
    "stream": stream,
    f"stream, in {PARTS} parts": lambda cluster, steps: stream(cluster, steps, parts=PARTS),
}


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
    parser.add_argument("--episodes", type=float, help="of a batch, a GPU (default: Machine's)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="the two smaller clusters, three steps")
    options = parser.parse_args()
    sizes, steps = (options.gpus[:2], 3) if options.quick else (options.gpus, options.steps)
    machine = replace(Machine(), episodes_a_gpu=options.episodes) if options.episodes else Machine()
    gc.disable()  # nothing here is a cycle, and a hundred thousand live tasks are walked at every collection
    print(machine)
    print(
        "| GPUs | in flight | | M tokens/s | against synchronous | s a step | learner idle | samplers idle | transfer "
        "| staleness (max) | dropped | driver ms an episode |\n|" + "---|" * 12
    )
    for gpus in sizes:
        batch, base = Cluster(machine, gpus).batch, 0.0
        for name, kind in CONTESTANTS.items():
            row = run(kind(Cluster(machine, gpus), steps))
            base = base or row.tokens_a_s
            flying = round(1.5 * batch) if row.episodes else batch
            print(
                f"| {gpus:,} | {flying:,} | {name} | {row.tokens_a_s / 1e6:.2f} | {row.tokens_a_s / base:.2f}x "
                f"| {row.step_s:.0f} | {row.learner_idle:.0%} | {row.sampler_idle:.0%} | {row.transfer:.1%} "
                f"| {row.staleness:.2f} ({row.staleness_max}) | {row.dropped:.1%} "
                f"| {f'{row.driver_ms:.3f}' if row.episodes else ''} |",
                flush=True,
            )
    print("The driver's time is CPU, the simulated episodes included; the collector alone: benchmarks/collector.py.")


if __name__ == "__main__":
    main()
