"""Pages of evaluations: one (`evaluation_page`), and two side by side (`comparison_page`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from solostream.envs.rewards.grading import equivalent
from solostream.evaluation.compare import Comparison, shares
from solostream.evaluation.evaluate import SUMMARY
from solostream.evaluation.metrics import Sample, by_problem, summarize
from solostream.evaluation.samples import read_samples
from solostream.provenance import told
from solostream.viewer.index import Index
from solostream.viewer.report import charts
from solostream.viewer.report.charts import Series
from solostream.viewer.report.page import card, grid, minus, number, page, percent, section, table, tiles
from solostream.viewer.report.transcript import transcripts

BEHAVIOURS = {
    "response_length": ("Response length", "tokens"),
    "first_call": ("First call", "token of the response"),
    "code_rounds": ("Code rounds", "calls a trajectory"),
    "code_lines": ("Code lines", "lines a call"),
}
SHOWN = 20  # problems of which a trajectory is kept in the page


def evaluation_page(folder: Path, index: Index, notes: Sequence[str]) -> str:
    """The page of one evaluation."""
    samples, _ = read_samples(index.path)
    summary = _summary(folder)
    metrics = summarize(samples, equivalent)
    if not summary.get("complete", True):
        notes = [
            *notes,
            f"Not complete: {len(samples):,} of {summary['expected']:,} samples; run the same command again.",
        ]
    problems = sorted(by_problem(samples), key=lambda p: (p.c / p.n, p.task_id))
    listed = [index.task(p.task_id, 1)[0]["id"] for p in problems[:SHOWN]]
    blocks, anchors = transcripts(index, listed)
    rows = [(p.task_id, p.n, p.c, p.c / p.n, float(p.majority(equivalent)[-1]), _tokens(p.samples), _seconds(p.samples))
            for p in problems]  # fmt: skip
    heads = ("problem", "samples", "solved", "share", "majority", "tokens", "sandbox s")
    both = [("pass@k", metrics["pass"]), ("maj@k", metrics["majority"])]
    config = summary.get("config", {})
    facts = [f"{metrics['samples']:,} samples of {metrics['problems']:,} problems"]
    facts += [f"{name} {config[name]}" for name in ("model", "temperature", "top_p", "top_k") if name in config]
    average = metrics["avg"]
    verdict = (
        f"Solves {percent(average['mean'])} of {metrics['problems']:,} problems "
        f"(95 % from {percent(average['low'])} to {percent(average['high'])}), over {metrics['samples']:,} samples."
    )
    sections = [
        f'<p class="verdict">{verdict}</p>',
        section("At a glance", tiles(_headline(metrics))),
        section("Accuracy", grid([card("pass@k and maj@k", _curves(both)), *_tool_cards(metrics)])),
        section("Tool use", grid(_distributions(metrics)), note="The behaviours of ASPO, Fig. 6."),
        section("Problems", card("Hardest first", table(heads, rows, anchors), wide=True)),
        section(
            "Trajectories", blocks, note="The first sample of each of the hardest problems; solostream view shows all."
        ),
    ]
    return page(folder.resolve().name, " · ".join(facts), sections, notes, [told(folder)])


def comparison_page(found: Comparison, made: Sequence[str] = ()) -> str:
    """The page of `solostream compare`. made: what made each of the two (see `page`)."""
    a, b = found.names
    difference, mcnemar = found.difference, found.mcnemar
    verdict = "a clear difference" if difference["p"] < 0.05 else "no clear difference"
    notes = []
    if found.only_a or found.only_b:
        notes.append(f"Left out: {found.only_a} problems only in {a}, {found.only_b} only in {b}.")
    if found.damaged:
        notes.append(f"{found.damaged} damaged lines were left out.")
    flow = "".join(
        f'<tr><td class="flows"><i class="pill {name}"></i> {name}</td><td class="num">{count}</td>'
        f'<td class="num">{percent(share)}</td></tr>'
        for name, count, share in shares(found.flow)
    )
    rows = [(r.task_id, f"{r.c_a} / {r.n_a}", f"{r.c_b} / {r.n_b}", r.difference, r.flow)
            for r in sorted(found.rows, key=lambda r: r.difference)]  # fmt: skip
    diagram = charts.sankey(found.flow, found.names, found.k) + f'<table class="data">{flow}</table>'

    def points(end: str) -> str:
        return minus(f"{100 * difference[end]:+.1f}")

    interval = f"95 % from {points('low')} to {points('high')}"
    facts = [
        (f"avg, {b} − {a}", points("mean"), f"points; {interval}"),
        ("Permutation test", f"p {_p(difference['p'])}", f"paired by problem: {verdict}"),
        (
            f"McNemar at k = {found.k}",
            f"p {_p(mcnemar['p'])}",
            f"{mcnemar['only_b']} gained, {mcnemar['only_a']} lost",
        ),
        ("Problems", f"{len(found.rows):,}", "in both runs"),
    ]
    sections = [
        section("At a glance", tiles(facts)),
        section("Accuracy", grid([card("pass@k", _curves(list(zip(found.names, found.curves, strict=True)))),
                                  card("Side by side", _side_by_side(found))])),
        section("Support flow", card(f"Solved within {found.k} samples", diagram),
                note="Expansion: only the second run solves it. Shrinkage: only the first does. (ASPO, Sec. 4.2)"),
        section("Problems", card("Largest loss first", table(("problem", a, b, "difference", "flow"), rows))),
    ]  # fmt: skip
    return page(f"{a} → {b}", f"{len(found.rows):,} problems in common", sections, notes, made)


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # an evaluation that was killed, or samples from elsewhere
        return {}
    return found


def _headline(metrics: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    for name, key in (("avg@k", "avg"), ("maj@k", "maj")):
        row = metrics[key]
        yield name, percent(row["mean"]), f"95 % from {percent(row['low'])} to {percent(row['high'])}"
    last = metrics["pass"][-1]
    yield f"pass@{last['k']}", percent(last["mean"]), f"95 % from {percent(last['low'])} to {percent(last['high'])}"
    six = metrics["behaviour"]
    yield "Uses code", percent(six["code_ratio"]), "of the trajectories"
    yield "Calls that pass", percent(six["code_pass_ratio"]), "ended without an error"
    yield (
        "Tokens a problem",
        number(metrics["tokens_a_problem"], 0),
        f"{metrics['sandbox_s_a_problem']:.2f} s in the sandbox",
    )


def _curves(curves: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> str:
    series = [
        Series(name, [r["k"] for r in rows], [r["mean"] for r in rows], [r["low"] for r in rows],
               [r["high"] for r in rows], colour=i + 1, dots=len(rows) < 12)
        for i, (name, rows) in enumerate(curves)
    ]  # fmt: skip
    return charts.lines(series, x="k", y="share of problems", low=0, high=1, whole=True)


def _tool_cards(metrics: Mapping[str, Any]) -> Iterable[str]:
    both = {"with code": metrics["reward_with_tool"], "without": metrics["reward_without_tool"]}
    reward = [(name, value) for name, value in both.items() if value is not None]
    yield card("Mean reward", charts.bars(reward))
    errors = list(metrics["errors"].items())
    yield card("Calls that went wrong", charts.bars(errors[:12], colour=2) if errors else '<p class="none">None.</p>')
    guards = {"late calls": "late_ratio", "trivial code": "trivial_code_ratio", "void turns": "void_ratio"}
    yield card(
        "Guards",
        charts.bars([(name, 100 * (metrics[key] or 0)) for name, key in guards.items()], unit=" %"),
        note=_GUARDS,
    )


_GUARDS = (
    "Shares of the trajectories (trivial code: of those with code). Late: a call after an output had shown the answer. "
    "Trivial: no call both computed something and was used."
)


def _distributions(metrics: Mapping[str, Any]) -> Iterable[str]:
    for key, (title, unit) in BEHAVIOURS.items():
        row = metrics["behaviour"][key]
        if row is None:
            yield card(title, '<p class="none">No calls.</p>')
            continue
        note = f"mean {number(row['mean'], 1)} · median {number(row['p50'], 1)} · 90 % below {number(row['p90'], 1)}"
        what = "calls" if key == "code_lines" else "trajectories"
        yield card(title, charts.histogram(row["edges"], row["counts"], x=unit, y=what), note=note)


def _side_by_side(found: Comparison) -> str:
    names = {
        "avg": "avg@k", "maj": "maj@k", "code_ratio": "uses code", "code_pass_ratio": "calls that pass",
        "first_call": "first call (token)", "code_rounds": "calls a trajectory", "code_lines": "lines a call",
        "response_length": "response (tokens)", "sandbox_s_a_problem": "sandbox s a problem",
        "trivial_code_ratio": "trivial code", "late_ratio": "late calls",
    }  # fmt: skip
    rows = [(title, *found.scalar(key)) for key, title in names.items()]
    return table(("", *found.names), rows)


def _tokens(samples: Sequence[Sample]) -> float:
    return sum(s.behaviour.action_tokens for s in samples) / len(samples)


def _seconds(samples: Sequence[Sample]) -> float:
    return sum(s.behaviour.sandbox_s for s in samples) / len(samples)


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"
