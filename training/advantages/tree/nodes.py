"""The nodes of a tree, as its leaves hold them: along each leaf, stretches of tokens that the same leaves share.

    leaf 0   ═══════╤═══════════    0:40 {0, 1, 2}   40: {0}
    leaf 1          ├────┬──────    0:40 {0, 1, 2}   40:65 {1, 2}   65: {1}
    leaf 2          └────┴──────    0:40 {0, 1, 2}   40:65 {1, 2}   65: {2}

Trunks begin at one prompt, which is the root: all leaves stand below it, and nobody sampled it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np

from solostream.agent.exploration.tree import Branch
from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantages
from solostream.training.batch import Batch, kept_of


@dataclass(frozen=True, slots=True)
class Node:
    """Ledger tokens start:end of one leaf; below: places in the batch of the leaves that hold them, this one too."""

    start: int
    end: int
    below: tuple[int, ...]


def trees(batch: Batch) -> list[list[int]]:
    """Places in `batch` by tree, without those that the learner's filters take out. Raises UserError without trees."""
    found: dict[int, list[int]] = defaultdict(list)
    for i, (trajectory, keep) in enumerate(zip(batch, kept_of(batch), strict=True)):
        if trajectory.branch is None:
            raise UserError(
                f"the trajectory of task {trajectory.task_id} grew on no tree; set rollout.strategy to one that "
                "branches (arpo, aepo, latr, segments), or leave out the stage that reads trees"
            )
        if keep:
            found[trajectory.branch.tree].append(i)
    return list(found.values())


def nodes(batch: Sequence[Trajectory], members: Sequence[int], leaf: int) -> list[Node]:
    """Those along `leaf`, from the prompt on; the root is not among them. `members`: places of the tree's leaves."""
    own, end = _branch(batch[leaf]), len(batch[leaf])
    reach = {i: min(own.common(_branch(batch[i])), end) if i != leaf else end for i in members}
    borders = sorted({0, *(int(r) for r in reach.values())})
    return [Node(start, stop, tuple(i for i in members if reach[i] > start)) for start, stop in pairwise(borders)]


def worth(advantages: Advantages) -> list[float]:
    """What the estimator gave each leaf: the mean over its tokens, 0 without any."""
    return [float(values.mean()) if len(values) else 0.0 for values in advantages.values]


def mean_below(values: Sequence[float], node: Node) -> float:
    """V(node): the mean over the leaves below it."""
    return fmean(values[i] for i in node.below)


def spread_over(trajectory: Trajectory, parts: Sequence[tuple[Node, float]]) -> np.ndarray:
    """float64 [action tokens]: each token has the number of its node."""
    column = np.zeros(len(trajectory), np.float64)
    for node, value in parts:
        column[node.start : node.end] = value
    found: np.ndarray = column[trajectory.action_mask]
    return found


def _branch(trajectory: Trajectory) -> Branch:
    assert trajectory.branch is not None
    return trajectory.branch
