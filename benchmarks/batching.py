"""Group-free batching: how long until 24 trajectories are there, from 48 streams in flight.

Group-free training takes the first 24 to finish. Training on groups of 8 waits for 3 of the 6 groups to finish whole.
The simulation follows SPO (arXiv 2509.13232, Sec. 5.4: 112 s against 486 s, 4.35 times) with log-normal latencies.
Median 112 s as there; the spread, 1.12, is fitted to its 486 s, and the table shows how the ratio hangs on it.
The second part plays the same game with real sandbox sessions: each stream opens one and makes several calls, whose
waits (a model's, a slow tool's) add up to a total drawn from the same distribution around a median of 1.5 s.

    python benchmarks/batching.py [--quick] [--sandbox fork] [--plot batching.png]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import time
from pathlib import Path
from statistics import fmean, median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

STREAMS, WANTED, GROUP = 48, 24, 8
MEDIAN_S, SIGMA, REAL_MEDIAN_S = 112.0, 1.12, 1.5


def times(finished: np.ndarray) -> tuple[float, float]:
    """Seconds until 24 single trajectories, and until 3 whole groups, from the finishing times [48] of all streams."""
    groups = finished.reshape(-1, GROUP).max(1)
    return float(np.sort(finished)[WANTED - 1]), float(np.sort(groups)[WANTED // GROUP - 1])


def simulate(sigma: float, rounds: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    return [times(MEDIAN_S * np.exp(sigma * rng.normal(size=STREAMS))) for _ in range(rounds)]


def row(name: str, measured: list[tuple[float, float]], unit: str = "s") -> str:
    """Means, and the ratio of the means with a bootstrap interval of 95 %."""
    pairs, rng = np.array(measured), np.random.default_rng(0)
    resampled = pairs[rng.integers(0, len(pairs), (1000, len(pairs)))].mean(1)
    low, high = np.quantile(resampled[:, 1] / resampled[:, 0], [0.025, 0.975])
    free, grouped = pairs.mean(0)
    return f"{name:<34}{free:10.2f} {unit} {grouped:10.2f} {unit} {grouped / free:8.2f}x   [{low:.2f}, {high:.2f}]"


async def play(sandbox: object, seconds: float, turns: int, start: float) -> float:
    """One stream: a session, `turns` real calls that take `seconds` together; when it finished, from `start`."""
    session = await sandbox.open()  # type: ignore[attr-defined]
    try:
        for turn in range(turns):
            code = f"import time\ntime.sleep({seconds / turns})\nx = {turn}\nsum(i * i for i in range(2000)) + x"
            execution = await session.run(code, timeout=600)
            assert execution.ok, execution
    finally:
        await session.close()
    return time.perf_counter() - start


async def real(spec: str, rounds: int, scale_s: float) -> list[tuple[float, float]]:
    from solostream.sandbox import open_sandbox

    sandbox, rng, measured = open_sandbox(spec), random.Random(0), []
    try:
        await play(sandbox, 0.0, 1, time.perf_counter())  # start the pool before the clock
        for _ in range(rounds):
            totals = [scale_s * math.exp(SIGMA * rng.gauss(0, 1)) for _ in range(STREAMS)]
            start = time.perf_counter()
            streams = (play(sandbox, total, rng.randint(1, 4), start) for total in totals)
            measured.append(times(np.array(await asyncio.gather(*streams))))
    finally:
        await sandbox.close()
    return measured


def plot(path: str, seed: int = 0) -> None:
    """One round: when each stream finished, by group, and the two moments a batch is ready."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    finished = MEDIAN_S * np.exp(SIGMA * np.random.default_rng(seed).normal(size=STREAMS))
    free, grouped = times(finished)
    figure, axes = plt.subplots(figsize=(8, 4))
    axes.barh(range(STREAMS), finished, color=[f"C{i // GROUP}" for i in range(STREAMS)])
    axes.axvline(free, color="black", label=f"first {WANTED} trajectories: {free:.0f} s")
    axes.axvline(grouped, color="black", linestyle="--", label=f"first {WANTED // GROUP} groups: {grouped:.0f} s")
    axes.set(xlabel="seconds", ylabel="stream (colour: group)", title="One round of 48 streams")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--sandbox", default="fork", help="spec of the sandbox for the real part")
    parser.add_argument("--plot", help="write a figure of one round here")
    options = parser.parse_args()
    rounds, real_rounds = (500, 2) if options.quick else (5000, 8)
    rng = np.random.default_rng(0)
    print(f"{'':<34}{'group-free':>12} {'groups of 8':>12} {'ratio':>9}   95 %")
    for sigma in (0.5, 0.8, SIGMA, 1.4):
        print(row(f"simulated, log-normal, sigma {sigma}", simulate(sigma, rounds, rng)))
    measured = asyncio.run(real(options.sandbox, real_rounds, REAL_MEDIAN_S))
    print(row(f"real, {options.sandbox}, {real_rounds} rounds", measured))
    free, grouped = (median(pair[i] for pair in measured) for i in (0, 1))
    print(f"real, medians: {free:.2f} s and {grouped:.2f} s, {grouped / free:.2f}x; ", end="")
    print(f"mean of the rounds' ratios {fmean(b / a for a, b in measured):.2f}x")
    print("paper: 112 s and 486 s, 4.35x; bars: simulated >= 4x, real >= 3x")
    if options.plot:
        plot(options.plot)


if __name__ == "__main__":
    main()
