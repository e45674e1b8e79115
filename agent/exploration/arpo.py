"""ARPO's rollout (arXiv 2507.19849, Sec. 3.1): branch where a tool's output made the policy unsure.

    ΔH_t = H_t − H_0        P_t = clip(α + β·ΔH_t, 0, 1)        branch with probability P_t, where P_t > τ

H_t is the entropy of the first k tokens after a tool's output, H_0 that of the first turn (`exploration.entropy`). Of
the M leaves N begin at the prompt, the others branch; where the trunks end before all have branched, more begin there.
The paper branches whenever P_t > τ, its code with probability P_t (α = 0.5, β = 0.2, one branch a limb and step): with
τ = 0 this is the code's rule, and a τ > 0 asks for both.
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
from solostream.errors import UserError

Probability = Annotated[float, Field(ge=0, le=1)]


def probability(alpha: float, beta: float, entropy: float, first: float) -> float:
    """P_t of a step."""
    return min(max(alpha + beta * (entropy - first), 0.0), 1.0)


class ARPO:
    """leaves: M. initial: N; None: half of them. window: k. tokens: sampled by the whole tree; 0: no limit.

    Raises UserError where no leaf is left to branch.
    """

    def __init__(
        self,
        leaves: int,
        *,
        initial: Annotated[int, Field(ge=1)] | None = None,
        alpha: Probability = 0.5,
        beta: float = 0.2,
        tau: Probability = 0.0,
        window: Annotated[int, Field(ge=1)] = 20,
        tokens: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        self.leaves, self.initial = leaves, initial or max(leaves // 2, 1)
        self.alpha, self.beta, self.tau, self.window, self.tokens = alpha, beta, tau, window, tokens
        if self.initial >= leaves:
            raise UserError(
                f"of {leaves} leaves {self.initial} begin at the prompt and none branches: set initial lower"
            )

    def trunks(self, limbs: Sequence[Limb]) -> int:
        """N at first, then whatever is missing."""
        return self.leaves - len(limbs) if limbs else self.initial

    def branches(self, limb: Limb, limbs: Sequence[Limb], draw: random.Random) -> int:
        """One or none, behind an observation only."""
        if len(limb.entropies) < 2:
            return 0
        chance = probability(self.alpha, self.beta, limb.entropies[-1], limb.entropies[0])
        return int(chance > self.tau and draw.random() < chance)

    def keeps(self, turn: Sampled, other: Sampled) -> bool:
        """Every branch."""
        return True

    async def __call__(
        self, env: TextEnv, engine: Engine, chat: Chat, *, dispatch: Dispatch | None = None, **episode: Any
    ) -> Tree:
        """Play a tree; see `growing.grow`."""
        return await played(self, env, engine, chat, dispatch, episode)
