"""Numbers that cannot be trained on stop the step: the tasks are named, the batch is written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np

from solostream.agent.engines.hf.device import full
from solostream.errors import UserError
from solostream.training.batch import Batch, dump
from solostream.training.config.learner import LearnerConfig


class NotFinite(UserError):
    """An advantage or a gradient is NaN or infinite."""


def check_advantages(batch: Batch, values: Sequence[np.ndarray], folder: Path, step: int) -> None:
    """What an estimator gave, its author's or ours: one finite number an action token. Raises NotFinite, ValueError."""
    # A wrong length is the author's mistake, a number that is not finite one of the run: different errors.
    wanted = [trajectory.n_action_tokens for trajectory in batch]
    given = [len(of_row) for of_row in values]
    if wanted != given:
        raise ValueError(f"an estimator owes one advantage an action token: {given} for {wanted}")
    finite = [np.isfinite(of_row).all() for of_row in values]
    bad = [trajectory.task_id for trajectory, sound in zip(batch, finite, strict=True) if not sound]
    if bad:
        refuse("advantages", bad, batch, folder, step)


def refuse(what: str, task_ids: Sequence[str], batch: Batch, folder: Path, step: int) -> NoReturn:
    """Write the batch to `folder` and raise NotFinite."""
    # Each task once, in the order of the batch: several of its trajectories may be at fault.
    names = ", ".join(dict.fromkeys(task_ids))
    raise NotFinite(
        f"{what} that are not finite, tasks {names}; no step was taken, the batch is in {dump(batch, folder, step)}: "
        "mend the advantage estimator, or lower learner.lr"
    )


@contextmanager
def memory_advice(config: LearnerConfig, section: str = "learner") -> Iterator[None]:
    """Turn out-of-memory in an update into a UserError that names settings to go on with, which may change on resume.

    section: where `config` stands.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not full(error):
            raise
        # What takes least from the user first: a smaller micro-batch changes no result.
        budget = config.max_tokens_per_batch
        ways = [f"{section}.max_tokens_per_batch = {max(budget // 2, 1)}"]
        if not config.gradient_checkpointing:
            ways.append(f"{section}.gradient_checkpointing = true")
        elif config.logits_chunk > 256:
            ways.append(f"{section}.logits_chunk = {config.logits_chunk // 4}")
        raise UserError(
            f"out of memory with max_tokens_per_batch = {budget}; what is finished is kept: go on with --resume and "
            f"{', or '.join(ways)}"
        ) from error
