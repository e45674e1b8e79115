"""Episodes that branched, in the index: which rows are leaves of one tree, where each forks, how long its turns are."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

from solostream.agent.trajectory import Trajectory

Select = Callable[[str], list[tuple[Any, ...]]]
SCHEMA = """
CREATE TABLE leaves (id INTEGER PRIMARY KEY, tree INTEGER, leaf INTEGER, place TEXT);
CREATE INDEX leaves_of_tree ON leaves (tree);
"""


def add(db: sqlite3.Connection, row: int, trajectory: Trajectory) -> None:
    """Remember the place of a row's trajectory, where it has one."""
    branch = trajectory.branch
    if branch is not None:
        turns = [[turn.role, turn.start, turn.end] for turn in trajectory.turns]
        place = {"path": branch.path, "forks": branch.forks, "turns": turns}
        values = (row, branch.tree, branch.leaf, json.dumps(place, separators=(",", ":")))
        db.execute("INSERT INTO leaves VALUES (?, ?, ?, ?)", values)


def tree_of(select: Select, row: int) -> list[dict[str, Any]]:
    """The leaves of the tree that `row` is one of, by number: id, leaf, path, forks, turns, reward, advantage.

    Empty for an episode of its own. Of a tree that a resumed run played again the newest rows count.
    select: the index's.
    """
    found = select(
        "SELECT MAX(l.id), l.leaf, rows.reward, rows.advantage, l.place FROM leaves AS l JOIN rows USING (id) "
        f"WHERE l.tree = (SELECT tree FROM leaves WHERE id = {int(row)}) GROUP BY l.leaf ORDER BY l.leaf"
    )
    names = ("id", "leaf", "reward", "advantage")
    return [{**dict(zip(names, numbers, strict=True)), **json.loads(place)} for *numbers, place in found]
