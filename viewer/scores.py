"""Evaluations for the viewer's pages: the numbers of one, and of two side by side, problem by problem."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from solostream.envs.rewards.grading import equivalent
from solostream.evaluation.compare import compare
from solostream.evaluation.metrics import by_problem, summarize
from solostream.evaluation.samples import read_samples
from solostream.viewer.runs import ViewedRun

_known: dict[tuple[str | int | None, ...], tuple[tuple[int, ...], dict[str, Any]]] = {}  # question -> sizes, answer
_lock = threading.Lock()


def evaluation(source: ViewedRun) -> dict[str, Any]:
    """`metrics` (see `evaluation.metrics.summarize`) and `problems`, the hardest first. Raises UserError."""
    return _once([source], None, lambda: _evaluation(source))


def _once(sources: Sequence[ViewedRun], k: int | None, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Reading and grading everything takes a while: again only when a file has grown."""
    key = (*(str(source.path.resolve()) for source in sources), k)
    sizes = tuple(source.path.stat().st_size if source.path.exists() else 0 for source in sources)
    with _lock:
        if _known.get(key, (None,))[0] != sizes:
            _known[key] = sizes, compute()
        return _known[key][1]


def _evaluation(source: ViewedRun) -> dict[str, Any]:
    samples, damage = read_samples(source.path)
    problems = sorted(by_problem(samples), key=lambda p: (p.c / p.n, p.task_id))
    prompts = _prompts(source)
    rows = [
        {
            "task_id": p.task_id,
            "prompt": prompts.get(p.task_id, ""),
            "n": p.n,
            "c": p.c,
            "reward": sum(p.rewards) / p.n,
            "majority": float(p.majority(equivalent)[-1]),
            "tokens": sum(s.behaviour.action_tokens for s in p.samples) / p.n,
            "sandbox_s": sum(s.behaviour.sandbox_s for s in p.samples) / p.n,
        }
        for p in problems
    ]
    return {"metrics": summarize(samples, equivalent), "problems": rows, "damaged": len(damage)}


def comparison(a: ViewedRun, b: ViewedRun, k: int | None) -> dict[str, Any]:
    """The fields of `evaluation.compare.Comparison`, and the prompt of each problem. Raises UserError."""
    return _once([a, b], k, lambda: _comparison(a, b, k))


def _comparison(a: ViewedRun, b: ViewedRun, k: int | None) -> dict[str, Any]:
    found = asdict(compare(a.path, b.path, k=k, same=equivalent))
    prompts = _prompts(a)
    for row in found["rows"]:
        row["prompt"] = prompts.get(row["task_id"], "")
    return {**found, "names": [a.name, b.name]}


def _prompts(source: ViewedRun) -> dict[str, str]:
    return dict(source.index.select("SELECT task_id, prompt FROM tasks"))
