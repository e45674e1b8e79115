"""The run's plots, drawn from `metrics.jsonl` alone: reward, accuracy, first call, entropy, tracker value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solostream.evaluation import training_curves as curves

Rows = Sequence[Mapping[str, Any]]
INK, LINE, SECOND, PALE, GRID = "#22303c", "#2563a6", "#c2571a", "#9db7d5", "#d9dee3"


@dataclass(frozen=True, slots=True)
class CurveStyle:
    """How a curve is drawn."""

    curve: curves.Curve
    colour: str = LINE
    width: float = 1.8
    marker: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """Drawn when its first line has points. A share's axis goes from 0 to 1, another's from 0."""

    title: str
    unit: str
    lines: tuple[CurveStyle, ...]
    share: bool = False


PLOTS = {
    "reward": Plot("Reward of the training batches", "mean reward", (CurveStyle(curves.REWARD),), share=True),
    "accuracy": Plot(
        "Held-out accuracy",
        "share of problems solved",
        (
            CurveStyle(curves.ACCURACY, marker="o"),
            CurveStyle(curves.ACCURACY_GREEDY, SECOND, marker="s"),
            CurveStyle(curves.TRAIN_ACCURACY, PALE, 1.0),
        ),
        share=True,
    ),
    "first_call": Plot("When the policy first calls Python", "token of the response", (CurveStyle(curves.FIRST_CALL),)),
    "entropy": Plot("Entropy of the policy", "nats a token", (CurveStyle(curves.ENTROPY),)),
    "tracker_value": Plot(
        "What the tracker expects, and what came",
        "success rate",
        (
            CurveStyle(curves.TRACKED_VALUE),
            CurveStyle(curves.REWARD, SECOND, 1.0),
        ),
        share=True,
    ),
}


def draw(rows: Rows, folder: Path) -> list[Path]:
    """Write one PNG a plot that has data; returns their paths. `rows` are those of `metric_logger.read`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in PLOTS.items():
        points = [_points(rows, line.curve) for line in plot.lines]
        if points[0]:
            figure = Figure(figsize=(6.4, 3.8), dpi=130, layout="constrained")
            _paint(figure.add_subplot(), plot, points)
            figure.savefig(folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    return written


def _points(rows: Rows, curve: curves.Curve) -> list[tuple[int, float]]:
    phase = (row for row in rows if row["phase"] == curve.phase)
    return [(row["step"], row[curve.key]) for row in phase if row.get(curve.key) is not None]


def _paint(axes: Any, plot: Plot, points: Sequence[Sequence[tuple[int, float]]]) -> None:
    for line, found in zip(plot.lines, points, strict=True):
        if found:
            look = {"color": line.colour, "linewidth": line.width, "marker": line.marker, "markersize": 5}
            axes.plot(*zip(*found, strict=True), label=line.curve.label, **look)
    axes.set_ylim(*((-0.02, 1.02) if plot.share else (0, None)))
    axes.set_title(plot.title, size=11, weight="bold", color=INK)
    axes.set_xlabel("reinforcement-learning step")
    axes.set_ylabel(plot.unit)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, fontsize=8)
