"""The tables and bars of docs/evidence.md, from what cells there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from .cells import Cells
from .methods import METHODS
from .statistics import area, interval, said

Runs = dict[str, dict[int, dict[str, float]]]  # method -> seed -> scores


def write(cells: Cells) -> str:
    lines: list[str] = []
    kinds = defaultdict(list)
    for key, found in cells.everything():
        kinds[key[0]].append((key[1:], found))
    for population, runs in sorted(_table(kinds["table"], kinds["table rate"]).items()):
        lines += [f"### Table policy, {population}", "", *_curves(runs), "", *_all_bars(population, runs)]
    for population, noises in sorted(_noises(kinds["noise"]).items()):
        lines += [f"### Gradient noise against the batch mean's, {population}", "", *noises, ""]
    for population, runs in sorted(_model(kinds["model"], kinds["model rate"], kinds["model passes"]).items()):
        lines += [f"### Model, {population}", "", *_curves(runs), "", *_all_bars(population, runs)]
    return "\n".join(lines)


def scores(found: Mapping[str, Any], end: int) -> dict[str, float]:
    """Of one run: areas over [0, end] and last values; what it does not have is left out."""
    episodes = found["episodes"]
    last = {
        name: found[name][-1] for name in ("sampled", "greedy", "pass8", "entropy", "value_error") if found.get(name)
    }
    wide = {
        f"{name} area": area(list(zip(episodes, found[name], strict=True)), end)
        for name in ("sampled", "greedy")
        if found.get(name)
    }
    means = {"no signal": "no_signal", "calibration": "calibration"}
    signal = {name: fmean(found[key]) for name, key in means.items() if found.get(key)}
    first = {"first call": found["first_call"]} if found.get("first_call") is not None else {}
    return {**wide, **last, **signal, **first}


def _table(curves: Iterable[Any], rates: Iterable[Any]) -> dict[str, Runs]:
    best = {(population, method): rate for (population, method, *_), rate in rates}
    budgets: dict[str, int] = defaultdict(int)
    for (population, _, _, _, budget), _ in curves:
        budgets[population] = max(budgets[population], budget)
    made: dict[str, Runs] = defaultdict(lambda: defaultdict(dict))
    for (population, method, rate, seed, budget), found in curves:
        if rate == best.get((population, method)) and seed < 100 and budget == budgets[population]:
            made[population][method][seed] = {**scores(found, budget), "rate": rate}
    return made


def _model(runs: Iterable[Any], rates: Iterable[Any], passes: Iterable[Any] = ()) -> dict[str, Runs]:
    """Runs at each method's best rate of the most that were tried."""
    passed = {tuple(key): found for key, found in passes}
    best: dict[tuple[str, str], float] = {}
    for (population, method, *_), rate in sorted(rates, key=lambda cell: len(cell[0][2])):
        best[population, method] = rate
    made: dict[str, Runs] = defaultdict(lambda: defaultdict(dict))
    chosen: dict[tuple[str, int], dict[str, Any]] = defaultdict(dict)
    for (population, method, rate, seed, steps), found in runs:
        if rate == best.get((population, method)) and seed < 100:
            chosen[population, seed][method] = found
            made[population][method][seed] = {**scores(found, found["episodes"][-1]), "rate": rate, "steps": steps}
            if own := passed.get((population, method, rate, seed, steps)):
                made[population][method][seed] |= {f"pass@{k}": mean for k, mean in own.items() if k != "1"}
    for (population, seed), curves in chosen.items():
        end = min(found["tokens"][-1] for found in curves.values())  # what every method has spent
        for method, found in curves.items():
            points = list(zip(found["tokens"], found["sampled"], strict=True))
            made[population][method][seed] |= {"area, equal tokens": area(points, end), "tokens": found["tokens"][-1]}
    return made


COLUMNS = (
    "sampled area", "greedy area", "area, equal tokens", "sampled", "greedy", "pass8", "entropy", "value_error",
    "pass@8", "calibration", "no signal", "first call", "tokens",
)  # fmt: skip


def _curves(runs: Runs) -> list[str]:
    shown = [name for name in COLUMNS if any(name in s for group in runs.values() for s in group.values())]
    lines = _header(["method", "lr", "seeds", *shown])
    order = sorted(runs, key=lambda m: -fmean(s["sampled area"] for s in runs[m].values()))
    for method in order:
        group = list(runs[method].values())
        cells = [said([s.get(name) for s in group], ".0f" if name == "tokens" else ".3f") for name in shown]
        lines.append(_row([_title(method), f"{group[0]['rate']:g}", str(len(group)), *cells]))
    return lines


def _all_bars(population: str, runs: Runs) -> list[str]:
    """Of the single stream that is recommended, with and without its weight on wrong answers."""
    return [line for one in ("ours", "ours_negative") if one in runs for line in (*_bars(population, runs, one), "")]


def _bars(population: str, runs: Runs, one: str) -> list[str]:
    against = [m for m in runs if m in METHODS and METHODS[m].baseline]
    lines = _header([f"{_title(one)} −", "sampled area", "greedy area"])
    for method in [*against, *(m for m in runs if m not in against and m != one)]:
        cells = [said(_differences(runs, one, method, name), sign="+") for name in ("sampled area", "greedy area")]
        lines.append(_row([_title(method), *cells]))
    lines.append("")
    for method, wanted in _wanted(population, runs, against):
        mean, half = interval(_differences(runs, one, method, "sampled area"))
        low, high = mean - half, mean + half
        met = low > 0 if wanted == "above 0" else high >= 0
        lines.append(_bar(met, f"{_title(one)} − {_title(method)} {wanted} ({mean:+.3f}, [{low:+.3f}, {high:+.3f}])"))
    if "no signal" in next(iter(runs[one].values())) and "grpo" in runs:
        own, other = (fmean(s["no signal"] for s in runs[m].values()) for m in (one, "grpo"))
        lines.append(_bar(own < other / 2, f"share without signal {own:.3f}, under half of GRPO's {other:.3f}"))
    return lines


def _wanted(population: str, runs: Runs, against: Sequence[str]) -> list[tuple[str, str]]:
    if population == "mixed":
        wanted = [("grpo", "above 0"), ("batch", "above 0"), ("none", "not below 0")]
        return [(m, how) for m, how in wanted if m in runs]
    best = max(against, key=lambda m: fmean(s["sampled area"] for s in runs[m].values()), default=None)
    return [(best, "not below 0")] if best else []


def _differences(runs: Runs, one: str, other: str, name: str) -> list[float]:
    """Seed by seed, where both have a number."""
    a, b = runs[one], runs[other]
    return [a[seed][name] - b[seed][name] for seed in a.keys() & b.keys() if name in a[seed] and name in b[seed]]


def _noises(found: Iterable[Any]) -> dict[str, list[str]]:
    seeds: dict[str, list[Mapping[str, list[float]]]] = defaultdict(list)
    looks: dict[str, list[int]] = {}
    for (population, _, checkpoints, _), noises in found:
        seeds[population].append(noises)
        looks[population] = checkpoints
    made = {}
    for population, noises in seeds.items():
        lines = _header(["method", *(f"step {c}" for c in looks[population])])
        means: dict[str, list[float]] = {}
        for method in dict.fromkeys(name for one in noises for name in one):
            own = [one for one in noises if method in one]
            ratios = [[n[method][c] / n["batch"][c] for n in own] for c in range(len(looks[population]))]
            lines.append(_row([_title(method), *(said(r, ".2f") for r in ratios)]))
            means[method] = [fmean(r) for r in ratios]
        if "ours" in means:
            worst = max(means["ours"])
            lines += ["", _bar(worst <= 0.7, f"ours ≤ 0.7 at every checkpoint (largest {worst:.2f})")]
        made[population] = lines
    return made


def _bar(met: bool, what: str) -> str:
    return f"- {'met' if met else 'MISSED'}: {what}"


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method


def _header(names: Sequence[str]) -> list[str]:
    return [_row(names), "|" + "---|" * len(names)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
