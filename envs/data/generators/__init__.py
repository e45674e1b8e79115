"""Data that is made, not read: `data.path = "reasoning-gym:chain_sum,gcd"`, or `"my_module:Maker:WHAT"`.

Of the registry's kind "data". What stands after the component's name is handed to its factory as `what`; its options
are the section `[data.NAME]` of a configuration. Training and held-out problems come from two disjoint sets, whatever
the seeds: which set a problem is in must follow from the problem itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol

from solostream import registry
from solostream.envs.types import Task
from solostream.errors import UserError

Side = Literal["train", "test"]
SIZE = 256  # problems where nobody says how many


class Maker(Protocol):
    """Makes problems, from its options alone: of the registry's kind "data"."""

    def tasks(self, side: Side, n: int) -> list[Task]:
        """`n` problems, the same each time. Raises UserError where there are not as many."""


def component(path: str) -> tuple[str, str] | None:
    """(component of the kind "data", what is asked of it); None for a file, a folder and all else that is read.

    Raises UserError for what is nearly one.
    """
    name, colon, what = path.partition(":")
    if name in registry.BUILT_IN["data"]:
        return name, what
    if not colon or "/" in path or Path(path).exists():
        return None
    known = registry.names("data")
    if name in known:
        return name, what
    if near := get_close_matches(name, known, 1, 0.8):
        raise UserError(f"no data {path!r}; did you mean '{near[0]}:{what}'?")
    attribute, _, what = what.partition(":")
    return f"{name}:{attribute}", what


def is_made(path: str) -> bool:
    """Whether `path` names problems that are made."""
    return component(path) is not None


def made(
    path: str, side: str | None = None, n: int | None = None, *, seed: int = 0, options: Mapping[str, Any] | None = None
) -> list[Task]:
    """Problems of the component that `path` names; without a side those to test with. Raises UserError."""
    found = component(path)
    if found is None:
        raise UserError(f"no data {path!r} is made here")
    if side not in (None, "train", "test"):
        raise UserError(f"{path} has the splits train and test, and no {side!r}")
    name, what = found
    maker: Maker = registry.make("data", name, options, what=what, seed=seed)
    return maker.tasks("train" if side == "train" else "test", SIZE if n is None else n)
