"""Two runs on the same problems: pass@k together, support flow, per-problem differences, significance.

Everything is paired by problem and uses only the problems that both runs played. Support flow follows ASPO (arXiv
2508.19201, Sec. 4.2): a problem is in a policy's support when one of its first k samples solves it; between A and B a
problem is expansion (only B), preservation (both), shrinkage (only A) or unsolved (neither).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from solostream.errors import UserError
from solostream.evaluation.metrics import SCALARS, Problem, bootstrap, by_problem, pass_curve, scalar, summarize
from solostream.evaluation.samples import read_samples

Flow = Literal["expansion", "preservation", "shrinkage", "unsolved"]
FLOWS: tuple[Flow, ...] = ("preservation", "expansion", "shrinkage", "unsolved")
Same = Callable[[str, str], bool] | None


@dataclass(frozen=True, slots=True)
class Row:
    """One problem in both runs: samples (n), correct ones (c), the difference of mean reward B − A, its flow at k."""

    task_id: str
    n_a: int
    c_a: int
    n_b: int
    c_b: int
    difference: float
    flow: Flow


@dataclass(frozen=True, slots=True)
class Comparison:
    """`only_a`, `only_b`: problems that the other run did not play, and which are therefore left out of all numbers."""

    names: tuple[str, str]
    metrics: tuple[dict[str, Any], dict[str, Any]]
    curves: tuple[list[dict[str, float]], list[dict[str, float]]]
    k: int
    flow: dict[Flow, int]
    rows: tuple[Row, ...]
    difference: dict[str, float]  # mean of B − A over problems: mean, low, high (paired bootstrap), p (permutation)
    mcnemar: dict[str, float]  # on "solved within k": only_a, only_b, p (exact)
    only_a: int
    only_b: int
    damaged: int

    def scalar(self, name: str) -> tuple[float | None, float | None]:
        """One metric of both runs. Raises UserError for an unknown name."""
        try:
            first, second = (scalar(metrics, name) for metrics in self.metrics)
        except KeyError:
            raise UserError(
                f"unknown metric '{name}'; one of: {', '.join(SCALARS)}, pass@K, maj@K up to K = {self.k}"
            ) from None
        return first, second


def compare(a: Path, b: Path, *, k: int | None = None, same: Same = None) -> Comparison:
    """Read two runs and compare them. k: of the support flow (default: the most that all problems have).

    same: the verifier's equality of answers. Raises UserError: no common problem, or fewer than k samples somewhere.
    """
    (samples_a, damage_a), (samples_b, damage_b) = read_samples(a), read_samples(b)
    first, second = ({p.task_id: p for p in by_problem(samples)} for samples in (samples_a, samples_b))
    common = [task for task in first if task in second]
    if not common:
        raise UserError(f"{a} and {b} have no problem in common: were they evaluated on the same --data?")
    pairs = [(first[task], second[task]) for task in common]
    most = min(p.n for pair in pairs for p in pair)
    if k is not None and not 1 <= k <= most:
        raise UserError(f"k = {k}, but a problem has only {most} samples; use -k {most} or less, or evaluate more")
    k = k or most
    rows = tuple(_row(x, y, k) for x, y in pairs)
    flow: dict[Flow, int] = {name: sum(row.flow == name for row in rows) for name in FLOWS}
    differences = np.array([row.difference for row in rows])
    low, high = bootstrap(differences)
    return Comparison(
        names=_names(a, b),
        metrics=(
            summarize([s for p, _ in pairs for s in p.samples], same),
            summarize([s for _, p in pairs for s in p.samples], same),
        ),
        curves=(pass_curve([p for p, _ in pairs]), pass_curve([p for _, p in pairs])),
        k=k,
        flow=flow,
        rows=rows,
        difference={
            "mean": float(differences.mean()),
            "low": float(low),
            "high": float(high),
            "p": permutation(differences),
        },
        mcnemar={
            "only_a": flow["shrinkage"],
            "only_b": flow["expansion"],
            "p": mcnemar(flow["shrinkage"], flow["expansion"]),
        },
        only_a=len(first) - len(common),
        only_b=len(second) - len(common),
        damaged=len(damage_a) + len(damage_b),
    )


def permutation(differences: np.ndarray, *, draws: int = 20_000, seed: int = 0) -> float:
    """Two-sided p of "A and B are exchangeable on every problem", by flipping signs; (problems,) -> p.

    All sign patterns up to 12 problems, otherwise random ones (whose smallest p is 1/(draws + 1)).
    """
    differences = np.asarray(differences, np.float64)
    observed = abs(differences.sum()) - 1e-9
    if len(differences) <= 12:
        bits = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1
        return float((abs((1 - 2 * bits) @ differences) >= observed).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(0, draws, 1000):  # in blocks: memory stays small for many problems
        signs = rng.integers(0, 2, (1000, len(differences)), dtype=np.int8) * 2 - 1
        hits += int((abs(signs @ differences) >= observed).sum())
    return (hits + 1) / (draws + 1)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test from the two discordant counts."""
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / (1 << n))


def _row(a: Problem, b: Problem, k: int) -> Row:
    solved_a, solved_b = (any(s.solved for s in p.samples[:k]) for p in (a, b))
    flow: Flow = (
        "preservation"
        if solved_a and solved_b
        else "shrinkage"
        if solved_a
        else "expansion"
        if solved_b
        else "unsolved"
    )
    return Row(a.task_id, a.n, a.c, b.n, b.c, sum(b.rewards) / b.n - sum(a.rewards) / a.n, flow)


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Folder names; with their parents where these are equal."""
    names = [p.resolve().name if p.is_dir() else p.stem for p in (a, b)]
    if names[0] == names[1]:
        names = [f"{p.resolve().parent.name}/{name}" for p, name in zip((a, b), names, strict=True)]
    return (names[0], names[1]) if names[0] != names[1] else (f"{names[0]} (A)", f"{names[1]} (B)")


def shares(flow: dict[Flow, int]) -> Sequence[tuple[Flow, int, float]]:
    """(name, problems, share of all) in the order of `FLOWS`."""
    total = sum(flow.values())
    return [(name, flow[name], flow[name] / total) for name in FLOWS]
