"""MaxRL (arXiv 2602.02710): A = (r − mean_g)/mean_g over the answers to one prompt, 0 where none is right.

The mean over a group of the scores of its right answers is an unbiased gradient of the likelihood of a right answer,
truncated at as many terms as the group has answers (the reward's own gradient is its first term): a prompt counts by
1/p, so hard ones count. `maxrl_stream` is the single stream's form, A = (r − v)/max(v, floor), with the tracker's v.
"""

from __future__ import annotations

from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from solostream.training.advantages.base import Advantages, Grouping, Trees, per_token
from solostream.training.advantages.groups import degenerate_share, groups
from solostream.training.advantages.spo import SPO, spread
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch, kept_of


class MaxRL:
    """Raises UserError for trajectories without a group."""

    groups: Grouping = "required"
    trees: Trees = "refused"
    in_parts = True

    def __call__(self, batch: Batch) -> Advantages:
        """(r − mean)/mean within each group. Raises UserError without groups."""
        r, values = [t.reward for t in batch], [0.0] * len(batch)
        for members in groups(batch).values():
            mean = fmean(r[i] for i in members)
            for i in members:
                values[i] = (r[i] - mean) / mean if mean > 0 else 0.0
        metrics = {**spread(values, r, kept_of(batch)), "advantage/degenerate": degenerate_share(batch, r)}
        return Advantages(per_token(values, batch), metrics)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept from one batch to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


class MaxRLStream:
    """floor: of the value that divides. The tracker learns as SPO's does, whose errors it raises."""

    def __init__(self, tracker: ValueTracker, *, floor: Annotated[float, Field(gt=0, le=1)] = 0.1) -> None:
        self.tracker, self.floor = tracker, floor
        self._keeper = SPO(tracker)
        self.in_parts = SPO(tracker, scale="none").in_parts

    def __call__(self, batch: Batch) -> Advantages:
        """(r − v)/max(v, floor), v frozen at dispatch; the outcomes then enter the tracker."""
        metrics = self._keeper(batch).metrics
        pairs = [(t.reward, t.dispatch.value or 0.0) for t in batch]
        return Advantages(per_token([(r - v) / max(v, self.floor) for r, v in pairs], batch), metrics)

    def state_dict(self) -> dict[str, Any]:
        """The keeper's."""
        return {"keeper": self._keeper.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._keeper.load_state_dict(state["keeper"])
