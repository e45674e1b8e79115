"""What a reward may look at, and what it may return."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from solostream.envs.rewards.grading.rules import Rules
from solostream.envs.types import EnvEnding, Step, Task
from solostream.errors import SandboxError


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished episode. `rules`: how the environment wants answers compared."""

    task: Task
    steps: tuple[Step, ...]
    answer: str | None
    ending: EnvEnding
    max_turns: int
    rules: Rules = field(default_factory=Rules)

    @property
    def n_calls(self) -> int:
        """Calls that were executed."""
        return sum(execution is not None for step in self.steps for execution in step.executions)

    @property
    def text(self) -> str:
        """All that the policy wrote, turn after turn."""
        return "\n\n".join(step.text for step in self.steps)


@dataclass(frozen=True, slots=True)
class Score:
    """A reward in [0, 1] and, for those who read the episode later, why."""

    value: float
    why: str = ""


Returned = float | Score
Reward = Callable[..., Returned | Awaitable[Returned] | Sequence[Returned]]


class RewardError(SandboxError):
    """A reward could not be had: it raised, hung or left [0, 1]. Its episode has none; it is dropped and counted."""
