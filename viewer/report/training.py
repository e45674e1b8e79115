"""`report.html` of a training run: what happened to the policy, what the tracker knew, which problems moved.

Tool use over steps is computed from the trajectories themselves, so it needs no metric of the trainer; everything in
metrics.jsonl is drawn as well. Evaluations have their own page (`solostream.viewer.report.evaluation`).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from solostream.agent.trajectory_file import find_file
from solostream.errors import UserError
from solostream.evaluation import training_curves as curves
from solostream.evaluation.metrics import mean_of, spread
from solostream.evaluation.training_curves import Curve
from solostream.provenance import told
from solostream.viewer import overview
from solostream.viewer.index import Index
from solostream.viewer.metric_columns import RunMetrics
from solostream.viewer.report import charts, first_page
from solostream.viewer.report.charts import Series
from solostream.viewer.report.evaluation import evaluation_page
from solostream.viewer.report.first_page import folded
from solostream.viewer.report.page import card, minus, page, percent, section, table, tiles
from solostream.viewer.report.transcript import transcripts

LISTED = 12  # problems in each table


@dataclass(frozen=True, slots=True)
class Seen:
    """One indexed trajectory, as far as a report looks at it. The fields are columns of the index."""

    id: int
    task_id: str
    step: int
    reward: float
    value: float | None
    response_length: int
    first_call: int | None
    calls: int
    passed: int
    code_lines: int
    void: int
    late_calls: int
    sandbox_s: float


@dataclass(slots=True)
class Attempts:
    """All that a run saw of one problem, in order."""

    task_id: str
    seen: list[Seen] = field(default_factory=list)

    @property
    def reward(self) -> float:
        """Mean reward of all attempts."""
        return fmean(s.reward for s in self.seen)

    @property
    def gain(self) -> float:
        """Mean reward of the later half minus that of the earlier half."""
        half = len(self.seen) // 2
        return fmean(s.reward for s in self.seen[-half:]) - fmean(s.reward for s in self.seen[:half]) if half else 0.0

    @property
    def sandbox_s(self) -> float:
        """Mean seconds in the sandbox of an attempt."""
        return fmean(s.sandbox_s for s in self.seen)


def write_report(place: Path, out: Path | None = None) -> Path:
    """Write the page of a run or an evaluation; its path (default: report.html in the folder). Raises UserError."""
    path = find_file(place)
    folder = path.parent
    out = out or folder / "report.html"
    index = Index(path)
    while index.refresh():
        pass
    status = index.status()
    if not status["rows"]:
        why = (
            f"{status['damaged']} damaged lines, the first: {status['damage'][0][1]}"
            if status["damaged"]
            else "it is empty"
        )
        raise UserError(f"{path} has no complete trajectory: {why}")
    damage = [f"line {number}: {why}" for number, why in status["damage"][:3]]
    notes = [f"{status['damaged']} damaged lines were left out ({'; '.join(damage)})"] if damage else []
    make = evaluation_page if path.name == "samples.jsonl" else training_page
    out.write_text(make(folder, index, notes), encoding="utf-8")
    return out


def training_page(folder: Path, index: Index, notes: Sequence[str]) -> str:
    """The page of a training run."""
    seen = [Seen(*row) for row in index.scan(Seen.__slots__)]
    problems: dict[str, Attempts] = {}
    for one in seen:
        problems.setdefault(one.task_id, Attempts(one.task_id)).seen.append(one)
    rows, metrics = read_metrics(folder / "metrics.jsonl"), RunMetrics(folder / "metrics.jsonl")
    held_out = overview.before_and_after(metrics, folder)
    xs, groups = _by_step(seen)
    reward = Series("trajectories", xs, [fmean(s.reward for s in g) for g in groups])
    first_call = Series("first call", xs, [_first_call(g) for g in groups])
    tracker = list(_tracker(seen))
    listed = {title: pick(list(problems.values())) for title, (pick, _) in _TABLES.items()}
    blocks, anchors = transcripts(index, [a.seen[-1].id for chosen in listed.values() for a in chosen])
    steps = len({s.step for s in seen})
    sections = [
        first_page.verdict(held_out, metrics),
        section("Before and after", card("", first_page.before_and_after(held_out))) if held_out else "",
        section("How it went", first_page.pictures(metrics, reward, first_call, tracker[0])),
        section("How it was made", card("", first_page.settings(folder))),
        section("Training, first tenth to last", tiles(_headline(seen, problems))),
        folded("Training", _training(rows), note="As the trainer logged it."),
        folded("Tool use over steps", _behaviour(seen), note=_BEHAVIOUR_NOTE),
        folded("Tracker", tracker, note=_TRACKER_NOTE),
        folded("Problems", [_problem_card(t, listed[t], anchors) for t in _TABLES],
               note="Names lead to the latest attempt, at the end of this page."),
        folded("All metrics", _everything(rows)) if rows else "",
        folded("Trajectories", blocks, note="The latest attempt at each problem listed; solostream view shows all."),
    ]  # fmt: skip
    over = "1 step" if steps == 1 else f"{steps:,} steps"
    subtitle = f"{len(seen):,} trajectories of {len(problems):,} problems over {over} · {folder}"
    return page(folder.resolve().name, subtitle, sections, notes, [told(folder)])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; no file, no rows; damaged lines (the last is often half-written) are skipped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


_BEHAVIOUR_NOTE = (
    "From the trajectories. A step is the policy version that dispatched them. Behaviours are those of ASPO, Fig. 6."
)
_TRACKER_NOTE = (
    "The value that was frozen when a trajectory was dispatched, against the reward that came. Dots on the diagonal: "
    "the tracker knew. Sampling weights are √(v(1 − v)) + 0.05 of the last value of each problem."
)


# A card each: title -> (unit, its curves)
_CARDS: Mapping[str, tuple[str, tuple[Curve, ...]]] = {
    "Entropy": ("nats a token", (curves.ENTROPY,)),
    "Loss": ("loss", (curves.LOSS,)),
    "Clipped tokens": ("share of action tokens", (curves.CLIPPED_LOW, curves.CLIPPED_HIGH)),
    "Advantages near zero": ("share of trajectories", (curves.NEAR_ZERO,)),
    "Sampler against learner": ("nats", (curves.MISMATCH,)),
    "Staleness": ("policy versions", (curves.STALENESS,)),
    "Speed": ("tokens a second", (curves.SPEED,)),
}


def _headline(seen: Sequence[Seen], problems: Mapping[str, Attempts]) -> Iterable[tuple[str, str, str]]:
    tenth = max(len(seen) // 10, 1)
    first, last = seen[:tenth], seen[-tenth:]

    def change(name: str, of: Any, show: Any = percent) -> tuple[str, str, str]:
        before, after = of(first), of(last)
        return name, show(after), f"{show(before)} at the start"

    plain = lambda v: "–" if v is None else minus(f"{v:,.1f}")
    yield change("Reward, last tenth", lambda s: fmean(x.reward for x in s))
    yield change("Uses code", lambda s: fmean(x.first_call is not None for x in s))
    yield change("First call, token", lambda s: mean_of([x.first_call for x in s if x.first_call is not None]), plain)
    yield change("Calls that pass", lambda s: _ratio(sum(x.passed for x in s), sum(x.calls for x in s)))
    yield change("Response, tokens", lambda s: fmean(x.response_length for x in s), plain)
    yield "Problems", f"{len(problems):,}", f"{len(seen) / len(problems):.1f} attempts each"


def _training(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for title, (unit, wanted) in _CARDS.items():
        if found := _logged(rows, *wanted):
            yield card(title, charts.lines(found, x="step", y=unit, whole=True))
    if cold := _logged(rows, curves.COLD_START):
        yield card("Cold start", charts.lines(cold, x="step", y="negative log-likelihood", low=0, whole=True))


def _behaviour(seen: Sequence[Seen]) -> Iterable[str]:
    xs, groups = _by_step(seen)

    def called(group: Sequence[Seen]) -> list[Seen]:
        return [s for s in group if s.first_call is not None]

    behaviours: dict[str, tuple[str, Callable[[list[Seen]], float | None], float | None]] = {
        "Response length": ("tokens", lambda g: fmean(s.response_length for s in g), None),
        "First call": ("token of the response", _first_call, None),
        "Code ratio": ("share of trajectories", lambda g: len(called(g)) / len(g), 1),
        "Code pass ratio": ("share of calls", lambda g: _ratio(sum(s.passed for s in g), sum(s.calls for s in g)), 1),
        "Code rounds": ("calls a trajectory", lambda g: fmean(s.calls for s in g), None),
        "Code lines": ("lines a call", lambda g: _ratio(sum(s.code_lines for s in g), sum(s.calls for s in g)), None),
    }
    for title, (unit, of, high) in behaviours.items():
        yield card(title, charts.lines([Series(title, xs, [of(g) for g in groups])], x="step", y=unit, low=0, high=high,
                                       whole=True))  # fmt: skip
    void = Series("void turn", xs, [fmean(bool(s.void) for s in g) for g in groups])
    late = Series("call after the answer was known", xs, [fmean(s.late_calls > 0 for s in g) for g in groups], colour=2)
    yield card(
        "Void turns and late calls", charts.lines([void, late], x="step", y="share of trajectories", low=0, whole=True)
    )
    with_tool = Series("with code", xs, [mean_of([s.reward for s in called(g)]) for g in groups])
    without = Series("without", xs, [mean_of([s.reward for s in g if s.first_call is None]) for g in groups], colour=2)
    yield card("Reward with and without code",
               charts.lines([with_tool, without], x="step", y="mean reward", low=0, high=1, whole=True))  # fmt: skip


def _first_call(group: Sequence[Seen]) -> float | None:
    return mean_of([s.first_call for s in group if s.first_call is not None])


def _tracker(seen: Sequence[Seen]) -> Iterable[str]:
    known = [(s.value, s.reward) for s in seen if s.value is not None]
    if not known:
        yield card("No tracker", '<p class="none">These trajectories carry no tracked value.</p>')
        return
    bins: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for value, reward in known:
        bins[min(int(value * 10), 9)].append((value, reward))
    dots = [(fmean(v for v, _ in b), fmean(r for _, r in b), len(b)) for _, b in sorted(bins.items())]
    brier = fmean((v - r) ** 2 for v, r in known)
    yield card(
        "Calibration",
        charts.calibration(dots),
        note=f"Mean squared error {brier:.4f} over {len(known):,} trajectories.",
    )
    last = {s.task_id: s.value for s in seen if s.value is not None}
    for title, values, x in (
        ("Values", list(last.values()), "tracked value"),
        ("Sampling weights", [curves.sampling_weight(v) for v in last.values()], "√(v(1 − v)) + ε"),
    ):
        row = spread(values)
        if row:
            yield card(
                title,
                charts.histogram(row["edges"], row["counts"], x=x, y="problems"),
                note="Last value of each problem.",
            )
    rewards, left = fmean(r for _, r in known), fmean(abs(r - v) <= 0.02 for v, r in known)
    raw = fmean((r - rewards) ** 2 for _, r in known)
    surprise = fmean(r - v for v, r in known)
    rest = fmean((r - v - surprise) ** 2 for v, r in known)
    variances = charts.bars([("variance of the reward", raw), ("variance of reward − v", rest)])
    near = f"{percent(left)} of the trajectories had an advantage within ±0.02 of zero."
    yield card("What the baseline takes away", variances, note=near)


def _hardest(problems: list[Attempts]) -> list[Attempts]:
    return sorted((p for p in problems if len(p.seen) > 1), key=lambda p: (p.reward, -len(p.seen)))[:LISTED]


def _most_improved(problems: list[Attempts]) -> list[Attempts]:
    return sorted((p for p in problems if len(p.seen) > 3), key=lambda p: -p.gain)[:LISTED]


def _slowest(problems: list[Attempts]) -> list[Attempts]:
    return sorted(problems, key=lambda p: -p.sandbox_s)[:LISTED]


_TABLES: Mapping[str, tuple[Any, tuple[str, Any]]] = {
    "Most wrong": (_hardest, ("response", lambda p: fmean(s.response_length for s in p.seen))),
    "Most improved": (_most_improved, ("gain", lambda p: p.gain)),
    "Slowest code": (_slowest, ("sandbox s", lambda p: p.sandbox_s)),
}


def _problem_card(title: str, chosen: Sequence[Attempts], anchors: dict[str, str]) -> str:
    head, of = _TABLES[title][1]
    rows = [(p.task_id, len(p.seen), p.reward, of(p)) for p in chosen]
    return card(title, table(("problem", "attempts", "reward", head), rows, anchors))


def _logged(rows: Sequence[Mapping[str, Any]], *wanted: Curve, colour: int = 1) -> list[Series]:
    """The curves that the run logged, coloured from `colour` on."""
    found = (_series(rows, c.phase, c.key, c.label, colour + i) for i, c in enumerate(wanted))
    return [series for series in found if series is not None]


def _everything(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    names = sorted(
        {(row.get("phase", ""), key) for row in rows for key in row} - {(row.get("phase", ""), "phase") for row in rows}
    )
    for phase, key in names:
        found = None if key in ("step", "time") else _series(rows, phase, key, key, 1)
        if found and len(found.xs) > 1:
            yield card(
                f"{phase} · {key}" if phase else key, charts.lines([found], x="step", y=curves.unit(key), whole=True)
            )


def _series(rows: Sequence[Mapping[str, Any]], phase: str, key: str, name: str, colour: int) -> Series | None:
    """One metric over steps; None when it was never logged. Long runs are thinned to about 600 points by averaging."""
    points = [(r["step"], r[key]) for r in rows if r.get("phase", "") == phase and isinstance(r.get(key), (int, float))]
    if not points:
        return None
    width = max(1, len(points) // 600)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return Series(
        name, [g[0][0] for g in groups], [fmean(y for _, y in g) for g in groups], colour=colour, dots=len(points) < 8
    )


def _by_step(seen: Sequence[Seen]) -> tuple[list[int], list[list[Seen]]]:
    """Trajectories by step; neighbouring steps share a point when there are more than 200."""
    groups: dict[int, list[Seen]] = defaultdict(list)
    steps = sorted({s.step for s in seen})
    width = max(1, math.ceil(len(steps) / 200))
    first = {step: steps[i - i % width] for i, step in enumerate(steps)}
    for one in seen:
        groups[first[one.step]].append(one)
    xs = sorted(groups)
    return xs, [groups[x] for x in xs]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
