"""Credit inside a trajectory: does a method find the turn that decides? On a chain of calls of which one must be right.

    python benchmarks/credit.py [--quick] [--families even settled paid] [--out FILE]

For every credit method against plain outcome credit, in groups (GRPO) and on single streams (SPO), all with the same
episodes a batch: (1) signal to noise of the decisive turn's gradient at the start, over fresh batches, and how much of
the gradient's square falls on tokens that decide nothing; (2) the learning curve: the mean over updates and the last
value of the probability of the right choice, five seeds, 95 % t intervals. About a minute of one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.credit_parts.chain import FAMILIES, Family, Policy
from benchmarks.evidence_parts.statistics import said
from benchmarks.evidence_parts.table_run import Adam
from solostream.agent.trajectory import Dispatch
from solostream.training.advantages import ValueTracker, estimator
from solostream.training.batch import Batch

PROMPTS, STREAMS = 4, 8  # of a batch: the same episodes for groups and for single streams
STAGES = ("empg", "aepo", "dual_level", "salt", "gigpo", "seed", "d3s")
# name -> (advantage, stages)
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpo": ("grpo", ()),
    **{f"grpo + {s}": ("grpo", (s,)) for s in STAGES},
    "dcpo": ("dcpo", ()),
    "bnpo": ("bnpo", ()),
    "spo": ("spo", ()),
    **{f"spo + {s}": ("spo", (s,)) for s in ("empg", "aepo", "dual_level", "gigpo", "d3s")},
    "bnpo_stream": ("bnpo_stream", ()),
}
BASE = {
    name: "grpo" if name.startswith(("grpo", "dcpo", "bnpo")) and name != "bnpo_stream" else "spo" for name in METHODS
}


class Run:
    """One method on one family: a policy, an estimator, and a stream of batches."""

    def __init__(self, method: str, family: Family, seed: int, rate: float) -> None:
        self.tracker = ValueTracker()
        advantage, stages = METHODS[method]
        self.estimator: Any = estimator(advantage, stages, {}, self.tracker, lambda batch: [])[-1]
        self.policy, self.rng = Policy(family), np.random.default_rng(seed)
        self.adam, self.step, self.event = Adam(self.policy.weights.shape, rate), 0, 0

    def gradient(self) -> np.ndarray:
        """Of one batch: [tokens, options]."""
        dispatches = []
        for prompt in range(PROMPTS):
            task = f"t{prompt}"
            value = self.tracker.value(task)
            for _ in range(STREAMS):
                group = self.step * PROMPTS + prompt
                dispatches.append((task, Dispatch(self.event, value, self.step, group)))
                self.event += 1
        played = self.policy.play(dispatches, self.rng)
        self.step += 1
        return self.policy.gradient(played, self.estimator(Batch(played)).values)

    def update(self) -> None:
        """One step of Adam on the shared and each token's own logits."""
        g = self.gradient()
        self.adam.step(self.policy.weights, np.concatenate([g.sum(0)[None], g]))


def signal(method: str, family: Family, batches: int, seed: int) -> tuple[float, float]:
    """(signal to noise of the decisive turn's gradient, share of the gradient's square elsewhere), at the start."""
    run = Run(method, family, seed, 0.0)
    for _ in range(5):
        run.gradient()  # the tracker and whatever has a history settle; the policy stays
    found = np.stack([run.gradient() for _ in range(batches)])  # [batches, tokens, options]
    decisive = found[:, family.token]
    mean = decisive.mean(0)
    noise = np.sqrt(((decisive - mean) ** 2).sum(1).mean())
    elsewhere = 1 - (decisive**2).sum() / (found**2).sum()
    return float(np.linalg.norm(mean) / noise), float(elsewhere)


def curve(method: str, family: Family, updates: int, seed: int) -> np.ndarray:
    """[updates + 1]: the probability of the right choice."""
    run = Run(method, family, seed, 0.05)
    found = [run.policy.right()]
    for _ in range(updates):
        run.update()
        found.append(run.policy.right())
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, few batches")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--out", type=Path, help="write the table there, too")
    args = parser.parse_args()
    seeds, updates, batches = (2, 10, 30) if args.quick else (5, 30, 40)
    started = time.perf_counter()
    lines = []
    for name in args.families:
        family = FAMILIES[name]
        lines += [f"## {name}", "", "| method | signal/noise | elsewhere | mean P(right) | against plain | last |"]
        lines += ["|---|---|---|---|---|---|"]
        curves = {m: np.stack([curve(m, family, updates, s) for s in range(seeds)]) for m in METHODS}
        for method, found in curves.items():
            ratio, elsewhere = zip(*(signal(method, family, batches, 100 + s) for s in range(seeds)), strict=True)
            gain = found.mean(1) - curves[BASE[method]].mean(1)  # paired by seed
            plain = "" if method in ("grpo", "spo") else said(gain.tolist(), sign="+")
            cells = [said(ratio), f"{np.mean(elsewhere):.0%}", said(found.mean(1).tolist())]
            cells += [plain, f"{found[:, -1].mean():.3f}"]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    text = "\n".join(lines)
    print(text)
    print(f"{seeds} seeds, {updates} updates of {PROMPTS} x {STREAMS} episodes, {time.perf_counter() - started:.0f} s")
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
