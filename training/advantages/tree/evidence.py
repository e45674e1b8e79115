"""What a batch tells a value tracker: a tree counts every leaf once, inside one observation a trunk.

Leaves of one trunk share its luck: eight leaves that branched from one wrong turn are not eight proofs that the task is
hard. So a trunk is one observation, the mean reward of its leaves (a fraction, which the tracker takes as it is), and
M leaves on N trunks count N. Each leaf has a share in exactly one observation, and a trajectory without a tree is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from solostream.agent.trajectory import Trajectory


def observations(batch: Sequence[Trajectory], outcomes: Sequence[float]) -> list[tuple[int, float]]:
    """(place of the trajectory that stands for it, outcome), in the order of the places' dispatch events.

    The leaf with the lowest event stands for its trunk: the trunk itself, unless it was filtered before.
    """
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, trajectory in enumerate(batch):
        branch = trajectory.branch
        members[(-1, i) if branch is None else (branch.tree, branch.trunk)].append(i)
    found = []
    for places in members.values():
        first = min(places, key=lambda i: batch[i].dispatch.event)
        found.append((first, fmean(outcomes[i] for i in places) if len(places) > 1 else outcomes[first]))
    return sorted(found, key=lambda pair: batch[pair[0]].dispatch.event)
