r"""Rewards: a rubric is a list of named pure functions of a finished episode and their weights.

OTC-PO (arXiv 2504.14870), `otc`: correctness times a tool reward that falls with the number m of calls. With one stream
a problem (their OTC-PPO): `cos(m·π / (2m + c))`; their smoothing constant c is here the most turns an episode may take.
When the fewest calls n that solved the problem are known (their OTC-GRPO): with `f = 2nm/(m + n)`, the reward is 1 at
m = n = 0, `cos(m·π / (2m + c))` at n = 0 < m, else `sin(f·π / (2n))`, which peaks at m = n. `n` is read from the task's
`meta["min_calls"]`. Their factor α is the rubric's weight.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from solostream.envs.rewards.grading import equivalent
from solostream.envs.types import EnvEnding, Step, Task
from solostream.errors import UserError


@dataclass(frozen=True, slots=True)
class Episode:
    """What a reward may look at."""

    task: Task
    steps: tuple[Step, ...]
    answer: str | None
    ending: EnvEnding
    max_turns: int

    @property
    def n_calls(self) -> int:
        """Calls that were executed."""
        return sum(execution is not None for step in self.steps for execution in step.executions)


Reward = Callable[[Episode], float]


def correct(episode: Episode) -> float:
    """1 when the final answer equals the task's, else 0."""
    return float(episode.answer is not None and equivalent(episode.task.answer, episode.answer))


def answered(episode: Episode) -> float:
    """1 when there is a final answer, right or wrong."""
    return float(episode.answer is not None)


def well_formed(episode: Episode) -> float:
    """1 when no call was malformed or left open and no turn was void."""
    return float(not any(s.void or any(call.status != "ok" for call in s.calls) for s in episode.steps))


def code_passes(episode: Episode) -> float:
    """Share of the executed calls that ended without an error; 1 without calls."""
    done = [execution.ok for step in episode.steps for execution in step.executions if execution is not None]
    return sum(done) / len(done) if done else 1.0


def otc_tool_reward(calls: int, c: int, fewest: int | None = None) -> float:
    """OTC-PO's factor in [0, 1]; `fewest` (n) None is their single-stream form."""
    if not fewest:
        if calls == 0:
            return 1.0
        return math.cos(calls * math.pi / (2 * calls + c))
    return math.sin(2 * fewest * calls / (calls + fewest) * math.pi / (2 * fewest))


def otc(episode: Episode) -> float:
    """Correctness times `otc_tool_reward`."""
    fewest = episode.task.meta.get("min_calls")
    return correct(episode) and otc_tool_reward(episode.n_calls, episode.max_turns, fewest and int(fewest))


REWARDS: Mapping[str, Reward] = {f.__name__: f for f in (correct, answered, well_formed, code_passes, otc)}


class Rubric:
    """A weighted sum of rewards, in [0, 1]."""

    def __init__(self, weights: str | Mapping[str, float]) -> None:
        """`weights`: one reward's name, or name -> weight; a name is in `REWARDS` or is `package.module:function`.

        Raises UserError for an unknown name, and for weights that are negative or sum to more than 1.
        """
        self.weights = {weights: 1.0} if isinstance(weights, str) else dict(weights)
        self._rewards = {name: _find(name) for name in self.weights}
        total = math.fsum(self.weights.values())
        if not self.weights or min(self.weights.values()) < 0 or not 0 < total <= 1 + 1e-9:
            raise UserError(f"reward weights must be at least 0 and sum to at most 1, not {self.weights}")

    def scores(self, episode: Episode) -> dict[str, float]:
        """Each reward by itself. Raises UserError when one leaves [0, 1]."""
        scores = {name: float(reward(episode)) for name, reward in self._rewards.items()}
        for name, score in scores.items():
            if not 0 <= score <= 1:
                raise UserError(f"reward {name!r} returned {score}; rewards must lie in [0, 1]")
        return scores

    def total(self, scores: Mapping[str, float]) -> float:
        return min(1.0, math.fsum(self.weights[name] * score for name, score in scores.items()))


def _find(name: str) -> Reward:
    if name in REWARDS:
        return REWARDS[name]
    module, _, function = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), function) if function else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"reward {name!r} cannot be loaded: {error}") from None
    if found is None:
        raise UserError(f"unknown reward {name!r}; one of: {', '.join(REWARDS)}, or package.module:function")
    return found
