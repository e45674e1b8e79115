"""The run's plots, drawn from `metrics.jsonl` alone: reward, accuracy, first call, entropy, tracker value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]
INK, LINE, SECOND, GRID = "#22303c", "#2563a6", "#c2571a", "#d9dee3"


def draw(rows: Rows, folder: Path) -> list[Path]:
    """Write one PNG a plot that has data; returns their paths. `rows` are those of `monitor.read`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    steps = [row for row in rows if row["phase"] == "rl"]
    evaluations = [row for row in rows if row["phase"] == "eval"]
    painters: dict[str, Callable[[Any], bool]] = {
        "reward": lambda axes: _reward(axes, steps),
        "accuracy": lambda axes: _accuracy(axes, steps, evaluations),
        "first_call": lambda axes: _first_call(axes, steps),
        "entropy": lambda axes: _entropy(axes, steps),
        "tracker_value": lambda axes: _tracker(axes, steps),
    }
    written = []
    for name, paint in painters.items():
        figure = Figure(figsize=(6.4, 3.8), dpi=130, layout="constrained")
        axes = figure.add_subplot()
        if paint(axes):
            _dress(axes)
            figure.savefig(folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    return written


def _reward(axes: Any, steps: Rows) -> bool:
    axes.set_title("Reward of the training batches")
    axes.set_ylabel("mean reward")
    axes.set_ylim(-0.02, 1.02)
    return _line(axes, steps, "reward/mean", LINE, "batch mean")


def _accuracy(axes: Any, steps: Rows, evaluations: Rows) -> bool:
    axes.set_title("Held-out accuracy")
    axes.set_ylabel("share of problems solved")
    axes.set_ylim(-0.02, 1.02)
    drawn = _line(axes, evaluations, "accuracy", LINE, "sampled", marker="o")
    drawn |= _line(axes, evaluations, "accuracy_greedy", SECOND, "greedy", marker="s")
    if drawn:
        _line(axes, steps, "reward/accuracy", "#9db7d5", "training batches", width=1.0)
    return drawn


def _first_call(axes: Any, steps: Rows) -> bool:
    axes.set_title("When the policy first calls Python")
    axes.set_ylabel("token of the response")
    drawn = _line(axes, steps, "code/first_call_token", LINE, "first call")
    axes.set_ylim(bottom=0)
    return drawn


def _entropy(axes: Any, steps: Rows) -> bool:
    axes.set_title("Entropy of the policy")
    axes.set_ylabel("nats a token")
    drawn = _line(axes, steps, "learner/entropy", LINE, "entropy")
    axes.set_ylim(bottom=0)
    return drawn


def _tracker(axes: Any, steps: Rows) -> bool:
    axes.set_title("What the tracker expects, and what came")
    axes.set_ylabel("success rate")
    axes.set_ylim(-0.02, 1.02)
    drawn = _line(axes, steps, "tracker/value", LINE, "tracked value v of the batch's prompts")
    return drawn and (_line(axes, steps, "reward/mean", SECOND, "their reward", width=1.0) or drawn)


def _line(axes: Any, rows: Rows, key: str, colour: str, label: str, width: float = 1.8, marker: str = "") -> bool:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=width, marker=marker, markersize=5)
    return bool(points)


def _dress(axes: Any) -> None:
    axes.set_xlabel("reinforcement-learning step")
    axes.title.set(size=11, weight="bold", color=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, fontsize=8)
