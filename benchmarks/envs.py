"""What an environment costs: everything in a step but the sandbox.

256 episodes of 4 calls each. Three rows: `ToolVectorEnv` (all episodes on one event loop), Gymnasium's `SyncVectorEnv`
over the same `ToolEnv`, and the sandbox alone running the same code at the same concurrency. Overhead is the processor
time of this process, less that of the sandbox alone, over the number of steps (bar: 1 ms); the wall clock is shown as a
ratio too. Then the parser: a turn at once and token by token. (Random turns: benchmarks/fuzz_calls.py.)

    python benchmarks/envs.py [--quick]
"""

from __future__ import annotations

import sys

sys.path.pop(0)  # this folder: its files bear the names of the packages that they measure

import argparse
import asyncio
import time
from collections.abc import Callable
from functools import partial

from gymnasium.vector import SyncVectorEnv

from solostream.envs.text.parse import Parser, parse
from solostream.envs.tool_env import ToolEnv
from solostream.envs.vector_env import ToolVectorEnv
from solostream.sandbox.spec import open_sandbox

CALLS = 4
CODE = "x = sum(i * i for i in range(200))\nprint(x)"
TURN = f"Let me compute this.\n```python\n{CODE}\n```\n"
SETTINGS = {"tasks": {"generate": 256, "seed": 0, "levels": [1]}, "system_prompt": ""}
Seconds = tuple[float, float]  # wall clock, processor time of this process


def timed(work: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def episodes(env: ToolVectorEnv | SyncVectorEnv, n: int) -> None:
    env.reset(seed=0)
    for _ in range(CALLS):
        observations, *_ = env.step([TURN] * n)
        assert set(observations) == {"2646700"}
    _, _, terminated, _, _ = env.step(["It is \\boxed{1}."] * n)
    assert terminated.all()


def vector(n: int, sandbox: str) -> Seconds:
    env = ToolVectorEnv(n, sandbox=sandbox, **SETTINGS)
    seconds = timed(lambda: episodes(env, n))
    env.close()
    return seconds


def one_by_one(n: int, sandbox: str) -> Seconds:
    env = SyncVectorEnv([partial(ToolEnv, sandbox=sandbox, **SETTINGS)] * n)
    seconds = timed(lambda: episodes(env, n))
    env.close()
    return seconds


def sandbox_alone(n: int, spec: str) -> Seconds:
    async def work() -> Seconds:
        sandbox = open_sandbox(spec)
        wall, cpu = time.perf_counter(), time.process_time()
        sessions = await asyncio.gather(*(sandbox.open() for _ in range(n)))
        for _ in range(CALLS):
            await asyncio.gather(*(session.run(CODE) for session in sessions))
        await asyncio.gather(*(session.close() for session in sessions))
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        await sandbox.close()
        return seconds

    return asyncio.run(work())


def environments(n: int, sandbox: str) -> None:
    print(f"{n} episodes of {CALLS} calls on {sandbox!r}, and an answer: {n * (CALLS + 1)} steps")
    sandbox_alone(8, sandbox)  # warm up: imports, the first fork server
    alone = sandbox_alone(n, sandbox)
    rows = {"solostream ToolVectorEnv": vector(n, sandbox), "Gymnasium SyncVectorEnv": one_by_one(n, sandbox)}
    steps = n * (CALLS + 1)
    print(f"{'':26}{'wall s':>8}{'steps/s':>9}{'wall, ratio':>13}{'overhead ms/step':>18}")
    print(f"{'sandbox alone':26}{alone[0]:8.2f}{'':9}{1:13.2f}")
    for name, (wall, cpu) in rows.items():
        overhead = max(0.0, cpu - alone[1]) / steps * 1e3
        print(f"{name:26}{wall:8.2f}{steps / wall:9.0f}{wall / alone[0]:13.2f}{overhead:18.3f}")


def parsing() -> None:
    text = "Some reasoning about the problem. " * 100 + TURN
    pieces = [text[i : i + 4] for i in range(0, len(text), 4)]

    def by_token() -> None:
        parser = Parser()
        for piece in pieces:
            parser.feed(piece)

    def again_each_token() -> None:
        seen = ""
        for piece in pieces:
            seen += piece
            parse(seen)

    print(f"\nparser, a turn of {len(text)} characters and {len(pieces)} tokens, ms")
    for name, work, repeats in (
        ("at once", partial(parse, text), 200),
        ("token by token", by_token, 20),
        ("parsing again at every token", again_each_token, 2),
    ):
        print(f"{name:30}{min(timed(work)[0] for _ in range(repeats)) * 1e3:10.3f}")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="32 episodes")
    options.add_argument("--sandbox", default="fork")
    chosen = options.parse_args()
    environments(32 if chosen.quick else 256, chosen.sandbox)
    parsing()
    return 0


if __name__ == "__main__":
    sys.exit(main())
