"""LATR, look-ahead rollouts (arXiv 2510.24302): branch where the policy is unsure, look ahead, prune what is alike.

A turn whose first k tokens have an entropy above `unsure` gets up to `width` − 1 branches. Each is simulated; one whose
first r tokens lie within the edit distance `distance`·r of the limb's own is pruned: it would say the same again.
Departures: the paper branches at any token, into its likeliest candidates; here it is at the head of a turn, where
interpreter and cache are copied, and the candidates are sampled. So a branch is a sample of the policy given that it is
unlike the limb's turn, and what is pruned is counted (`Tree.pruned`): it was paid for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Engine
from solostream.agent.exploration.growing import Limb, played
from solostream.agent.exploration.tree import Tree
from solostream.agent.rollout import Sampled
from solostream.agent.trajectory import Dispatch
from solostream.envs.text_env import TextEnv


def edit_distance(one: Sequence[int], two: Sequence[int]) -> int:
    """Insertions, deletions and substitutions that turn `one` into `two` (Levenshtein)."""
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(two, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


class LATR:
    """look_ahead: r tokens. window: k. unsure: entropy over log V, 0 branches at every turn."""

    def __init__(
        self,
        leaves: int,
        *,
        initial: Annotated[int, Field(ge=1)] = 1,
        width: Annotated[int, Field(ge=2)] = 2,
        unsure: Annotated[float, Field(ge=0)] = 0.0,
        look_ahead: Annotated[int, Field(ge=1)] = 20,
        distance: Annotated[float, Field(ge=0, le=1)] = 0.4,
        window: Annotated[int, Field(ge=1)] = 20,
        tokens: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        self.leaves, self.initial, self.width, self.unsure = leaves, min(initial, leaves), width, unsure
        self.look_ahead, self.distance, self.window, self.tokens = look_ahead, distance, window, tokens

    def trunks(self, limbs: Sequence[Limb]) -> int:
        """`initial`, then whatever is missing."""
        return self.leaves - len(limbs) if limbs else self.initial

    def branches(self, limb: Limb, limbs: Sequence[Limb], draw: random.Random) -> int:
        """`width` − 1 where the policy is unsure, at the first turn too."""
        return self.width - 1 if limb.entropies[-1] >= self.unsure else 0

    def keeps(self, turn: Sampled, other: Sampled) -> bool:
        """Whether the look-ahead has parted from the limb's own turn."""
        one, two = turn.ids[: self.look_ahead], other.ids[: self.look_ahead]
        return edit_distance(one, two) > self.distance * max(len(one), len(two))

    async def __call__(
        self, env: TextEnv, engine: Engine, chat: Chat, *, dispatch: Dispatch | None = None, **episode: Any
    ) -> Tree:
        """Play a tree; see `growing.grow`."""
        return await played(self, env, engine, chat, dispatch, episode)
