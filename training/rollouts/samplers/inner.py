"""The sampler inside a sampler: one chooses the problem, the other the form in which it is put."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from solostream import registry
from solostream.errors import UserError
from solostream.training.rollouts.samplers.history import History
from solostream.training.rollouts.task_sampler import Sampler

Of = str | dict[str, Any]  # a sampler's name, or {"sampler": name, its options}


def inner(of: Of, task_ids: Sequence[str], history: History, seed: int, batch: int) -> Sampler:
    """The sampler that `of` names. Raises UserError, also for one that needs a tracker where none is kept."""
    options: Mapping[str, Any] = {"sampler": of} if isinstance(of, str) else of
    if "sampler" not in options:
        raise UserError('of = { sampler = "NAME", … } names the sampler that chooses the problem')
    name = str(options["sampler"])
    if registry.asks("sampler", name, "tracker") and history.tracker is None:
        raise UserError(f"sampler '{name}' draws by the tracker's values, and no advantage here keeps a tracker")
    given = {"task_ids": task_ids, "tracker": history.tracker, "sources": history.sources, "history": history}
    own = {key: value for key, value in options.items() if key != "sampler"}
    made: Sampler = registry.make("sampler", name, own, seed=seed, batch=batch, **given)
    return made
