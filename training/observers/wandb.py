"""Weights & Biases as a tracker of runs: `run.trackers = ["wandb"]`, `[tracker.wandb] project = "…"`."""

from __future__ import annotations

from typing import Any, Literal

from solostream.errors import UserError


def open_wandb(
    name: str,
    config: dict[str, Any],
    *,
    project: str = "solostream",
    entity: str | None = None,
    group: str | None = None,
    mode: Literal["online", "offline", "disabled"] | None = None,
) -> Any:
    """A run of W&B. Raises UserError where the package is missing or does not load."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"tracker 'wandb' does not load ({error}): pip install wandb") from None
    return wandb.init(project=project, name=name, config=config, entity=entity, group=group, mode=mode)
