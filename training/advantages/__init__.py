"""From trajectories to advantages: an estimator, and stages around it.

Each is a component (`solostream.registry`): `algorithm.advantage` and `algorithm.stages` name them, `[algorithm.NAME]`
has their options. To add one: a file with the class, and a line in `registry.BUILT_IN`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from solostream import registry
from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.aspo import ASPO
from solostream.training.advantages.base import Advantage, Advantages, Grouping, shape_early_calls, standardize
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.rloo import RLOO
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.value_tracker import ValueTracker

if TYPE_CHECKING:
    from solostream.training.rollouts.task_sampler import Sampler

__all__ = [
    "ASPO",
    "GRPO",
    "RLOO",
    "SPO",
    "Advantage",
    "Advantages",
    "ValueTracker",
    "estimator",
    "grouped",
    "grouping",
    "shape_early_calls",
    "standardize",
    "tracker_of",
]

Options = Mapping[str, Mapping[str, Any]]  # component -> its options


def estimator(
    advantage: str,
    stages: Sequence[str],
    options: Options,
    tracker: ValueTracker,
    logprobs: Callable[[Sequence[Trajectory]], Sequence[Any]],
    entropies: Callable[[Sequence[Trajectory]], Sequence[Any]] | None = None,
    sampler: Sampler | None = None,
) -> list[Advantage]:
    """`advantage` and the stages around it, innermost first: the last one is what a batch goes through.

    tracker, logprobs and entropies (of the learner), sampler (of the run): handed over to those that ask for them.
    Raises UserError.
    """
    if registry.asks("advantage", advantage, "inner"):
        raise UserError(f"'{advantage}' is a stage around an estimator: name it in algorithm.stages")
    chain: list[Advantage] = []
    for name in (advantage, *stages):
        if chain and not registry.asks("advantage", name, "inner"):
            raise UserError(f"'{name}' is no stage: it takes no inner estimator; name it as algorithm.advantage")
        given = {
            "inner": chain[-1] if chain else None,
            "tracker": tracker,
            "logprobs": logprobs,
            "entropies": entropies,
            "sampler": sampler,
        }
        chain.append(registry.make("advantage", name, options.get(name), **given))
    return chain


def tracker_of(advantage: Advantage) -> ValueTracker | None:
    """The tracker that it, or an estimator inside it, keeps."""
    one: Any = advantage
    while one is not None:
        if isinstance(getattr(one, "tracker", None), ValueTracker):
            return one.tracker  # type: ignore[no-any-return]
        one = getattr(one, "inner", None)
    return None


def grouped(advantage: Advantage, group_size: int) -> bool:
    """Whether it, or an estimator inside it, compares the answers to one prompt. Raises UserError for groups of one."""
    one: Any = advantage
    while one is not None:
        wanted = grouping(one)
        if wanted == "required" and group_size < 2:
            raise UserError(f"{type(one).__name__} compares within groups: set algorithm.group_size to 2 or more")
        if wanted == "required" or (wanted == "optional" and group_size > 1):
            return True
        one = getattr(one, "inner", None)
    return False


def grouping(component: Advantage) -> Grouping:
    """Whether it compares the answers to one prompt; a component that says nothing does not."""
    found: Grouping = getattr(component, "groups", "none")
    return found
