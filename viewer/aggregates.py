"""What the trajectories of a whole run say together: how the tracker did, what went wrong; summed in SQL."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

from solostream.evaluation.training_curves import sampling_weight
from solostream.viewer.index import Index

POINTS = 120  # of a curve over steps; more steps share a point
KINDS = 6  # errors that get a curve of their own
BINS = 20  # of a histogram over [0, 1]


def tracker(index: Index) -> dict[str, Any] | None:
    """The values that were frozen at dispatch against the rewards that came; None where no trajectory has one.

    calibration: (mean value, mean reward, trajectories) by tenth of the value. brier: mean squared error. variance: of
    the reward, and of the reward minus the value. steps: x, mean value, mean reward, and the share of trajectories
    whose value was within (0.2, 0.8). values, weights, drawn: histograms over [0, 1] of the problems' last values, of
    their sampling weights, and of the values of what was drawn.
    """
    known = "FROM rows WHERE value IS NOT NULL"
    bins = index.select(
        f"SELECT MIN(CAST(value * {BINS} AS INTEGER), {BINS - 1}) AS bin, COUNT(*), SUM(value), SUM(reward), "
        f"SUM(reward * reward), SUM((value - reward) * (value - reward)) {known} GROUP BY bin"
    )
    if not bins:
        return None
    numbers, counts, *sums = zip(*bins, strict=True)
    count = sum(counts)
    value, reward, square, brier = (sum(column) / count for column in sums)
    tenths: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for number, *row in bins:
        tenths[number * 10 // BINS].append(tuple(row))
    by_tenth = [[sum(column) for column in zip(*rows, strict=True)] for _, rows in sorted(tenths.items())]
    width = _width(index)
    steps = index.select(
        f"SELECT step / {width} * {width} AS x, AVG(value), AVG(reward), AVG(value > 0.2 AND value < 0.8) {known} "
        "AND step IS NOT NULL GROUP BY x ORDER BY x"
    )
    last = [v for (v,) in index.select(f"SELECT value FROM rows WHERE id IN (SELECT MAX(id) {known} GROUP BY task)")]
    return {
        "trajectories": count,
        "brier": brier,
        "variance": [square - reward**2, brier - (reward - value) ** 2],
        "calibration": [(v / n, r / n, n) for n, v, r, *_ in by_tenth],
        "steps": [list(column) for column in zip(*steps, strict=True)],
        "values": _histogram(last),
        "weights": _histogram([sampling_weight(min(max(v, 0.0), 1.0)) for v in last]),
        "drawn": [dict(zip(numbers, counts, strict=True)).get(i, 0) for i in range(BINS)],
    }


def errors(index: Index) -> dict[str, Any]:
    """Calls that went wrong, by name: `totals` (most frequent first), and how many a trajectory over steps.

    steps: x and one curve for each of the most frequent names, which `names` lists.
    """
    width = _width(index)
    rows = index.select(
        f"SELECT COALESCE(step, 0) / {width} * {width} AS x, "
        "(SELECT word FROM words WHERE words.id = error_names) AS names, "
        "COUNT(*) FROM rows GROUP BY x, error_names ORDER BY x"
    )
    totals: Counter[str] = Counter()
    at: dict[int, Counter[str]] = defaultdict(Counter)
    trajectories: Counter[int] = Counter()
    for x, names, count in rows:
        trajectories[x] += count
        for name in filter(None, names.split("|")):
            totals[name] += count
            at[x][name] += count
    shown = [name for name, _ in totals.most_common(KINDS)]
    xs = sorted(trajectories)
    return {
        "totals": totals.most_common(),
        "names": shown,
        "steps": [xs, *([at[x][name] / trajectories[x] for x in xs] for name in shown)],
    }


def sources(index: Index) -> list[dict[str, Any]]:
    """By source of the problems: trajectories, mean reward, share with a call, mean position of the first call."""
    rows = index.select(
        "SELECT (SELECT word FROM words WHERE words.id = source) AS name, COUNT(*), AVG(reward), "
        "AVG(first_call IS NOT NULL), AVG(first_call) FROM rows GROUP BY source ORDER BY name"
    )
    keys = ("source", "trajectories", "reward", "code_ratio", "first_call")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _width(index: Index) -> int:
    """Steps that share a point."""
    edges = index.choices()["steps"]
    return max(1, math.ceil((edges[1] - edges[0] + 1) / POINTS)) if edges else 1


def _histogram(values: list[float]) -> list[int]:
    counts = Counter(min(max(int(value * BINS), 0), BINS - 1) for value in values)
    return [counts[i] for i in range(BINS)]
