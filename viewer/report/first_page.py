"""The part of a training report that is read: the verdict, before → after, how it was made, four pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from solostream.evaluation import training_curves as curves
from solostream.provenance import told
from solostream.viewer import overview
from solostream.viewer.metric_columns import Columns, RunMetrics
from solostream.viewer.report import charts
from solostream.viewer.report.charts import Series
from solostream.viewer.report.page import card, grid, minus, number, percent, table

Row = Mapping[str, Any]


def verdict(rows: Sequence[Row], metrics: RunMetrics) -> str:
    """What training did to the held-out problems, in one sentence; HTML. rows: of `overview.before_and_after`."""
    row = next((row for row in rows if row["change"] is not None), None)
    if row is None:
        text = "Held-out accuracy was not measured twice: nothing can be said of what training did to it."
        return f'<p class="verdict">{text}</p>'
    steps = int(metrics.phases()["eval"].last("step") or 0)
    interval, clear = "", ""
    if row["change_low"] is not None:
        interval = minus(f", 95 % from {100 * row['change_low']:+.1f} to {100 * row['change_high']:+.1f}")
        interval += f", paired over {row['paired']:,} problems" if row["paired"] else ""
        # Zero inside the interval: training may have done nothing.
        clear = " A clear difference." if row["change_low"] * row["change_high"] > 0 else " Not a clear difference."
    text = (
        f"Held-out accuracy went from {percent(row['before'])} to {percent(row['after'])} in {steps:,} steps "
        f"({minus(format(100 * row['change'], '+.1f'))} points{interval}).{clear}"
    )
    return f'<p class="verdict">{escape(text)}</p>'


def before_and_after(rows: Sequence[Row]) -> str:
    """The held-out table, with the intervals that were written."""
    made = [
        (f"{row['label']}{_in(row['unit'])}", _value(row, "before"), _value(row, "after"), _change(row)) for row in rows
    ]
    return table(("held-out problems", "before", "after", "change"), made) if made else ""


def settings(folder: Path) -> str:
    """How the run was made: model, data, algorithm, learner, seed, time, versions, machine."""
    tree, summary = overview.configuration(folder), overview.read_json(folder / "summary.json")
    flat = overview.flat(tree)
    run, algorithm = tree.get("run", {}), tree.get("algorithm", {})
    data = flat.get("data.path") or flat.get("env.id")
    sizes = [f"{flat[key]:,} {name}" for key, name in (("data.train", "train"), ("data.test", "held out"))
             if isinstance(flat.get(key), int)]  # fmt: skip
    learner = [f"{name} {flat[f'learner.{name}']}" for name in ("optimizer", "lr", "schedule", "loss")
               if f"learner.{name}" in flat]  # fmt: skip
    times = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in summary.get("times", {}).items())
    wall, batch = summary.get("wall_s"), flat.get("rollout.batch")
    facts = [
        ("Model", flat.get("model.path")),
        ("Data", " · ".join(filter(None, (data, ", ".join(sizes))))),
        ("Algorithm", " + ".join([algorithm.get("advantage", ""), *algorithm.get("stages", [])])),
        ("Learner", ", ".join(learner)),
        ("Batch", batch and f"{batch} trajectories, {flat.get('rollout.mode', 'async')}"),
        ("Steps", run.get("steps")),
        ("Seed", run.get("seed", summary.get("seed"))),
        ("Engine", run.get("engine")),
        ("Cost", summary.get("cost") and f"{summary['cost']:,.2f} at {flat.get('run.price_per_hour'):g} an hour"),
        ("Wall time", None if wall is None else f"{wall:,.0f} s ({times})"),
        ("Made with", told(folder)),
    ]
    rows = "".join(
        f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in facts if value not in (None, "")
    )
    return f'<table class="facts">{rows}</table>'


def pictures(metrics: RunMetrics, reward: Series, first_call: Series, calibration: str) -> str:
    """Held-out accuracy, reward, first call, and how well the tracker knew; what a run did not write is left out."""
    evaluated = metrics.phases().get("eval", Columns())
    held_out = [
        series for i, curve in enumerate((curves.ACCURACY, curves.ACCURACY_GREEDY))
        if (series := _held_out(evaluated, curve, i + 1)) is not None
    ]  # fmt: skip
    made = []
    if held_out:
        note = f"Measured {evaluated.length} times" + (", with 95 % intervals." if held_out[0].low else ".")
        drawn = charts.lines(held_out, x="step", y="share of problems", low=0, high=1, whole=True)
        made.append(card("Held-out accuracy", drawn, note=note))
    made.append(
        card("Reward of the trajectories", charts.lines([reward], x="step", y="mean reward", low=0, whole=True))
    )
    if any(y is not None for y in first_call.ys):
        drawn = charts.lines([first_call], x="step", y="token of the response", low=0, whole=True)
        made.append(card("When the policy first calls Python", drawn))
    made.append(calibration)
    return grid(made)


def _held_out(evaluated: Columns, curve: curves.Curve, colour: int) -> Series | None:
    """Dots at what was measured; the band is the interval where all of it was written."""
    known = [
        (x, y) for x, y in zip(evaluated.column("step"), evaluated.column(curve.key), strict=True) if y is not None
    ]
    if not known:
        return None
    low, high = ([v for v in evaluated.column(f"{curve.key}_{end}") if v is not None] for end in ("low", "high"))
    banded = len(low) == len(high) == len(known)
    xs, ys = [x or 0.0 for x, _ in known], [y for _, y in known]
    return Series(curve.label, xs, ys, low if banded else None, high if banded else None, colour, dots=True)


def _in(unit: str) -> str:
    return f", {unit}" if unit and unit != "%" else ""


def _value(row: Row, when: str) -> str:
    show = percent if row["unit"] == "%" else lambda value: number(value, 2)
    low, high = row[f"{when}_low"], row[f"{when}_high"]
    return show(row[when]) + ("" if None in (low, high) else f" ({show(low)} – {show(high)})")


def _change(row: Row) -> str:
    if row["change"] is None:
        return "–"
    times, digits, unit = (100, 1, " points") if row["unit"] == "%" else (1, 2, "")
    change, low, high = (None if x is None else minus(f"{times * x:+.{digits}f}") for x in _ends(row))
    return f"{change}{unit}" + ("" if low is None else f" ({low} – {high})")


def _ends(row: Row) -> tuple[float | None, ...]:
    return tuple(row[f"change{end}"] for end in ("", "_low", "_high"))


def folded(title: str, inside: Iterable[str] | str, note: str = "") -> str:
    """A part that opens on a click. `inside` is HTML, `note` is text."""
    about = f"<p>{escape(note)}</p>" if note else ""
    body = inside if isinstance(inside, str) else grid(inside)
    return f'<details class="part"><summary><h2>{escape(title)}</h2></summary>{about}{body}</details>\n'
