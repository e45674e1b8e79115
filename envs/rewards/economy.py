r"""Rewards that tell right answers apart by what they took: TAPO's and sweet-spot tiers. OTC is in `builtin`.

TAPO (arXiv 2510.07038; `tool_dapo.py` of the authors' code): −1 for a transcript that breaks the format, 0 for a wrong
answer, 1 for a right one, and neither a bonus nor a price for calls: with outputs of tools masked (always so here) and
dynamic sampling (`algorithm.dynamic_sampling`) the authors find that calls are not overused. On [0, 1] that is 0, ½, 1.
The format is this environment's: an answer at the end, no void turn, every call readable. Their soft punishment of long
responses is left out: `learner.drop_overlong` and `token_limit` are for that.

Tiers (SSL, arXiv 2601.22491): quality in [0, 1] falls into K zones of equal width, K = 4 in the paper, and the reward
grows faster from zone to zone: ((number of zones reached)/K)^power. Order is kept, small differences are noise and go.
Here the quality is any other reward, `of`, by default `otc`, so that a right answer in few calls is in the best zone.
Departure: the paper's rewards of each zone are not published where we could read them; power = 2 is ours.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field

from solostream.envs.rewards.builtin import correct, well_formed
from solostream.envs.rewards.calls import shared_call
from solostream.envs.rewards.episode import Episode, Score


async def tapo(episode: Episode) -> Score:
    """0 for a broken format, ½ for a wrong answer, 1 for a right one."""
    if episode.answer is None or not await well_formed(episode):
        return Score(0.0, "broken format")
    right = await correct(episode)
    return Score(0.5 + 0.5 * right.value, right.why)


def tier(quality: float, zones: int, power: float) -> float:
    """(zones reached/K)^power; 1 needs a quality of 1 − 1/K or more, 0 one of 0."""
    reached = min(math.floor(quality * zones + 1e-9) + 1, zones) if quality > 0 else 0
    return float((reached / zones) ** power)


class Tiers:
    """of: the reward whose value is sorted. zones: K. power: 1 makes all steps equal."""

    def __init__(
        self,
        of: str = "otc",
        zones: Annotated[int, Field(ge=1)] = 4,
        power: Annotated[float, Field(gt=0)] = 2.0,
    ) -> None:
        self._of, self._zones, self._power = shared_call(of, {}, {}), zones, power

    async def __call__(self, episode: Episode, workspace: Any = None) -> Score:
        """The tier of the inner reward. Raises RewardError where that raises it."""
        found = await self._of(episode, workspace)
        return Score(tier(found.value, self._zones, self._power), found.why)
