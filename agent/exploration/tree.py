"""Trees of trajectories: episodes that begin alike and part at a turn.

A leaf is a whole `Trajectory` whose ledger holds the shared beginning too; `Branch` says which tokens those are. Leaves
are numbered as they begin. A leaf's path names the leaves that its ledger follows, itself last:

    leaf 0   ───────────┬──────────  path (0,)
    leaf 2              └────┬─────  path (0, 2)      forks (40,)
    leaf 3                   └─────  path (0, 2, 3)   forks (40, 65)

Tokens 0:40 of leaf 3 are leaf 0's, 40:65 are leaf 2's, the others its own: sampled once, whatever leaves hold them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solostream.agent.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Branch:
    """A trajectory's place in a tree.

    tree: the dispatch event of leaf 0, which names the tree. leaves: how many it has. path: see above; its first is the
    trunk. forks[i]: the token of the ledger at which path[i + 1] leaves path[i]; rising.
    """

    tree: int
    leaves: int
    path: tuple[int, ...]
    forks: tuple[int, ...] = ()

    @property
    def leaf(self) -> int:
        """Its number among the leaves."""
        return self.path[-1]

    @property
    def trunk(self) -> int:
        """The leaf that began at the prompt."""
        return self.path[0]

    @property
    def own_from(self) -> int:
        """The first token of the ledger that this leaf sampled itself."""
        return self.forks[-1] if self.forks else 0

    def owner(self, token: int) -> int:
        """The leaf that sampled a token of this ledger, for all leaves that hold it."""
        return self.path[bisect_right(self.forks, token)]

    def common(self, other: Branch) -> float:
        """So many tokens of the two ledgers are the very same; 0 (but for the prompt) without a common trunk."""
        same = sum(1 for _ in _alike(self.path, other.path))
        if not same:
            return 0
        ends = (b.forks[same - 1] if len(b.forks) >= same else math.inf for b in (self, other))
        return min(ends)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"tree": self.tree, "leaves": self.leaves, "path": list(self.path), "forks": list(self.forks)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Branch:
        """The inverse of `to_dict`. Raises KeyError or TypeError on a damaged record."""
        return cls(record["tree"], record["leaves"], tuple(record["path"]), tuple(record["forks"]))


@dataclass(frozen=True, slots=True)
class Tree:
    """What a strategy that branches plays: the leaves by number, `scored` where the environment ended the episode.

    pruned: tokens that were sampled and belong to no leaf.
    """

    leaves: tuple[Trajectory, ...]
    scored: tuple[bool, ...]
    pruned: int = 0


def leaves_of(played: Any) -> tuple[Trajectory, ...]:
    """The leaves of a tree; of a trajectory itself."""
    return played.leaves if isinstance(played, Tree) else (played,)


def tree_event(trajectory: Trajectory) -> int:
    """The event of the request that brought it: a tree has that of its leaf 0."""
    return trajectory.dispatch.event if trajectory.branch is None else trajectory.branch.tree


def sampled_once(trajectories: Iterable[Trajectory]) -> int:
    """Action tokens of `trajectories`, those that leaves share counted with the one that sampled them."""
    return sum(
        t.n_action_tokens if t.branch is None else int(t.action_mask[t.branch.own_from :].sum()) for t in trajectories
    )


def gathered(trajectories: Iterable[Trajectory]) -> list[Any]:
    """Leaves put together as the trees that they are, trajectories without a tree as they are.

    A tree that lacks a leaf is left out: it was cut off while it was written.
    """
    found: dict[int, list[Trajectory]] = {}
    for trajectory in trajectories:
        found.setdefault(tree_event(trajectory), []).append(trajectory)
    played: list[Any] = []
    for members in found.values():
        branch = members[0].branch
        if branch is None:
            played.append(members[-1])
        elif len(leaves := {t.branch.leaf: t for t in members if t.branch}) == branch.leaves:
            played.append(Tree(tuple(leaves[i] for i in sorted(leaves)), (True,) * len(leaves)))
    return played


def _alike(one: Iterable[int], two: Iterable[int]) -> Iterable[int]:
    for a, b in zip(one, two, strict=False):
        if a != b:
            return
        yield a
