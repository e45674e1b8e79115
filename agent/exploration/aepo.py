"""AEPO's rollout (arXiv 2510.14545, Sec. 3.1): the budget is balanced by entropy, and branching in a row is penalised.

    m = k·σ(β·(H_root − H̄_tool))        P_t = (α + γ·ΔH_t)·(1 − P̂(l)),  P̂(l) = min(0.05·l, 1)

Of k leaves m begin at the prompt: the more, the less sure the question leaves the policy beside the tools' outputs.
H_root is the entropy of the first turn, H̄_tool the mean over the turns behind an output, both of a first trajectory
that is played to its end; it is one of the m. l counts the branches in a row up to this step of the limb.
Departures: the step of the penalty, 0.05, is the authors' code's (it counts l over all limbs of a prompt); m is kept
within [2, k − 1], for the first trajectory only measures and never branches.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Engine
from solostream.agent.exploration.arpo import Probability, probability
from solostream.agent.exploration.growing import Limb, played
from solostream.agent.exploration.tree import Tree
from solostream.agent.rollout import Sampled
from solostream.agent.trajectory import Dispatch
from solostream.envs.text_env import TextEnv
from solostream.errors import UserError


def root_budget(leaves: int, beta: float, root: float, tools: Sequence[float]) -> float:
    """m before it is rounded; without a tool's output half of the leaves."""
    gap = root - math.fsum(tools) / len(tools) if tools else 0.0
    return leaves / (1 + math.exp(-beta * gap))


def penalised(chance: float, in_a_row: int, step: float) -> float:
    """P_t behind `in_a_row` branches."""
    return chance * (1 - min(step * in_a_row, 1.0))


class AEPO:
    """leaves: k. sensitivity: β. penalty: of each branch in a row. window, tokens: as of `arpo`.

    Raises UserError for fewer leaves than the three kinds need.
    """

    def __init__(
        self,
        leaves: int,
        *,
        sensitivity: float = 5.0,
        alpha: Probability = 0.5,
        gamma: float = 0.2,
        penalty: Probability = 0.05,
        window: Annotated[int, Field(ge=1)] = 20,
        tokens: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        if leaves < 3:
            raise UserError(f"aepo divides its leaves, and {leaves} are too few: set algorithm.group_size to 3 or more")
        self.leaves, self.sensitivity, self.alpha, self.gamma = leaves, sensitivity, alpha, gamma
        self.penalty, self.window, self.tokens = penalty, window, tokens

    def trunks(self, limbs: Sequence[Limb]) -> int:
        """One that measures; then m − 1; then whatever is missing."""
        if not limbs:
            return 1
        if len(limbs) > 1:
            return self.leaves - len(limbs)
        root, *tools = limbs[0].entropies
        m = round(root_budget(self.leaves, self.sensitivity, root, tools))
        return min(max(m, 2), self.leaves - 1) - 1

    def branches(self, limb: Limb, limbs: Sequence[Limb], draw: random.Random) -> int:
        """One or none, behind an observation only."""
        if len(limb.entropies) < 2 or limb is limbs[0]:
            return 0
        before = limb.forked[:-1]
        in_a_row = before[::-1].index(False) if False in before else len(before)
        chance = probability(self.alpha, self.gamma, limb.entropies[-1], limb.entropies[0])
        return int(draw.random() < penalised(chance, in_a_row, self.penalty))

    def keeps(self, turn: Sampled, other: Sampled) -> bool:
        """Every branch."""
        return True

    async def __call__(
        self, env: TextEnv, engine: Engine, chat: Chat, *, dispatch: Dispatch | None = None, **episode: Any
    ) -> Tree:
        """Play a tree; see `growing.grow`."""
        return await played(self, env, engine, chat, dispatch, episode)
