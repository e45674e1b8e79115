"""`solostream distill`: sample, keep what is right, write traces that `solostream sft` learns from."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from solostream.agent.run_settings import run_settings
from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.cli.eval import evaluate
from solostream.envs.data import is_made, only_tests, training_split
from solostream.envs.data.traces import output_in
from solostream.errors import UserError
from solostream.evaluation.evaluate import SUMMARY
from solostream.evaluation.folder import REPLACED, SAMPLES
from solostream.evaluation.metrics import SOLVED
from solostream.evaluation.options import EvalOptions


def distill(
    options: Annotated[EvalOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")],
    traces: Path | None = None,
    per_problem: int = 4,
    tool_only: bool = False,
) -> int:
    """Rejection sampling: evaluate MODEL, and keep the samples that are right as traces for a cold start.

    Everything that `solostream eval` takes, but the training split is the default where there is one. The samples stay
    in its folder, and the same command goes on there. Samples with several calls in one turn are left out, and those
    that made up an output.

    Args:
        traces: The .jsonl file to write; default: traces.jsonl in the evaluation's folder. What else holds something
            is never written over.
        per_problem: At most so many traces of a problem, the shortest ones; equal ones count once.
        tool_only: Only samples that ran code.
    """
    if per_problem < 1:
        raise UserError("--per-problem must be at least 1")
    options = _of_training(options)
    folder = options.folder()
    place = traces or folder / "traces.jsonl"
    _refuse(place, options)
    code = evaluate(options)
    if not (folder / SAMPLES).is_file():
        return code
    kept = list(_kept(folder / SAMPLES, per_problem, tool_only, _opener(folder)))
    if not kept:
        raise UserError(f"no sample in {folder} is right: raise -k, take easier --data or a better model")
    place.parent.mkdir(parents=True, exist_ok=True)
    target = place.resolve()  # a link stays one
    draft = target.with_name(f".{target.name}.draft")  # half a file would be taken for somebody else's
    draft.write_text("".join(_line(row) for row in kept), encoding="utf-8")
    os.replace(draft, target)
    problems = len({row["task_id"] for row in kept})
    print(f"{len(kept)} traces of {problems} problems: {place}")
    return code


def _of_training(options: EvalOptions) -> EvalOptions:
    """Where no split is named, the one to learn from. Raises UserError where only what tests a run is there."""
    if options.data is None and run_settings(options.model) is not None:
        raise UserError("distill needs --data here: without it the problems are those that the run is tested with")
    if options.split is not None or options.data is None:
        return options
    if only_tests(options.data):
        warnings.warn(
            f"{options.data} is there to test models, and its answers are learnt from these traces: test with another",
            stacklevel=2,
        )
    split = "train" if is_made(options.data) else training_split(options.data)
    return replace(options, split=split)


def _refuse(place: Path, options: EvalOptions) -> None:
    """Raises UserError, before anything is played, for what cannot be written or would be lost by it."""
    folder = options.folder()
    if place.exists() and not place.is_file():
        raise UserError(f"--traces {place} is no file: name a .jsonl file, for example {place / 'traces.jsonl'}")
    if place.suffix != ".jsonl":
        raise UserError(f"--traces {place}: traces are JSON lines, name a file that ends in .jsonl")
    if options.data is not None and place.resolve() == Path(options.data).resolve():
        raise UserError(f"--traces {place} is the file of the problems: name another")
    if place.resolve() in [(folder / name).resolve() for name in (SAMPLES, REPLACED)]:
        raise UserError(f"--traces {place} is where the samples are: name another file")
    above = next(path for path in place.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--traces {place}: {above} is no folder that can be written to; name another file")
    if place.exists() and not _lines(place) <= _ours(folder):
        raise UserError(f"{place} holds what {folder} did not give it: name another --traces, or remove that file")


def _ours(folder: Path) -> set[str]:
    """Every line that this evaluation, as far as it was played, may have written: such a file is only brought up to
    date.
    """
    places = [folder / name for name in (SAMPLES, REPLACED) if (folder / name).is_file()]
    return {_line(row) for place in places for row in _kept(place, sys.maxsize, False, _opener(folder))}


def _lines(place: Path) -> set[str]:
    with place.open(encoding="utf-8", errors="replace", newline="\n") as file:
        return set(file)


def _opener(folder: Path) -> str:
    """What the teacher's template opens a turn with; no evaluation that has played is without a summary."""
    place = folder / SUMMARY
    return str(json.loads(place.read_text(encoding="utf-8"))["thought_opener"]) if place.is_file() else ""


def _line(row: dict[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _kept(path: Path, per_problem: int, tool_only: bool, opener: str) -> Iterator[dict[str, object]]:
    """A row of messages for each of the shortest right samples of every problem."""
    found: dict[str, dict[str, Trajectory]] = {}
    opened: dict[str, tuple[str, str | None]] = {}  # the problem and the system text
    for line in read_lines(path):
        one = line.trajectory
        if one is None or line.record is None or one.reward <= SOLVED or one.void or (tool_only and not one.n_calls):
            continue
        if any(len(turn.calls) > 1 for turn in one.turns):  # their outputs are one text: nobody could tell them apart
            continue
        if any(output_in(turn.text, turn.calls) for turn in one.turns if turn.role == "assistant"):
            continue  # `sft` would refuse it: nobody shall learn to make up what a tool says
        if len(one.segments) > 1:  # history was replaced: no model saw these turns as one conversation
            continue
        said = "\n".join(turn.text for turn in one.turns if turn.role == "assistant")
        found.setdefault(one.task_id, {}).setdefault(said, one)
        opened[one.task_id] = line.record["prompt"], line.record.get("system")
    for task in sorted(found):  # samples come in the order in which they were finished
        for one in sorted(found[task].values(), key=lambda t: t.response_length)[:per_problem]:
            yield {"task_id": task, "reward": one.reward, "messages": _messages(one, *opened[task], opener)}


def _messages(one: Trajectory, prompt: str, system: str | None, opener: str) -> list[dict[str, str]]:
    """The conversation as it was: the instructions apart from the problem, calls as the policy wrote them.

    Examples before the problem are left out: they are of the environment (`few_shot`), which puts its own there again.
    system: None where the environment did not tell: then it is all that stood before the problem.
    opener: what the teacher's template wrote before each turn to open a thought; another template needs to know.
    """
    system = one.turns[0].text.removesuffix(prompt).strip() if system is None else system
    opening = [{"role": "system", "content": system}] if system else []
    rest: list[dict[str, str]] = []
    for turn in one.turns[1:]:
        spoken = turn.role == "assistant"
        message = {"role": turn.role, "content": (opener if spoken else "") + turn.text}
        rest.append({**message, "reasoning_content": turn.reasoning} if turn.reasoning else message)
    while rest and rest[-1]["role"] != "assistant":  # an observation that nobody answered
        rest.pop()
    return [*opening, {"role": "user", "content": prompt}, *rest]
