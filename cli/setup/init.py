"""`solostream init`: a configuration to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from solostream.errors import UserError


def init(
    name: Annotated[str, tyro.conf.Positional],
    /,
    *,
    recipe: Annotated[str, tyro.conf.arg(name="from")] = "own-data",
) -> int:
    """Write NAME.toml, a commented configuration to edit, from one of the recipes.

    Args:
        name: of the file, with or without .toml.
        recipe: own-data (a model of yours on problems of yours), quickstart, or any other (docs/training.md).
    """
    from solostream.training.config.parse import recipes

    known = recipes()
    if recipe not in known:
        raise UserError(f"--from: no recipe '{recipe}'; one of: {', '.join(known)}")
    place = Path(name if name.endswith(".toml") else f"{name}.toml")
    if place.exists():
        raise UserError(f"{place} exists: give another name, or remove it")
    text = known[recipe].read_text(encoding="utf-8")
    place.write_text(f"# From the recipe {recipe}.\n{text}", encoding="utf-8")
    print(f"{place}: edit it, then solostream train {place} --dry-run")
    return 0
