"""Optimal token baseline (arXiv 2602.07078; verl `tir_optimal_token_baseline`): a baseline for each action token.

    b_t = Σ_i G_t W_t/Σ_i W_t over the answers i to one prompt that have a t-th action token
    W_t = Σ_{j ≤ t} w_j,  w = 1 − 2π + Σ_v π_v²: the squared norm of a token's gradient on its logits, up to t

t counts the policy's own tokens over all turns, and G is the reward of the episode (what an environment pays in between
is in it). Where only one answer is that long there is nothing to compare: b_t = 0 and A = G, as in verl.
`by = "turn"` compares turns in place of tokens: W and G at the end of the n-th turn.
Departure: a ledger has π of the sampled token only, so w is (1 − π)², which is between half of it and all of it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from solostream.agent.trajectory import Trajectory
from solostream.training.advantages.base import Advantages, Grouping, Trees
from solostream.training.advantages.groups import degenerate_share, groups
from solostream.training.advantages.spo import spread
from solostream.training.batch import Batch, kept_of


class OptimalToken:
    """by: what one baseline is for. Raises UserError for trajectories without a group."""

    groups: Grouping = "required"
    trees: Trees = "refused"

    def __init__(self, *, by: Literal["token", "turn"] = "token") -> None:
        self.by = by

    def __call__(self, batch: Batch) -> Advantages:
        """r less the energy-weighted mean of those that came as far. Raises UserError without groups."""
        r = [t.reward for t in batch]
        values = [np.zeros(t.n_action_tokens) for t in batch]
        for members in groups(batch).values():
            self._compare([batch[i] for i in members], [values[i] for i in members])
        means = [float(v.mean()) if len(v) else 0.0 for v in values]
        metrics = {**spread(means, r, kept_of(batch)), "advantage/degenerate": degenerate_share(batch, r)}
        return Advantages(values, metrics)

    def _compare(self, members: list[Trajectory], values: list[np.ndarray]) -> None:
        """Fill in the advantages of one group."""
        places = [_turns(t) if self.by == "turn" else np.arange(t.n_action_tokens) for t in members]
        cells = max((int(p[-1]) + 1 for p in places if len(p)), default=0)
        weighed, total, count = np.zeros(cells), np.zeros(cells), np.zeros(cells, int)
        for trajectory, place in zip(members, places, strict=True):
            sampled = np.exp(trajectory.logprobs[trajectory.action_mask].astype(np.float64))
            w = np.cumsum(np.square(1 - sampled))
            last = np.flatnonzero(np.diff(place, append=-1))  # the last token of each cell
            at = place[last]
            weighed[at] += trajectory.reward * w[last]
            total[at] += w[last]
            count[at] += 1
        with np.errstate(invalid="ignore"):
            baseline = np.where((count > 1) & (total > 0), weighed / total, 0.0)
        for trajectory, place, value in zip(members, places, values, strict=True):
            value[:] = trajectory.reward - baseline[place]

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept from one batch to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


def _turns(trajectory: Trajectory) -> np.ndarray:
    """[action tokens]: which of the policy's turns each belongs to, from 0."""
    place = np.zeros(len(trajectory), int)
    own = [turn for turn in trajectory.turns if turn.role == "assistant"]
    for n, turn in enumerate(own):
        place[turn.start : turn.end] = n
    turns: np.ndarray = place[trajectory.action_mask]
    return turns
