"""Charts as inline SVG: no library, no script needed to see them, colours from the page's theme.

A chart carries its points in `data-points`, from which the page's script shows values under the pointer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from solostream.viewer.report.page import minus

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 38


@dataclass(frozen=True, slots=True)
class Series:
    """A line. `low` and `high` draw a band; None in `ys` is a gap. colour: 1 … 6 of the theme."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: int = 1
    dots: bool = False


class Axis:
    """Maps [low, high] to pixels, and says where ticks go."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if high <= low:
            low, high = low - 0.5, high + 0.5
        self.low, self.high, self._start, self._end = low, high, start, end

    def __call__(self, value: float) -> float:
        """The pixel of a value, to two decimals."""
        return round(self._start + (value - self.low) / (self.high - self.low) * (self._end - self._start), 2)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values in the range: at most about `most`, at steps of 1, 2, 2.5 or 5 times a power of ten."""
        rough = (self.high - self.low) / most
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough - 1e-12)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def lines(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    low: float | None = None,
    high: float | None = None,
    whole: bool = False,
) -> str:
    """Lines over a common x axis. low, high: fix the ends of the y axis. whole: x takes whole numbers only."""
    xs = [v for s in series for v in s.xs]
    ys = [v for s in series for v in [*s.ys, *(s.low or []), *(s.high or [])] if v is not None]
    if not xs or not ys:
        return _empty(y)
    bottom = min(ys) if low is None else low
    top = max(ys) if high is None else high
    margin = (top - bottom) * 0.06
    across = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = Axis(bottom - (margin if low is None else 0), top + (margin if high is None else 0), HEIGHT - BOTTOM, TOP)
    parts = [_axes(across, up, x, y, whole)]
    for s in series:
        if s.low is not None and s.high is not None:
            edge = [(across(a), up(b)) for a, b in zip(s.xs, s.high, strict=True)]
            edge += [(across(a), up(b)) for a, b in reversed(list(zip(s.xs, s.low, strict=True)))]
            parts.append(f'<polygon class="band c{s.colour}" points="{_points(edge)}"/>')
    for s in series:
        for piece in _pieces(s, across, up):
            parts.append(f'<polyline class="line c{s.colour}" points="{_points(piece)}"/>')
            if s.dots or len(piece) == 1:
                parts += [f'<circle class="dot c{s.colour}" cx="{a}" cy="{b}" r="3"/>' for a, b in piece]
    data = {
        "x": x,
        "series": [[s.name, s.colour, [[across(a), a, b] for a, b in zip(s.xs, s.ys, strict=True)]] for s in series],
    }
    said = "; ".join(f"{s.name} {_ends(s.ys)}" for s in series)
    return _legend(series) + _svg("".join(parts), f"{y} by {x}: {said}", data)


def histogram(
    edges: Sequence[float], counts: Sequence[float], *, x: str, y: str = "trajectories", colour: int = 1
) -> str:
    """Bars between edges."""
    if not counts or not any(counts):
        return _empty(x)
    across = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    up = Axis(0, max(counts) * 1.05, HEIGHT - BOTTOM, TOP)
    bars = []
    for i, count in enumerate(counts):
        left, right, top = across(edges[i]) + 0.5, across(edges[i + 1]) - 0.5, up(count)
        label = f"{_short(edges[i])} – {_short(edges[i + 1])}: {_short(count)}"
        bars.append(
            f'<rect class="bar c{colour}" x="{left}" y="{top}" width="{max(right - left, 0.5):.2f}" '
            f'height="{max(HEIGHT - BOTTOM - top, 0):.2f}" rx="1.5"><title>{escape(label)}</title></rect>'
        )
    whole = all((edge - 0.5) == int(edge - 0.5) for edge in edges)  # one bin a value
    return _svg(_axes(across, up, x, y, whole) + "".join(bars), f"{y} by {x}")


def calibration(bins: Sequence[tuple[float, float, int]]) -> str:
    """What was predicted (mean), what came (mean), and of how many: dots on the diagonal are calibrated."""
    if not bins:
        return _empty("tracked value")
    across, up = Axis(0, 1, LEFT, WIDTH - RIGHT), Axis(0, 1, HEIGHT - BOTTOM, TOP)
    largest = max(n for _, _, n in bins)
    dots = "".join(
        f'<circle class="dot c1" cx="{across(p)}" cy="{up(o)}" r="{3 + 9 * math.sqrt(n / largest):.1f}">'
        f"<title>tracked {p:.3f}, came {o:.3f}, {n} trajectories</title></circle>"
        for p, o, n in bins
    )
    diagonal = f'<line class="guide" x1="{across(0)}" y1="{up(0)}" x2="{across(1)}" y2="{up(1)}"/>'
    return _svg(
        _axes(across, up, "tracked value at dispatch", "mean reward") + diagonal + dots, "calibration of the tracker"
    )


def bars(rows: Sequence[tuple[str, float]], *, unit: str = "", colour: int = 1) -> str:
    """Horizontal bars with their values, as a table."""
    largest = max((value for _, value in rows), default=0)
    body = "".join(
        f'<tr><th>{escape(name)}</th><td class="num">{_short(value)}{unit}</td><td class="track">'
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="bar c{colour}" width="{100 * value / (largest or 1):.2f}" height="10"/></svg></td></tr>'
        for name, value in rows
    )
    return f'<table class="bars">{body}</table>'


def sankey(flow: Mapping[Any, int], names: tuple[str, str], k: int) -> str:
    """Support flow between two policies: solved or not by A on the left, by B on the right."""
    total = sum(flow.values())
    if not total:
        return _empty("support flow")
    left = [flow["preservation"] + flow["shrinkage"], flow["expansion"] + flow["unsolved"]]
    right = [flow["preservation"] + flow["expansion"], flow["shrinkage"] + flow["unsolved"]]
    space, gap, width = 190.0, 24.0, 14
    x0, x1, top = 110, 610, 34

    def size(count: int) -> float:
        return space * count / total

    start = {
        ("l", 0): float(top),
        ("l", 1): top + size(left[0]) + gap,
        ("r", 0): float(top),
        ("r", 1): top + size(right[0]) + gap,
    }
    ribbons = []
    for name, a, b in (("preservation", 0, 0), ("shrinkage", 0, 1), ("expansion", 1, 0), ("unsolved", 1, 1)):
        high = size(flow[name])
        y0, y1 = start["l", a], start["r", b]
        start["l", a], start["r", b] = y0 + high, y1 + high
        if not flow[name]:
            continue
        middle = (x0 + width + x1) / 2
        share = 100 * flow[name] / total
        text = f"{name}: {flow[name]} of {total} problems ({share:.1f} %)"
        ribbons.append(
            f'<path class="flow {name}" d="M{x0 + width},{y0:.1f} C{middle},{y0:.1f} {middle},{y1:.1f} {x1},{y1:.1f} '
            f'V{y1 + high:.1f} C{middle},{y1 + high:.1f} {middle},{y0 + high:.1f} {x0 + width},{y0 + high:.1f} Z">'
            f"<title>{escape(text)}</title></path>"
        )
    nodes = []
    for x, counts, anchor, text_x in ((x0, left, "end", x0 - 10), (x1, right, "start", x1 + width + 10)):
        y = float(top)
        for label, count in zip(("solved", "not solved"), counts, strict=True):
            nodes.append(
                f'<rect class="node" x="{x}" y="{y:.1f}" width="{width}" height="{max(size(count), 1):.1f}" rx="2"/>'
            )
            nodes.append(
                f'<text x="{text_x}" y="{y + size(count) / 2:.1f}" text-anchor="{anchor}" class="label">{label}'
                f'<tspan class="value" x="{text_x}" dy="16">{count}</tspan></text>'
            )
            y += size(count) + gap
    heads = (
        f'<text class="head" x="{x0 + width / 2}" y="16" text-anchor="middle">{escape(names[0])}</text>'
        f'<text class="head" x="{x1 + width / 2}" y="16" text-anchor="middle">{escape(names[1])}</text>'
    )
    return (
        f'<svg class="chart sankey" viewBox="0 0 734 272" role="img" aria-label="Support flow at {k} samples">'
        f"{heads}{''.join(ribbons)}{''.join(nodes)}</svg>"
    )


def _svg(inside: str, label: str, data: Mapping[str, Any] | None = None) -> str:
    points = f" data-points='{escape(json.dumps(data, separators=(',', ':')))}'" if data else ""
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}"'
    return f'<svg class="chart" {box}{points}>{inside}</svg>'


def _axes(across: Axis, up: Axis, x: str, y: str, whole: bool = False) -> str:
    parts = []
    for tick in up.ticks(5):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick)}" y2="{up(tick)}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{up(tick) + 4}" text-anchor="end">{_short(tick)}</text>')
    for tick in across.ticks(7):
        if not whole or tick == int(tick):
            place = f'x="{across(tick)}" y="{HEIGHT - BOTTOM + 16}"'
            parts.append(f'<text class="tick" {place} text-anchor="middle">{_short(tick)}</text>')
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>'
    )
    parts.append(f'<text class="axis" x="13" y="{(TOP + HEIGHT - BOTTOM) / 2}" text-anchor="middle" '
                 f'transform="rotate(-90 13 {(TOP + HEIGHT - BOTTOM) / 2})">{escape(y)}</text>')  # fmt: skip
    return "".join(parts)


def _pieces(s: Series, across: Axis, up: Axis) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(s.xs, s.ys, strict=True):
        if b is None:
            pieces.append([])
        else:
            pieces[-1].append((across(a), up(min(max(b, up.low), up.high))))
    return [piece for piece in pieces if piece]


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a},{b}" for a, b in pairs)


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    return (
        '<div class="legend">'
        + "".join(f'<span><i class="c{s.colour}"></i>{escape(s.name)}</span>' for s in series)
        + "</div>"
    )


def _ends(ys: Sequence[float | None]) -> str:
    known = [y for y in ys if y is not None]
    return f"from {_short(known[0])} to {_short(known[-1])}" if known else "without a value"


def _empty(what: str) -> str:
    return f'<p class="none">No data for {escape(what)}.</p>'


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return minus(f"{value / 1000:,.4g}k")
    if abs(value) < 0.001:
        return minus(f"{value:.1e}")
    return minus(f"{value:,.0f}" if value == int(value) else f"{value:.3g}")
