"""Several ranks against one process: weights after two updates, every metric, and checkpoints across group sizes.

The ranks are processes of this machine that talk over gloo; the same learner is built, twice updated and compared in
each case of `rank_cases`. A checkpoint after the first update is then taken up by other numbers of ranks, which must
come out where the uninterrupted run did. The last rows are the largest differences that were seen.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cluster_parts.rank_cases import CASES, WIDE, Case, advance, learner_of, numbers_of

from solostream.training.cluster.rank_group import ALONE, RankGroup, join, meet, reach
from solostream.training.cluster.rank_sharding import whole_tensors
from solostream.training.config.learner import LoraConfig

RESUMED = {
    "AdamW": Case({"num_mini_batches": 2, "schedule": "linear", "total_steps": 9}),
    "Muon, KL reference": Case({"optimizer": "muon", "kl_coef": 0.1}),
    "adapters": Case({"lora": LoraConfig(rank=4, alpha=8), "lr": 1e-3}),
}
CLOCK = ("tokens_per_s",)  # what is no number of the update


def measure(worlds: Sequence[int] = (2, 4), *, quick: bool = False) -> dict[str, Any]:
    """By case and number of ranks the largest differences from one process. Children are forked before torch works.

    quick: more than two ranks only in the cases WIDE.
    """
    with tempfile.TemporaryDirectory(prefix="solostream-equality-") as name, contextlib.chdir(name):
        folder = Path(name)  # also where a batch that cannot be trained on is written
        children = [_child(rank, worlds, folder, quick) for rank in range(max(worlds))]
        torch.set_num_threads(1)
        one: dict[str, Any] = {case: numbers_of(CASES[case]) for case in CASES}
        resumed = {case: numbers_of(RESUMED[case]) for case in RESUMED}
        for case in RESUMED:
            _save(RESUMED[case], folder / case / "1", ALONE)
        (folder / "ready").touch()
        for child in children:
            _, status = os.waitpid(child, 0)
            if status:
                raise SystemExit(f"a rank failed (status {status})")
        found: dict[str, Any] = {"cases": {}, "resumed": {}}
        for world in worlds:
            many = torch.load(folder / f"numbers-{world}.pt", weights_only=False)
            for case in CASES.keys() & many.keys():
                found["cases"].setdefault(case, {})[str(world)] = _difference(one[case], many[case])
            for case, taken in many["resumed"].items():
                for source, numbers in taken.items():
                    key = f"{case}, {source} -> {world}"
                    found["resumed"][key] = _difference(resumed[case], numbers)
        for case in RESUMED:
            for source in worlds:
                numbers = _resume(RESUMED[case], folder / case / str(source), ALONE)
                found["resumed"][f"{case}, {source} -> 1"] = _difference(resumed[case], numbers)
    return found


def _child(rank: int, worlds: Sequence[int], folder: Path, quick: bool) -> int:
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        for world in sorted(worlds):
            if rank < world:
                _rank(rank, world, folder, WIDE if quick and world > 2 else tuple(CASES))
        os._exit(0)  # without the interpreter's way out, on which torch's threads were seen to abort
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _rank(rank: int, world: int, folder: Path, cases: Sequence[str]) -> None:
    place = folder / f"port-{world}"
    if rank == 0:
        store = meet("127.0.0.1")
        place.with_suffix(".draft").write_text(str(store.port))
        place.with_suffix(".draft").rename(place)
    else:
        _wait(place)
        store = reach("127.0.0.1", int(place.read_text(encoding="utf-8")), 300)
    group = join(rank, world, store, torch.device("cpu"), 300)
    found: dict[str, Any] = {case: numbers_of(CASES[case], group) for case in cases}
    _wait(folder / "ready")
    found["resumed"] = {case: {} for case in RESUMED}
    for case in RESUMED:
        _save(RESUMED[case], folder / case / str(world), group)
        group.gather(None)  # all have written
        for source in sorted(path.name for path in (folder / case).iterdir()):
            found["resumed"][case][source] = _resume(RESUMED[case], folder / case / source, group)
        group.gather(None)
    if group.first:
        torch.save(found, folder / f"numbers-{world}.pt")
    group.gather(None)
    torch.distributed.destroy_process_group()


def _save(case: Case, folder: Path, group: RankGroup) -> None:
    learner = learner_of(case, group)
    advance(learner, case, 0)
    folder.mkdir(parents=True, exist_ok=True)
    learner.save(folder, weights=True)


def _resume(case: Case, folder: Path, group: RankGroup) -> dict[str, Any]:
    learner = learner_of(case, group)
    learner.load(folder)
    return {"metrics": [advance(learner, case, 1)], "weights": whole_tensors(learner.weights(), group)}


def _difference(one: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """Of weights, absolute; of metrics, relative to the number where that is above 1; `same`: of what has no size."""
    if "refused" in one:
        return {"weights": 0.0, "metrics": 0.0, "logprobs": 0.0, "share": 0.0, "same": one == many}
    assert one["weights"].keys() == many["weights"].keys()
    weights = max(float((many["weights"][name] - w).abs().max()) for name, w in one["weights"].items())
    pairs = list(zip(one["metrics"][-len(many["metrics"]) :], many["metrics"], strict=True))
    metrics = max(abs(a[k] - b[k]) / max(1, abs(a[k])) for a, b in pairs for k in a if k not in CLOCK)
    found = {"weights": weights, "metrics": metrics, "same": all(a.keys() == b.keys() for a, b in pairs)}
    if "logprobs" in many:
        found["logprobs"] = float(np.abs(one["logprobs"] - many["logprobs"]).max())
        found["share"] = many["elements"] / one["elements"]
    return found


def _wait(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


def table(found: dict[str, Any]) -> str:
    worlds = list(found["cases"]["the defaults"])
    lines = ["weights after two updates: largest absolute difference from one process, by ranks", ""]
    lines.append(f"{'case':45}" + "".join(f"{world:>12}" for world in worlds) + "  largest of a metric")
    for case in CASES:
        by_world = found["cases"][case]
        if case == "a gradient that is not finite":
            said = "the same tasks named" if all(d["same"] for d in by_world.values()) else "OTHER TASKS NAMED"
            lines.append(f"{case:45}{said}")
            continue
        metric = max(d["metrics"] for d in by_world.values())
        seen = "".join(f"{by_world[w]['weights']:12.1e}" if w in by_world else " " * 12 for w in worlds)
        lines.append(f"{case:45}{seen}{metric:12.1e}")
    lines += ["", "resumed after one update, against the uninterrupted run", ""]
    lines += [f"{case:45}{d['weights']:12.1e}{d['metrics']:12.1e}" for case, d in found["resumed"].items()]
    every = [d for by_world in found["cases"].values() for d in by_world.values()] + list(found["resumed"].values())
    lines += ["", f"{'largest':45}{max(d['weights'] for d in every):12.1e}{max(d['metrics'] for d in every):12.1e}"]
    return "\n".join(lines)
