"""Areas under curves, and intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, stdev

import mpmath


def area(points: Sequence[tuple[float, float]], end: float) -> float:
    """Mean height of the broken line through `points` (x ascending) over [0, end]; after the last one it stays."""
    total, points = 0.0, [*points, (max(end, points[-1][0]), points[-1][1])]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > x0 and x0 < end:
            stop = min(x1, end)
            total += (stop - x0) * (y0 + (y0 + (y1 - y0) * (stop - x0) / (x1 - x0))) / 2
    return total / end


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % t interval); NaN where there are not two values."""
    n = len(values)
    if n < 2:
        return (values[0] if values else float("nan")), float("nan")
    outside = lambda t: mpmath.betainc((n - 1) / 2, 0.5, 0, (n - 1) / (n - 1 + t * t), regularized=True) - 0.05
    return fmean(values), float(mpmath.findroot(outside, (1.9, 13), solver="anderson")) * stdev(values) / n**0.5


def said(values: Sequence[float | None], form: str = ".3f", sign: str = "") -> str:
    """Mean ± half width, for a table."""
    mean, half = interval([x for x in values if x is not None])
    return "–" if mean != mean else f"{mean:{sign}{form}}" + ("" if half != half else f" ± {half:{form}}")
