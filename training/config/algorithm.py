"""`[algorithm]`: the advantage, its stages, the value tracker, and how prompts are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from solostream import registry
from solostream.errors import UserError
from solostream.training.advantages import Advantage, ValueTracker, estimator, grouping
from solostream.training.advantages.base import Grouping
from solostream.training.advantages.value_tracker import Forgetting
from solostream.training.config.components import Options, beside_keys
from solostream.training.config.section import Bounds, Count, Names, Positive, Rate, Section, Share
from solostream.training.rollouts.task_sampler import Prioritized, Sampler


class TrackerConfig(Section):
    """SPO's value tracker: `[algorithm.tracker]`."""

    rho_min: Share = 0.875  # rho_min = rho_max: constant forgetting
    rho_max: Share = 0.96  # the share of old evidence that stays where the policy hardly moves
    d_half: Annotated[float, Field(gt=0)] = 0.06  # nats a token that halve the weight of old evidence
    window: Positive = 64  # observations of a task that may still be put in order
    start_samples: Count = 1  # rollouts a prompt that initialize it; 0: Beta(0.5, 0.5)
    forgetting: Forgetting = "divergence"  # snapshot: SPO++'s, rho_min once a policy version
    shared_drift: Share = 0.0  # how much of a batch's residual moves the values of all tasks; 0: none
    pooled: bool = False  # a task never seen starts from the population, its source and its level

    @model_validator(mode="after")
    def _consistent(self) -> TrackerConfig:
        self.make()
        return self

    def make(self) -> ValueTracker:
        """Raises UserError."""
        options = {name: getattr(self, name) for name in ("window", "forgetting", "shared_drift", "pooled")}
        return ValueTracker(self.rho_min, self.rho_max, self.d_half, **options)


class AlgorithmConfig(Section):
    """Advantage, tracker, and how prompts are drawn; symbols as in the papers (see docs/training.md).

    Beside these keys, `[algorithm.NAME]` holds the options of the estimator or stage NAME.
    """

    model_config = ConfigDict(extra="allow")

    advantage: str = "spo"  # the estimator
    stages: Names = ("aspo",)  # around the advantage, innermost first
    group_size: Positive = 1  # trajectories a prompt
    # x batch: trajectories of uninformative groups that a batch may discard (DAPO); 0: none
    dynamic_sampling: Rate = 0.0
    sampler: str | None = None  # of prompts; default: prioritized where an advantage keeps the tracker, else uniform
    reward_range: Bounds = (0.0, 1.0)  # the environment's; onto [0, 1]
    tracker: TrackerConfig = TrackerConfig()

    @model_validator(mode="after")
    def _consistent(self) -> AlgorithmConfig:
        beside_keys("advantage", self)
        if self.reward_range[0] >= self.reward_range[1]:
            raise ValueError(f"reward_range must be [low, high] with low < high, not {list(self.reward_range)}")
        if self.sampler is not None and registry.asks("sampler", self.sampler, "tracker") and not self.uses_tracker:
            raise UserError(
                f"sampler '{self.sampler}' draws by the tracker's values, and no advantage here keeps a tracker: "
                "set algorithm.sampler = 'uniform', or algorithm.advantage = 'spo'"
            )
        twice = sorted({name for name in self.components if self.components.count(name) > 1})
        if twice:
            raise ValueError(
                f"'{twice[0]}' is named twice in algorithm.advantage and algorithm.stages, and has one section:"
                " name it once"
            )
        groups = self._groups()
        if self.group_size < 2 and "required" in groups.values():
            name = next(name for name, wanted in groups.items() if wanted == "required")
            raise UserError(f"advantage '{name}' compares within groups: set algorithm.group_size to 2 or more")
        if self.dynamic_sampling and not self.grouped:
            raise UserError(
                "algorithm.dynamic_sampling leaves out groups without a difference, and nothing here compares within "
                "groups: leave it away, or use an advantage with groups (grpo, rloo, passk, ...)"
            )
        return self

    def estimator(
        self,
        tracker: ValueTracker,
        logprobs: Callable[..., Any],
        entropies: Callable[..., Any] | None = None,
        sampler: Sampler | None = None,
    ) -> list[Advantage]:
        """The advantage and its stages, innermost first. Raises UserError."""
        return estimator(self.advantage, self.stages, self.options, tracker, logprobs, entropies, sampler)

    def stand_ins(self) -> list[Advantage]:
        """The same without a run, to ask them what they need. Raises UserError."""
        tracker = self.tracker.make()
        sampler = Prioritized(("",), tracker) if self.task_sampler == "prioritized" else None
        return self.estimator(tracker, lambda batch: [], lambda batch: [], sampler)

    @property
    def options(self) -> Options:
        """Component -> its options."""
        return dict(self.model_extra or {})

    @property
    def components(self) -> tuple[str, ...]:
        """The estimator and its stages, innermost first."""
        return (self.advantage, *self.stages)

    @property
    def uses_tracker(self) -> bool:
        """Whether a component asks for the tracker: then it is initialized, and its values are frozen at dispatch."""
        return any(registry.asks("advantage", name, "tracker") for name in self.components)

    @property
    def task_sampler(self) -> str:
        """The sampler's name: as chosen, else prioritized with a tracker and uniform without one."""
        return self.sampler or ("prioritized" if self.uses_tracker else "uniform")

    @property
    def grouped(self) -> bool:
        """Whether the streams of a prompt wait for one another; those of the other estimators go their own way."""
        found = set(self._groups().values())
        return "required" in found or ("optional" in found and self.group_size > 1)

    def _groups(self) -> dict[str, Grouping]:
        return {name: grouping(one) for name, one in zip(self.components, self.stand_ins(), strict=True)}
