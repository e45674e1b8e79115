"""Input that cannot be trained on stops the step: the tasks are named, the batch is written down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError


class NotFinite(UserError):
    """A reward, an advantage or a gradient is NaN or infinite."""


def check_finite(batch: Sequence[Trajectory], values: Sequence[float], what: str, folder: Path, step: int) -> None:
    """`values`, one a trajectory, are named `what` when NotFinite is raised; infrastructure failures have none."""
    pairs = zip(batch, values, strict=True)
    bad = [t.task_id for t, value in pairs if t.ending != "infra" and not math.isfinite(value)]
    if bad:
        refuse(what, bad, batch, folder, step)


def refuse(what: str, task_ids: Sequence[str], batch: Sequence[Trajectory], folder: Path, step: int) -> None:
    """Write the batch to `folder` and raise NotFinite."""
    path = folder / f"bad-batch-{step}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(t.to_json() + "\n" for t in batch), encoding="utf-8")
    names = ", ".join(dict.fromkeys(task_ids))
    raise NotFinite(
        f"{what} that are not finite, tasks {names}; no step was taken, the batch is in {path}: "
        "mend the environment's scoring, or lower learner.lr"
    )


@contextmanager
def memory_advice(max_tokens_per_batch: int) -> Iterator[None]:
    """Turn out-of-memory into a UserError that names the token budget to try."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory with max_tokens_per_batch = {max_tokens_per_batch}; "
            f"try max_tokens_per_batch = {max(max_tokens_per_batch // 2, 1)}, "
            "or gradient_checkpointing = true"
        ) from error
