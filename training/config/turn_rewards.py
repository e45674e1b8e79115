"""What turns are paid beside the outcome must fit `algorithm.reward_range`: said before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from solostream.errors import UserError

if TYPE_CHECKING:
    from solostream.training.config.models import Config

DEFAULT = (0.0, 1.0)


def check(config: Config) -> None:
    """Raises UserError where nobody said what `turn_reward` can add up to, and it is more than 1.

    A range that is set is believed: who sets it may know that not every turn can be paid.
    """
    options, declared = config.env.options, config.algorithm.reward_range
    paid = options.get("turn_reward")
    if paid is None or declared != DEFAULT:
        return
    reach = _most(options.get("reward", "correct")) + config.env.max_turns * _most(paid)
    if reach > 1 + 1e-9:
        raise UserError(
            f"env.options.turn_reward pays each of {config.env.max_turns} turns beside the outcome: "
            f"set algorithm.reward_range = [0.0, {reach:g}], what can be reached"
        )


def _most(reward: Any) -> float:
    """The most that a rubric gives, its weights together; whether it is one says the environment."""
    tables = {reward: 1.0} if isinstance(reward, str) else reward if isinstance(reward, Mapping) else {}
    weights = [value.get("weight", 1.0) if isinstance(value, Mapping) else value for value in tables.values()]
    return float(sum(weight for weight in weights if isinstance(weight, int | float)))
