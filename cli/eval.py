"""`solostream eval` and `compare`: options, progress, the lines on the terminal."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro

from solostream.agent.engine import EngineError
from solostream.agent.engines.allocator import keep_freed_memory
from solostream.agent.run_settings import run_settings
from solostream.envs.rewards import failed_rewards
from solostream.evaluation.evaluate import Progress
from solostream.evaluation.evaluate import evaluate as run_evaluation
from solostream.evaluation.options import EvalOptions

WAIT_LINES_S = 30.0  # between two lines of a log that say that requests wait


def evaluate(options: Annotated[EvalOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]) -> int:
    """avg@k, pass@k, maj@k and tool behaviour of a model, a server or a script.

    Writes summary.json, samples.jsonl, samples.parquet and report.html. Interrupt it at will: the same command goes on.
    """
    from solostream.viewer.report import write_report

    folder = options.folder()
    keep_freed_memory()
    if run := run_settings(options.model):
        print(f"{run}; options override")
    try:
        with _live(sys.stdout.isatty()) as show:
            summary = asyncio.run(run_evaluation(options, show))
    except (EngineError, KeyboardInterrupt) as error:
        kept = f"finished samples are kept in {folder}; the same command goes on from there"
        print(f"solostream: {str(error) or 'interrupted'} ({kept})", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    print(result_table(summary))
    if not summary["metrics"]["samples"]:
        cause = "the sandbox failed in every episode: solostream sandbox check fork"
        if rewards := failed_rewards():
            cause = f"no episode has a reward, as the warnings say: {rewards}; is it the reward for these data?"
        print(f"solostream: {cause}", file=sys.stderr)
        return 1
    write_report(folder)
    print(f"{folder}/report.html")
    return 0 if summary["complete"] else 1


def compare(
    run_a: Annotated[Path, tyro.conf.Positional],
    run_b: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    k: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = None,
    metrics: tuple[str, ...] = ("avg", "maj", "code_ratio", "code_pass_ratio", "first_call", "response_length"),
    out: Path | None = None,
) -> int:
    """Two evaluations side by side: curves, support flow, significance.

    Args:
        run_a: Folder or samples.jsonl of the first evaluation, for example the text-only one.
        run_b: Of the second.
        k: Samples of the support flow; default: as many as every problem has.
        metrics: Rows of the table; pass@K and maj@K are some, too.
        out: The page; default: compare-A-B.html here.
    """
    from solostream.envs.rewards.grading import equivalent
    from solostream.evaluation.compare import compare as run_comparison
    from solostream.evaluation.compare import shares
    from solostream.provenance import told
    from solostream.viewer.report.evaluation import comparison_page

    found = run_comparison(run_a, run_b, k=k, same=equivalent)
    rows = [(name, *found.scalar(name)) for name in (*metrics, f"pass@{found.k}")]
    width = max(len(name) for name, *_ in rows)
    a, b = found.names
    print(f"{'':<{width}}  {a:>14}  {b:>14}")
    for name, first, second in rows:
        print(f"{name:<{width}}  {_cell(first):>14}  {_cell(second):>14}")
    d, m = found.difference, found.mcnemar
    print(f"\navg, B − A: {d['mean']:+.4f}  95 % [{d['low']:+.4f}, {d['high']:+.4f}], permutation p = {d['p']:.4f}")
    print(f"McNemar at k = {found.k}: {m['only_b']} gained, {m['only_a']} lost, p = {m['p']:.4f}")
    print("  ".join(f"{name} {count} ({share:.1%})" for name, count, share in shares(found.flow)))
    for which, left in (("A", found.only_a), ("B", found.only_b)):
        if left:
            print(f"{left} problems are only in {which} and were left out", file=sys.stderr)
    place = out or Path(f"compare-{a}-{b}.html".replace("/", "-").replace(" ", "-"))
    made = [told(path if path.is_dir() else path.parent) for path in (run_a, run_b)]
    place.write_text(comparison_page(found, made), encoding="utf-8")
    print(place)
    return 0


@contextmanager
def _live(terminal: bool) -> Any:
    """What shows the progress of an evaluation: a bar on a terminal, about twenty lines in a log."""
    if not terminal:
        yield _log_lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Bar(*columns, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, total=progress.total, completed=len(progress.samples), description=_standing(progress))

        yield show


def _log_lines() -> Callable[[Progress], None]:
    last, told = -1, -math.inf  # told: when a line last said that requests wait

    def show(progress: Progress) -> None:
        nonlocal last, told
        at = 20 * len(progress.samples) // max(progress.total, 1)
        waits = progress.waiting > 0 and time.monotonic() - told > WAIT_LINES_S
        if at != last or waits:
            last, told = at, time.monotonic() if waits else told
            print(f"{len(progress.samples)}/{progress.total}  {_standing(progress)}", flush=True)

    return show


def _standing(progress: Progress) -> str:
    parts = [
        f"solved {_cell(progress.accuracy)}",
        f"code {_cell(progress.code_ratio)}",
        f"{progress.tokens_per_s:,.0f} {progress.samples[-1].unit if progress.samples else 'tokens'}/s",
    ]
    if progress.waiting:
        parts.append(f"waiting: {progress.waiting} requests for the rate limit")
    if progress.found:
        parts.append(f"{progress.found} found on disk")
    if progress.replaced:
        parts.append(f"{progress.replaced} of edited problems played again")
    if progress.infra:
        parts.append(f"{progress.infra} failed episodes" + f" (the last: {progress.trouble})" * bool(progress.trouble))
    return "  ".join(parts)


def result_table(summary: Mapping[str, Any]) -> str:
    """The numbers of an evaluation as plain text."""
    metrics = summary["metrics"]
    rows = [(f"avg@{metrics['samples_a_problem'][1]}", metrics["avg"])]
    for name, curve in (("maj", metrics["majority"]), ("pass", metrics["pass"])):
        some = [row for row in curve if row["k"] & (row["k"] - 1) == 0 or row is curve[-1]]  # powers of two, the last
        rows += [(f"{name}@{row['k']}", row) for row in some]
    lines = [f"{name:<18}{100 * row['mean']:6.1f} %   95 % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
             for name, row in rows if row]  # fmt: skip
    return "\n".join([*lines, *_tool_lines(metrics), *_cost_lines(summary), *_remarks(summary)])


def _tool_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """How the tool was used, and what went wrong with it."""
    six, unit = metrics["behaviour"], metrics["unit"]
    for name, key in (("code ratio", "code_ratio"), ("code pass ratio", "code_pass_ratio")):
        if six[key] is not None:
            yield f"{name:<18}{100 * six[key]:6.1f} %"
    for name, key in ((f"first call, {unit[:-1]}", "first_call"), (f"response, {unit}", "response_length"),
                      ("code rounds", "code_rounds"), ("code lines", "code_lines")):  # fmt: skip
        if six[key] is not None:
            yield f"{name:<18}{six[key]['mean']:6.1f}     median {six[key]['p50']:g}"
    if metrics["errors"]:
        yield "errors            " + ", ".join(f"{name} {count}" for name, count in metrics["errors"].items())


def _cost_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """What an endpoint counted, and what that costs."""
    if usage := summary["metrics"]["usage"]:
        yield (
            f"{'usage, tokens':<18}{usage['prompt_tokens']:,} prompt ({usage['cached_tokens']:,} cached), "
            f"{usage['completion_tokens']:,} completion ({usage['reasoning_tokens']:,} reasoning), "
            f"{usage['requests']:,} requests"
        )
    if summary["cost"] is not None:
        yield f"{'cost':<18}{summary['cost']:.4f} at the given prices"


def _remarks(summary: Mapping[str, Any]) -> Iterator[str]:
    """What is missing from the numbers above, and why."""
    if summary["replaced"]:
        yield f"{summary['replaced']} samples of problems that were edited are in replaced.jsonl now"
    if summary["trouble"]:
        yield f"{'not answered':<18}the last: {summary['trouble']}"
    for name, count in (("failed episodes", summary["infra"]), ("damaged lines", summary["damaged"])):
        if count:
            yield f"{name:<18}{count}: left out; the same command asks for them again"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
