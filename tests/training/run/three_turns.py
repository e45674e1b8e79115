"""An environment without a tool: three turns, whatever is said; each whose length is even pays a third."""

from __future__ import annotations

from typing import Any

import gymnasium


class ThreeTurns(gymnasium.Env[str, str]):
    observation_space = action_space = gymnasium.spaces.Text(10_000)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.turns, self.even = 0, 0
        return f"Say something about {seed}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turns += 1
        self.even += len(action) % 2 == 0
        over = self.turns == 3
        return f"turn {self.turns}, {self.even} even", self.even / 3 if over else 0.0, over, False, {}
