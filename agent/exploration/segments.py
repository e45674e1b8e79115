"""A regular tree: every limb splits in `width` behind each observation, until all leaves have begun.

What Monte-Carlo values at the borders of segments are estimated from (Segment Policy Optimization, arXiv 2505.23564,
its tree of 6-6-6; TreePO, arXiv 2508.17445, with its even split). The border of a segment is a turn's here, where the
papers cut after a number of tokens: between turns the interpreter has a state that can be copied.
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


class Segments:
    """initial: limbs that begin at the prompt. width: what each becomes behind an observation."""

    def __init__(
        self,
        leaves: int,
        *,
        initial: Annotated[int, Field(ge=1)] = 1,
        width: Annotated[int, Field(ge=2)] = 2,
        tokens: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        self.leaves, self.initial, self.width, self.tokens = leaves, min(initial, leaves), width, tokens
        self.window = 1  # no entropy is asked for

    def trunks(self, limbs: Sequence[Limb]) -> int:
        """`initial`, then whatever is missing."""
        return self.leaves - len(limbs) if limbs else self.initial

    def branches(self, limb: Limb, limbs: Sequence[Limb], draw: random.Random) -> int:
        """`width` − 1 behind each observation."""
        return self.width - 1 if len(limb.entropies) > 1 else 0

    def keeps(self, turn: Sampled, other: Sampled) -> bool:
        """Every branch."""
        return True

    async def __call__(
        self, env: TextEnv, engine: Engine, chat: Chat, *, dispatch: Dispatch | None = None, **episode: Any
    ) -> Tree:
        """Play a tree; see `growing.grow`."""
        return await played(self, env, engine, chat, dispatch, episode)
