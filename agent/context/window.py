"""Rollout strategy "window": the policy sees the opening, the first turns that are pinned, and the latest turns.

An episode may then be longer than the context: where it does not fit, its oldest turns leave in place of a
`token_limit`. Leaving costs a new prompt, so more leave at a time than need to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Engine, Sampling
from solostream.agent.rollout import rollout
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.envs.text_env import TextEnv
from solostream.errors import UserError


@dataclass(frozen=True, slots=True)
class Window:
    """A `History`. turns: of the latest, the newest among them; None: as many as fit. pinned: of the first.

    Where more than the share `full` of the context is used, turns leave until at most the share `after` is.
    Raises UserError.
    """

    turns: int | None = None
    pinned: int = 0
    full: float = 0.75
    after: float = 0.5

    def __post_init__(self) -> None:
        if (self.turns is not None and self.turns < 1) or self.pinned < 0:
            raise UserError(f"rollout 'window': turns is 1 or more, pinned 0 or more, not {self.turns}, {self.pinned}")
        if not 0 < self.after <= self.full <= 1:
            raise UserError(f"rollout 'window': 0 < after <= full <= 1, not after = {self.after}, full = {self.full}")

    def __call__(self, opening: int, pairs: Sequence[int], newest: int, room: int) -> list[int]:
        """See `History`."""
        stay = list(range(len(pairs)))
        most = len(stay) if self.turns is None else self.pinned + self.turns - 1
        used = opening + sum(pairs) + newest
        limit = used if used <= self.full * room else self.after * room
        while len(stay) > self.pinned and (len(stay) > most or used > limit):
            used -= pairs[stay.pop(self.pinned)]
        return stay


async def window(
    env: TextEnv,
    engine: Engine,
    chat: Chat,
    *,
    sampling: Sampling,
    max_tokens: int,
    task_id: str | None = None,
    dispatch: Dispatch | None = None,
    seed: int = 0,
    retries: int = 1,
    turns: Annotated[int, Field(ge=1)] | None = None,
    pinned: Annotated[int, Field(ge=0)] = 0,
    full: Annotated[float, Field(gt=0, le=1)] = 0.75,
    after: Annotated[float, Field(gt=0, le=1)] = 0.5,
) -> Trajectory:
    """An episode as `rollout` plays it, with a `Window` of `turns`, `pinned`, `full` and `after` on it."""
    return await rollout(
        env,
        engine,
        chat,
        sampling=sampling,
        max_tokens=max_tokens,
        task_id=task_id,
        dispatch=dispatch,
        seed=seed,
        retries=retries,
        history=Window(turns, pinned, full, after),
    )


window.check = Window  # type: ignore[attr-defined]  # of its options: what no single one of them is to blame for
window.of_the_policy = True  # type: ignore[attr-defined]  # it learnt to act so: an evaluation plays it so, too
