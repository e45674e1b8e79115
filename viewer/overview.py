"""What the pages say of a run as a whole, from the small files beside its trajectories.

A training run writes config.toml, metrics.jsonl and at its end summary.json; an evaluation identity.json and
summary.json. Whatever is missing is None: a run is shown from its first second, and when it was killed, too.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solostream.evaluation.metrics import independent_change, paired_change
from solostream.evaluation.training_curves import ACCURACY, HELD_OUT, HELD_OUT_PROBLEMS
from solostream.evaluation.writer import seen
from solostream.provenance import rent_of
from solostream.viewer.metric_columns import Columns, RunMetrics


def facts(place: Path, metrics: RunMetrics) -> dict[str, Any]:
    """One row of the start page. place: the run's folder or file.

    `before`, `after`: accuracy in [0, 1]; `cost`: money, where prices were given; `wall_s`: seconds; `date`, `changed`:
    seconds since 1970; `status`: running while a process holds the folder; else finished, stopped (it ended before
    its end), or unknown (written on another machine). `writer`: the process that wrote last, in words.
    """
    folder = place if place.is_dir() else place.parent
    config, summary = configuration(place), read_json(folder / "summary.json")
    identity = read_json(folder / "identity.json")
    if (folder / "config.toml").is_file() and place.is_dir():
        return _training(folder, config, summary, metrics)
    if identity or "metrics" in summary:
        return _evaluation(folder, {**identity, **summary.get("config", {})}, summary)
    return {**_common("trajectories", folder), **_status(folder, finished=True)}


def configuration(place: Path) -> dict[str, Any]:
    """The settings of a run or an evaluation as a tree; empty where it wrote none."""
    folder = place if place.is_dir() else place.parent
    try:
        return tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = read_json(folder / "summary.json").get("config")
        return summary if isinstance(summary, dict) else read_json(folder / "identity.json")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`: what two configurations are compared by."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def files(place: Path) -> list[dict[str, Any]]:
    """Files of a run's folder: name (with its folders), bytes, changed; the largest 500."""
    if place.is_file():
        return [_file(place, place.parent)]
    found = [_file(path, place) for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(sorted(found, key=lambda f: -f["bytes"])[:500], key=lambda f: f["name"])


def read_json(path: Path) -> dict[str, Any]:
    """An object; empty when the file is missing, damaged or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _file(path: Path, root: Path) -> dict[str, Any]:
    about = path.stat()
    return {"name": path.relative_to(root).as_posix(), "bytes": about.st_size, "changed": about.st_mtime}


def _common(kind: str, folder: Path) -> dict[str, Any]:
    known = [path.stat().st_mtime for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return {
        "kind": kind, "model": None, "data": None, "steps": None, "planned": None, "before": None, "after": None,
        "cost": None, "wall_s": None, "date": min(known, default=None), "changed": max(known, default=None), "tags": [],
    }  # fmt: skip


def _training(
    folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any], metrics: RunMetrics
) -> dict[str, Any]:
    phases = metrics.phases()
    run, data, rl, evaluated = config.get("run", {}), config.get("data", {}), phases.get("rl"), phases.get("eval")
    times = [t for columns in phases.values() for t in (columns.first("time"), columns.last("time")) if t is not None]
    common = _common("training", folder)
    wall_s = summary.get("wall_s") or (max(times) - min(times) if times else None)
    return {
        **common,
        "model": config.get("model", {}).get("path"),
        "data": data.get("path") or config.get("env", {}).get("id"),
        "steps": rl and int(rl.last("step") or 0),
        "planned": run.get("steps"),
        "before": evaluated and evaluated.first(ACCURACY.key),
        "after": evaluated.last(ACCURACY.key) if evaluated and evaluated.length > 1 else None,
        "wall_s": wall_s,
        "cost": rent_of(wall_s, run.get("price_per_hour")),
        "date": min(times, default=common["date"]),
        **_status(folder, finished=bool(summary)),
        "tags": [str(tag) for tag in run.get("tags", [])],
        "table": before_and_after(metrics, folder),
    }


def before_and_after(metrics: RunMetrics, folder: Path) -> list[dict[str, Any]]:
    """Rows of the held-out table: values before training and at the last evaluation, with intervals where written.

    `change`, `change_low`, `change_high`: after less before, with its 95 % interval where one can be told; `paired`:
    over how many problems that were played both times, 0 where the two intervals stand apart.
    """
    evaluated = metrics.phases().get("eval")
    if evaluated is None:
        return []
    several = evaluated.length > 1
    rows = []
    for name, (label, unit) in HELD_OUT.items():
        if name not in evaluated.names():
            continue
        row: dict[str, Any] = {"label": label, "unit": unit}
        for end in ("", "_low", "_high"):  # of the first and of the last evaluation, also where that had no number
            measured = evaluated.column(f"{name}{end}")
            row |= {f"before{end}": measured[0], f"after{end}": measured[-1] if several else None}
        row |= _change(row)
        # The rewards by problem are those of the sampled episodes.
        if name == ACCURACY.key and several and (paired := _paired(folder, evaluated)) is not None:
            row |= {"change": paired["mean"], "change_low": paired["low"], "change_high": paired["high"]}
            row["paired"] = paired["problems"]
        rows.append(row)
    return rows


def _paired(folder: Path, evaluated: Columns) -> dict[str, float] | None:
    """The change between the first and the last measurement by problem; None where one of them was not written so."""
    measured = _held_out_problems(folder)
    before, after = (measured.get(int(step or 0)) for step in (evaluated.first("step"), evaluated.last("step")))
    return None if before is None or after is None else paired_change(before, after)


def _change(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of two measurements that may have been made on different problems."""
    if None in (row["before"], row["after"]):
        return {"change": None, "change_low": None, "change_high": None, "paired": 0}
    ends = [tuple(row[f"{when}{end}"] for end in ("", "_low", "_high")) for when in ("before", "after")]
    if any(None in end for end in ends):
        change, low, high = row["after"] - row["before"], None, None
    else:
        change, low, high = independent_change(*ends)
    return {"change": change, "change_low": low, "change_high": high, "paired": 0}


def _held_out_problems(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> problem -> mean reward; lines that are damaged or half-written are passed over."""
    measured: dict[int, dict[str, float]] = {}
    try:
        lines = (folder / HELD_OUT_PROBLEMS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return measured
    for line in lines:
        try:
            record = json.loads(line)
            measured[int(record["step"])] = dict(record["rewards"])
        except (ValueError, KeyError, TypeError):
            continue
    return measured


def _evaluation(folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    common = _common("evaluation", folder)
    average = summary.get("metrics", {}).get("avg") or {}
    return {
        **common,
        "model": config.get("model"),
        "data": config.get("data") or config.get("env"),
        "steps": None,
        "after": average.get("mean"),
        "after_low": average.get("low"),
        "after_high": average.get("high"),
        "cost": summary.get("cost"),
        "wall_s": summary.get("wall_s"),
        **_status(folder, finished=bool(summary.get("complete"))),
        "tags": [f"k = {config['k']}"] if "k" in config else [],
    }


def _status(folder: Path, *, finished: bool) -> dict[str, Any]:
    """What the folder's lock says, not how long ago a file changed: a step may take an hour."""
    state, writer = seen(folder)
    told = {"writing": "running", "gone": "stopped", "unknown": "unknown"}[state]
    # A finished run may be made longer: then it runs again.
    status = "finished" if finished and state != "writing" else told
    return {"status": status, "writer": None if writer is None else str(writer)}


def system(place: Path) -> dict[str, Any]:
    """Versions, commit and machine (`provenance`), and seconds by phase (`times`); empty until a run has ended."""
    summary = read_json((place if place.is_dir() else place.parent) / "summary.json")
    return {
        "provenance": summary.get("provenance", {}),
        "times": summary.get("times", {}),
        "wall_s": summary.get("wall_s"),
    }
