"""What the pages say of a run as a whole, from the small files beside its trajectories.

A training run writes config.toml, metrics.jsonl and at its end summary.json; an evaluation identity.json and
summary.json. Whatever is missing is None: a run is shown from its first second, and when it was killed, too.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solostream.evaluation.training_curves import ACCURACY, HELD_OUT
from solostream.viewer.metric_columns import Metrics

QUIET_S = 120.0  # without a word for so long, and for ten of its steps, an unfinished run counts as stopped


def facts(place: Path, metrics: Metrics) -> dict[str, Any]:
    """One row of the start page. place: the run's folder or file.

    `before`, `after`: accuracy in [0, 1]; `cost`: money, where prices were given; `wall_s`: seconds; `date`, `changed`:
    seconds since 1970; `status`: finished, running or stopped.
    """
    folder = place if place.is_dir() else place.parent
    config, summary = configuration(place), read_json(folder / "summary.json")
    identity = read_json(folder / "identity.json")
    if (folder / "config.toml").is_file() and place.is_dir():
        return _training(folder, config, summary, metrics)
    if identity or "metrics" in summary:
        return _evaluation(folder, {**identity, **summary.get("config", {})}, summary)
    return {**_common("trajectories", folder), "status": "finished"}


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


def _training(folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any], metrics: Metrics) -> dict[str, Any]:
    phases = metrics.phases()
    run, data, rl, evaluated = config.get("run", {}), config.get("data", {}), phases.get("rl"), phases.get("eval")
    times = [t for columns in phases.values() for t in (columns.first("time"), columns.last("time")) if t is not None]
    common = _common("training", folder)
    last_step_s = (rl and rl.last("time/step_s")) or 0.0
    quiet = time.time() - (common["changed"] or 0.0) > max(QUIET_S, 10 * last_step_s)
    return {
        **common,
        "model": config.get("model", {}).get("path"),
        "data": data.get("path") or config.get("env", {}).get("id"),
        "steps": rl and int(rl.last("step") or 0),
        "planned": run.get("steps"),
        "before": evaluated and evaluated.first(ACCURACY.key),
        "after": evaluated.last(ACCURACY.key) if evaluated and evaluated.length > 1 else None,
        "wall_s": summary.get("wall_s") or (max(times) - min(times) if times else None),
        "date": min(times, default=common["date"]),
        "status": "finished" if summary else "stopped" if quiet else "running",
        "tags": [str(tag) for tag in run.get("tags", [])],
        "table": before_and_after(metrics),
    }


def before_and_after(metrics: Metrics) -> list[dict[str, Any]]:
    """Rows of the held-out table: values before training and at the last evaluation, with intervals where written."""
    evaluated = metrics.phases().get("eval")
    if evaluated is None:
        return []
    several = evaluated.length > 1
    rows = []
    for name, (label, unit) in HELD_OUT.items():
        if name not in evaluated.names():
            continue
        row = {
            "label": label,
            "unit": unit,
            "before": evaluated.first(name),
            "after": evaluated.last(name) if several else None,
        }
        for end in ("low", "high"):
            bound = f"{name}_{end}"
            row |= {f"before_{end}": evaluated.first(bound), f"after_{end}": evaluated.last(bound) if several else None}
        rows.append(row)
    return rows


def _evaluation(folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    common = _common("evaluation", folder)
    average = summary.get("metrics", {}).get("avg") or {}
    quiet = time.time() - (common["changed"] or 0.0) > QUIET_S
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
        "status": "finished" if summary.get("complete") else "stopped" if quiet else "running",
        "tags": [f"k = {config['k']}"] if "k" in config else [],
    }


def system(place: Path) -> dict[str, Any]:
    """Versions, commit and machine (`provenance`), and seconds by phase (`times`); empty until a run has ended."""
    summary = read_json((place if place.is_dir() else place.parent) / "summary.json")
    return {
        "provenance": summary.get("provenance", {}),
        "times": summary.get("times", {}),
        "wall_s": summary.get("wall_s"),
    }
