"""How long what a run reads and learns is, as the plan of memory counts it."""

from __future__ import annotations

from dataclasses import dataclass

from solostream.training.config.models import Config

PROMPT_TOKENS = 64  # a guess, where the tokenizer is not on this machine


@dataclass(frozen=True, slots=True)
class Longest:
    """Tokens of the longest opening and of the longest trace (0: there is none); None where they were not counted."""

    prompt: int | None = None
    trace: int | None = None

    @property
    def guessed(self) -> bool:
        """Whether a figure that grows with them is about so much, and no bound."""
        return self.prompt is None or self.trace is None

    def episode(self, config: Config) -> int:
        """Tokens at most, the opening included."""
        return (PROMPT_TOKENS if self.prompt is None else self.prompt) + config.env.episode_tokens
