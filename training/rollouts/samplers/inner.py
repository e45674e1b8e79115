"""A run's sampler, and the sampler inside a sampler: one chooses the problem, the other the form in which it is put."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from solostream import registry
from solostream.agent.rollout import seed_of
from solostream.envs.data import Tasks
from solostream.envs.making import takes_tasks
from solostream.errors import UserError
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.config import Config
from solostream.training.rollouts.samplers.history import OutcomeHistory
from solostream.training.rollouts.task_sampler import Sampler

Of = str | dict[str, Any]  # a sampler's name, or {"sampler": name, its options}


def sampler_of_run(config: Config, tasks: Tasks, tracker: ValueTracker, *, uses_tracker: bool) -> Sampler:
    """What `algorithm.sampler` names, for the pool `tasks`. uses_tracker: an advantage keeps `tracker`.

    Raises UserError for a sampler that these tasks or this environment give nothing to choose.
    """
    a, name = config.algorithm, config.algorithm.sampler or ("prioritized" if uses_tracker else "uniform")
    if getattr(registry.load("sampler", name), "forms", ()) and not takes_tasks(config.env.id):
        raise UserError(
            f"sampler '{name}' asks for other forms of problems, and {config.env.id} draws its own: "
            "set algorithm.sampler to another"
        )
    ids, sources = [task.id for task in tasks], {task.id: task.source for task in tasks}
    history = OutcomeHistory(sources, tracker if uses_tracker else None)
    given = {"task_ids": ids, "tasks": tasks.by_id, "tracker": tracker, "sources": sources, "history": history}
    given |= {"seed": seed_of(config.run.seed, "sampler"), "batch": max(config.rollout.batch // a.group_size, 1)}
    made: Sampler = registry.make("sampler", name, config.sampler.get(name), **given)
    return made


def inner(of: Of, task_ids: Sequence[str], history: OutcomeHistory, seed: int, batch: int) -> Sampler:
    """The sampler that `of` names. Raises UserError, also for one that needs a tracker where none is kept."""
    options: Mapping[str, Any] = {"sampler": of} if isinstance(of, str) else of
    if "sampler" not in options:
        raise UserError('of = { sampler = "NAME", … } names the sampler that chooses the problem')
    name = str(options["sampler"])
    if registry.asks("sampler", name, "tasks"):
        raise UserError(f"sampler '{name}' chooses a form itself: `of` takes uniform, prioritized, dump or bands")
    if registry.asks("sampler", name, "tracker") and history.tracker is None:
        raise UserError(f"sampler '{name}' draws by the tracker's values, and no advantage here keeps a tracker")
    given = {"task_ids": task_ids, "tracker": history.tracker, "sources": history.sources, "history": history}
    own = {key: value for key, value in options.items() if key != "sampler"}
    made: Sampler = registry.make("sampler", name, own, seed=seed, batch=batch, **given)
    return made
