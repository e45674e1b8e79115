"""`solostream.evaluate(...)`: one call that evaluates, in a script or in a notebook."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solostream.evaluation.evaluate import Progress
from solostream.evaluation.evaluate import evaluate as run
from solostream.evaluation.options import EvalOptions
from solostream.sandbox.interpreter import in_any_thread


@dataclass(frozen=True, slots=True)
class Evaluation:
    """accuracy: avg@k with its 95 % interval over problems, None without a sample; summary: `summary.json`."""

    folder: Path
    complete: bool
    samples: int
    accuracy: float | None
    interval: tuple[float, float] | None
    code_ratio: float | None
    summary: Mapping[str, Any]


def evaluate(
    model: str,
    *,
    env_options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    **options: Any,
) -> Evaluation:
    """Evaluate as `solostream eval` does. An evaluation that its folder holds already is gone on with.

    Args:
        model: a folder or Hugging Face id, vllm:PATH, http://HOST:PORT, chat:URL#MODEL or scripted:MODULE:FUNCTION.
        env_options, columns: as mappings.
        out: the folder; default: evals/MODEL-DATA.
        report: called after every sample.
        options: the command's others: data, split, k, temperature, max_tokens, limit, tools, seed, …

    Raises UserError before anything is played; EngineError when the engine stays down.
    """
    chosen = EvalOptions(
        model,
        env_options=json.dumps(dict(env_options or {})),
        columns=json.dumps(dict(columns or {})),
        out=None if out is None else Path(out),
        **options,
    )
    summary = in_any_thread(lambda: asyncio.run(run(chosen, report)))
    metrics = summary["metrics"]
    average = metrics["avg"]
    return Evaluation(
        chosen.folder(),
        summary["complete"],
        metrics["samples"],
        average["mean"] if average else None,
        (average["low"], average["high"]) if average else None,
        metrics["behaviour"]["code_ratio"],
        summary,
    )
