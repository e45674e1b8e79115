"""What the supervised steps before reinforcement learning can be told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from solostream.training.config.learner import LearnerConfig
from solostream.training.config.section import Count, Positive, Section


class Phase(Section):
    """One stretch of the cold start. `mix` maps a behaviour to its share of the demonstrations."""

    steps: Positive  # optimizer batches, at most
    mix: dict[str, float]  # behaviour (early, late, guess, bug) -> share
    epochs: Positive = 1  # times that each demonstration is shown within these steps
    until: Annotated[float, Field(gt=0)] | None = None  # nats a token: it ends when 20 steps have a smaller mean loss

    @model_validator(mode="after")
    def _shares(self) -> Phase:
        if not self.mix or min(self.mix.values()) < 0 or abs(sum(self.mix.values()) - 1) > 1e-6:
            raise ValueError(f"the shares of mix must be ≥ 0 and add up to 1, not {sum(self.mix.values()):g}")
        return self


class ColdStartConfig(Section):
    """Supervised steps before reinforcement learning: on generated demonstrations (`phases`) or on traces (`data`)."""

    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    data: str | None = None  # a .jsonl file of chat messages; see docs/training.md for the layouts
    steps: Positive | None = None  # on traces; default: as many as show each once
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the traces whose loss is only measured
    eval_every: Count = 0  # steps between two evaluations (loss of what is held out, accuracy); 0: none before the end
    verify: bool = False  # leave out traces whose outputs the sandbox does not give
    skip_bad: bool = False  # leave out lines that are no trace, and say which
    batch: Positive = 32  # demonstrations or traces a step
    learner: LearnerConfig = LearnerConfig()

    @model_validator(mode="after")
    def _of_one_kind(self) -> ColdStartConfig:
        if self.data is not None and self.phases:
            raise ValueError("phases are of generated demonstrations, data of traces: leave one of them away")
        given = [name for name in ("steps", "held_out", "verify", "skip_bad") if getattr(self, name)]
        if self.data is None and given:
            raise ValueError(f"{given[0]} needs cold_start.data")
        reinforced = [name for name in ("imitation", "entropy_band") if getattr(self.learner, name) is not None]
        if reinforced:
            raise ValueError(f"a cold start only imitates: set learner.{reinforced[0]}, without cold_start")
        return self

    @property
    def begun(self) -> bool:
        """Whether there is one."""
        return bool(self.phases or self.data)

    @property
    def planned(self) -> str:
        """How long it takes, for a person."""
        if not self.begun:
            return "none"
        if self.data is None:
            most = "at most " if any(phase.until for phase in self.phases) else ""
            return f"{most}{sum(phase.steps for phase in self.phases)} steps of {self.batch} demonstrations"
        steps = f"{self.steps} steps" if self.steps else "once through"
        return f"{steps} of {self.data}, {self.batch} traces a step"
