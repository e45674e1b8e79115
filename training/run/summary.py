"""What a run amounts to: behaviour of a set of trajectories, `summary.json`, the final table before → after."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solostream import provenance
from solostream.agent.trajectory import Trajectory
from solostream.evaluation.metrics import bootstrap, mean_of
from solostream.training.config.models import RunConfig


@dataclass(frozen=True, slots=True)
class Scores:
    """Held-out behaviour. Shares are in [0, 1]; `first_call_token` is a mean position in tokens, over those that call.

    `accuracy` is sampled, `accuracy_greedy` is not; the code columns are of the sampled trajectories. None: no case.
    """

    accuracy: float
    accuracy_greedy: float | None
    code_ratio: float
    first_call_token: float | None
    code_pass_ratio: float | None
    code_rounds: float
    accuracy_low: float | None = None  # 95 % interval of `accuracy`, by a bootstrap over problems
    accuracy_high: float | None = None


def scores(sampled: Sequence[Trajectory], greedy: Sequence[Trajectory]) -> Scores:
    """What the held-out episodes come to. greedy: may be empty; then there is no greedy accuracy."""
    calls = [t.first_call_token for t in sampled if t.first_call_token is not None]
    runs = [e.ok for t in sampled for turn in t.turns for e in turn.executions if e is not None]
    low, high = _interval(by_problem(sampled))
    return Scores(
        accuracy=mean_of([t.reward for t in sampled]) or 0.0,
        accuracy_greedy=mean_of([t.reward for t in greedy]),
        code_ratio=len(calls) / max(len(sampled), 1),
        first_call_token=mean_of(calls),
        code_pass_ratio=mean_of(runs),
        code_rounds=len(runs) / max(len(sampled), 1),
        accuracy_low=low,
        accuracy_high=high,
    )


def by_problem(sampled: Sequence[Trajectory]) -> dict[str, float]:
    """Task id -> the mean reward of its samples."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for trajectory in sampled:
        rewards[trajectory.task_id].append(trajectory.reward)
    return {task_id: sum(of_problem) / len(of_problem) for task_id, of_problem in rewards.items()}


def _interval(rewards: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Samples of one problem are no independent evidence about other problems: problems are what is drawn again."""
    if not rewards:
        return None, None
    low, high = bootstrap(np.array(list(rewards.values())))
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Summary:
    """`summary.json`. `mismatch_max` is the largest |Δlogp| between sampler and learner on on-policy tokens (nats)."""

    name: str
    seed: int
    engine: str
    steps: int
    before: Scores
    after: Scores
    no_tool_accuracy: float | None
    mismatch_max: float | None
    wall_s: float
    times: Mapping[str, float]  # phase -> seconds
    provenance: Mapping[str, Any]  # versions, commit, machine
    cost: float | None = None  # of the machine for `wall_s`, where `run.price_per_hour` says what an hour of it costs

    @classmethod
    def of(cls, config: RunConfig, name: str, times: Mapping[str, float], **numbers: Any) -> Summary:
        """Of the run `name`, which spent so many seconds on each phase. numbers: the fields that are measured."""
        wall_s = sum(times.values())
        return cls(
            name=name,
            seed=config.seed,
            engine=config.engine,
            wall_s=round(wall_s, 2),
            cost=provenance.rent_of(wall_s, config.price_per_hour),
            times={phase: round(seconds, 2) for phase, seconds in times.items()},
            provenance=provenance.provenance(),
            **numbers,
        )

    def write(self, folder: Path) -> Path:
        """Atomically, as `summary.json`."""
        draft, place = folder / ".summary.draft", folder / "summary.json"
        draft.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        os.replace(draft, place)
        return place


ROWS: Sequence[tuple[str, str, str]] = (
    ("accuracy", "accuracy, sampled", "{:.1%}"),
    ("accuracy_greedy", "accuracy, greedy", "{:.1%}"),
    ("code_ratio", "code ratio", "{:.1%}"),
    ("first_call_token", "first call (token)", "{:.1f}"),
    ("code_pass_ratio", "code pass ratio", "{:.1%}"),
    ("code_rounds", "code rounds", "{:.2f}"),
)


def table(summary: Summary) -> str:
    """The final table as plain text, before → after."""
    lines = [f"{'held-out problems':<20}  {'before':>8}     {'after':>8}"]
    for key, label, form in ROWS:
        before, after = (_cell(getattr(s, key), form) for s in (summary.before, summary.after))
        lines.append(f"{label:<20}  {before:>8}  →  {after:>8}")
    if summary.no_tool_accuracy is not None:
        lines.append(f"{'without the tool':<20}  {'':>8}     {summary.no_tool_accuracy:>8.1%}")
    spent = ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in summary.times.items())
    cost = "" if summary.cost is None else f", {summary.cost:.2f} at the given price"
    lines.append(f"{summary.wall_s:.0f} s in all ({spent}){cost}; seed {summary.seed}, engine {summary.engine}")
    return "\n".join(lines)


def _cell(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)
