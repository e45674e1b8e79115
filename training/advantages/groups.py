"""Groups of answers to one prompt, for the estimators that compare within them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from solostream.errors import UserError
from solostream.training.batch import Batch, kept_of


def groups(batch: Batch) -> dict[int, list[int]]:
    """Places in `batch` by group, without those that the learner's filters take out (they get the advantage 0).

    Raises UserError for trajectories that were dispatched without a group.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, (trajectory, keep) in enumerate(zip(batch, kept_of(batch), strict=True)):
        if trajectory.dispatch.group is None:
            raise UserError(
                f"the trajectory of task {trajectory.task_id} has no group; "
                "sample several streams a prompt (G >= 2), or use a single-stream estimator such as spo"
            )
        if keep:
            members[trajectory.dispatch.group].append(i)
    return members


def degenerate_share(batch: Batch, rewards: Sequence[float]) -> float:
    """Share of groups whose answers all earned the same: p^G + (1 − p)^G for a success rate p."""
    sets = groups(batch).values()
    return sum(len({rewards[i] for i in members}) == 1 for members in sets) / max(len(sets), 1)
