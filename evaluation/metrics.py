"""What an evaluation reports: avg@k, unbiased pass@k, maj@k, behaviour of the tool calls, bootstrap intervals.

pass@k is the unbiased estimator `1 − C(n−c, k)/C(n, k)` (Chen et al., arXiv 2107.03374), maj@k that of
`majority`. The six measures of tool use are those of ASPO (arXiv 2508.19201, Fig. 6). Intervals are percentile
bootstraps over problems: samples of one problem are not independent evidence about other problems.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from solostream.agent.trajectory import Usage
from solostream.evaluation.majority import Same, majority_at_k
from solostream.evaluation.tool_use import ToolUse

SOLVED = 0.5  # a reward above this counts as a solved sample


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold one of the c correct ones. Raises ValueError."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def average(rewards: Iterable[Sequence[float] | float]) -> float:
    """avg@k: the mean over problems of the mean reward of their samples (or of their one); NaN without problems."""
    problems = [[one] if isinstance(one, int | float) else one for one in rewards]
    means = [sum(samples) / len(samples) for samples in problems if samples]
    return sum(means) / len(means) if means else math.nan


def mean_of(values: Sequence[float]) -> float | None:
    """Their mean; None without values, which JSON and charts show as a gap."""
    return float(sum(values)) / len(values) if values else None


def bootstrap(
    values: np.ndarray, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over the first axis. values: (problems,) or (problems, columns) -> low, high."""
    count = len(values)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    means = weights @ np.asarray(values, np.float64) / count
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def paired_change(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float] | None:
    """How the mean over the problems that both have changed, with its 95 % interval by problem: mean, low, high,
    problems. None where they have no problem in common.

    before, after: task id -> mean reward. A problem is as hard after as before: only what changed in it is chance.
    """
    common = [task_id for task_id in before if task_id in after]
    if not common:
        return None
    changes = np.array([after[task_id] - before[task_id] for task_id in common])
    low, high = bootstrap(changes)
    return {"mean": float(changes.mean()), "low": float(low), "high": float(high), "problems": len(common)}


def independent_change(
    before: tuple[float, float, float], after: tuple[float, float, float]
) -> tuple[float, float, float]:
    """(change, low, high) of two means that were measured on different problems, from (mean, low, high) of each.

    Squares of the distances to the bounds add up, each side for itself, so that skewed intervals stay skewed
    (Zou and Donner, Statistics in Medicine 27, 2008, Sec. 2; Newcombe's method 10 for two shares).
    """
    (b, b_low, b_high), (a, a_low, a_high) = before, after
    change = a - b
    return change, change - math.hypot(a - a_low, b_high - b), change + math.hypot(a_high - a, b - b_low)


@dataclass(frozen=True, slots=True)
class Sample:
    """One trajectory reduced to what the metrics need."""

    task_id: str
    reward: float
    answer: str | None
    ending: str
    behaviour: ToolUse
    unit: str = "tokens"  # of the lengths
    usage: Usage | None = None  # as an endpoint counted

    @property
    def solved(self) -> bool:
        """Whether the reward is above `SOLVED`."""
        return self.reward > SOLVED


@dataclass(frozen=True, slots=True)
class Problem:
    """One task and its samples, in the order in which they were drawn."""

    task_id: str
    samples: tuple[Sample, ...]

    @property
    def n(self) -> int:
        """How many samples it has."""
        return len(self.samples)

    @property
    def c(self) -> int:
        """How many of them solve it."""
        return sum(s.solved for s in self.samples)

    @property
    def rewards(self) -> list[float]:
        """The rewards of its samples, in order."""
        return [s.reward for s in self.samples]

    def majority(self, same: Same = None) -> np.ndarray:
        """maj@1 … maj@n, [n]."""
        return majority_at_k([s.answer for s in self.samples], [s.solved for s in self.samples], same)


def by_problem(samples: Iterable[Sample]) -> list[Problem]:
    """Group by task, tasks in order of first appearance."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.task_id, []).append(sample)
    return [Problem(task_id, tuple(group)) for task_id, group in groups.items()]


def estimate(values: Sequence[float]) -> dict[str, float] | None:
    """A mean over problems with its 95 % interval; None without problems."""
    if not values:
        return None
    array = np.asarray(values, np.float64)
    low, high = bootstrap(array)
    return {"mean": float(array.mean()), "low": float(low), "high": float(high)}


def pass_curve(problems: Sequence[Problem]) -> list[dict[str, float]]:
    """pass@k with its interval for every k up to the smallest number of samples that a problem has."""
    if not problems:
        return []
    ks = range(1, min(p.n for p in problems) + 1)
    return _curve([[pass_at_k(p.n, p.c, k) for k in ks] for p in problems])


def _curve(rows: Sequence[Sequence[float] | np.ndarray]) -> list[dict[str, float]]:
    """One row a problem, its values at k = 1, 2, …; up to the end of the shortest row."""
    table = np.array([row[: min(map(len, rows))] for row in rows])
    low, high = bootstrap(table)
    return [
        {"k": i + 1, "mean": float(table[:, i].mean()), "low": float(low[i]), "high": float(high[i])}
        for i in range(table.shape[1])
    ]


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, quantiles and a histogram of at most 24 bins; None without values."""
    if not values:
        return None
    array = np.asarray(values, np.float64)
    whole = bool((array == np.floor(array)).all())
    low, high = float(array.min()), float(array.max())
    if whole and high - low < 24:
        edges = np.arange(low, high + 2) - 0.5  # one bin a value
    else:
        edges = np.linspace(low, high if high > low else low + 1, 25)
    counts, edges = np.histogram(array, edges)
    quantiles = np.quantile(array, [0.1, 0.25, 0.5, 0.75, 0.9])
    return {
        "mean": float(array.mean()),
        "n": len(array),
        **{name: float(q) for name, q in zip(("p10", "p25", "p50", "p75", "p90"), quantiles, strict=True)},
        "counts": counts.tolist(),
        "edges": [round(float(e), 6) for e in edges],
    }


def tool_use_summary(rows: Sequence[ToolUse]) -> dict[str, Any]:
    """The six measures of ASPO Fig. 6: ratios as shares in [0, 1], the others as `spread`s (tokens, calls, lines)."""
    calls = sum(b.calls for b in rows)
    return {
        "response_length": spread([b.response_length for b in rows]),
        "first_call": spread([b.first_call for b in rows if b.first_call is not None]),
        "code_ratio": sum(b.first_call is not None for b in rows) / len(rows) if rows else None,
        "code_pass_ratio": sum(b.passed for b in rows) / calls if calls else None,
        "code_rounds": spread([b.calls for b in rows]),
        "code_lines": spread([lines for b in rows for lines in b.code_lines]),
    }


def summarize(samples: Sequence[Sample], same: Same = None) -> dict[str, Any]:
    """Everything an evaluation says about its samples, as plain JSON types (the `metrics` of summary.json).

    same: the verifier's equality of two answers, for maj@k.
    """
    problems = by_problem(samples)
    majorities = [p.majority(same) for p in problems]
    rows = [s.behaviour for s in samples]
    errors = Counter(name for b in rows for name in b.errors)
    coded = [s for s in samples if s.behaviour.first_call is not None]
    plain = [s for s in samples if s.behaviour.first_call is None]
    usages = [s.usage for s in samples if s.usage]
    per_problem = max(len(problems), 1)
    return {
        "problems": len(problems),
        "samples": len(samples),
        "unit": "/".join(sorted({s.unit for s in samples})) or "tokens",
        "usage": asdict(sum(usages, Usage())) if usages else None,
        "samples_a_problem": [min((p.n for p in problems), default=0), max((p.n for p in problems), default=0)],
        "avg": estimate([sum(p.rewards) / p.n for p in problems]),
        "solved": estimate([p.c / p.n for p in problems]),
        "maj": estimate([float(shares[-1]) for shares in majorities]),
        "pass": pass_curve(problems),
        "majority": _curve(majorities) if problems else [],
        "behaviour": tool_use_summary(rows),
        "errors": dict(errors.most_common()),
        "endings": dict(Counter(s.ending for s in samples).most_common()),
        "reward_with_tool": mean_of([s.reward for s in coded]),
        "reward_without_tool": mean_of([s.reward for s in plain]),
        "tokens_a_problem": sum(b.action_tokens for b in rows) / per_problem,
        "sandbox_s_a_problem": sum(b.sandbox_s for b in rows) / per_problem,
        "late_calls": sum(b.late_calls for b in rows),
        "late_ratio": mean_of([b.late_calls > 0 for b in rows]),
        "trivial_code_ratio": mean_of([s.behaviour.trivial for s in coded]),
        "void_ratio": mean_of([b.void for b in rows]),
    }


# The scalars of `summarize` that can be asked for by name: `solostream eval --metrics`, one column of a comparison.
SCALARS: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "avg": lambda m: m["avg"] and m["avg"]["mean"],
    "solved": lambda m: m["solved"] and m["solved"]["mean"],
    "maj": lambda m: m["maj"] and m["maj"]["mean"],
    "response_length": lambda m: _spread_mean(m, "response_length"),
    "first_call": lambda m: _spread_mean(m, "first_call"),
    "code_ratio": lambda m: m["behaviour"]["code_ratio"],
    "code_pass_ratio": lambda m: m["behaviour"]["code_pass_ratio"],
    "code_rounds": lambda m: _spread_mean(m, "code_rounds"),
    "code_lines": lambda m: _spread_mean(m, "code_lines"),
    "reward_with_tool": lambda m: m["reward_with_tool"],
    "reward_without_tool": lambda m: m["reward_without_tool"],
    "tokens_a_problem": lambda m: m["tokens_a_problem"],
    "sandbox_s_a_problem": lambda m: m["sandbox_s_a_problem"],
    "late_ratio": lambda m: m["late_ratio"],
    "trivial_code_ratio": lambda m: m["trivial_code_ratio"],
    "void_ratio": lambda m: m["void_ratio"],
}


def scalar(metrics: Mapping[str, Any], name: str) -> float | None:
    """One number of `summarize`, by a name of `SCALARS`, "pass@K" or "maj@K". Raises KeyError for an unknown name."""
    for prefix, curve in (("pass@", "pass"), ("maj@", "majority")):
        if name.startswith(prefix):
            shares: dict[str, float] = {f"{prefix}{row['k']}": row["mean"] for row in metrics[curve]}
            return shares[name]
    return SCALARS[name](metrics)


def _spread_mean(metrics: Mapping[str, Any], name: str) -> float | None:
    row: Mapping[str, float] | None = metrics["behaviour"][name]
    return row["mean"] if row else None
