"""What a configuration must keep to where episodes branch, and where they anneal: said before anything is computed.

A tree has `algorithm.group_size` leaves. Which advantages can judge leaves that begin alike, each says by an attribute
`trees`: "required" of stages that read trees, "refused" of estimators that need independent answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from solostream import registry
from solostream.errors import UserError

if TYPE_CHECKING:
    from solostream.training.config.models import Config


def check(config: Config) -> None:
    """Raises UserError."""
    strategy, a = config.rollout.strategy, config.algorithm
    branches = registry.asks("rollout", strategy, "leaves")
    wanted = {name: getattr(registry.load("advantage", name), "trees", "allowed") for name in a.components}
    for name, trees in wanted.items():
        if trees == "required" and not branches:
            raise UserError(
                f"stage '{name}' reads trees, and rollout.strategy = '{strategy}' grows none: "
                "set it to arpo, aepo, latr or segments"
            )
        if trees == "refused" and branches:
            raise UserError(
                f"advantage '{name}' needs answers that are independent, and leaves of a tree begin alike: "
                "set algorithm.advantage to spo, grpo or dr_grpo, or rollout.strategy = 'episode'"
            )
    if branches and a.group_size < 2:
        raise UserError(
            f"rollout.strategy = '{strategy}' grows trees: set algorithm.group_size to their leaves, 2 or more"
        )
    if branches and config.rollout.learn_in_parts > 1:
        raise UserError(
            f"rollout.strategy = '{strategy}' grows trees, which land whole: set rollout.learn_in_parts = 1"
        )
    if branches:
        registry.make("rollout", strategy, (config.rollout.model_extra or {}).get(strategy), leaves=a.group_size)
    elif (fitting := getattr(registry.load("rollout", strategy), "check", None)) is not None:
        fitting(**registry.check("rollout", strategy, (config.rollout.model_extra or {}).get(strategy) or {}))
    _check_beside(config)


def _check_beside(config: Config) -> None:
    """Raises UserError for what a strategy, or a stage that reads trees, needs of other settings."""
    strategy, a = config.rollout.strategy, config.algorithm
    if "prefix_once" in a.components[:-1]:
        raise UserError("stage 'prefix_once' adds up what all others gave: name it last in algorithm.stages")
    if "prefix_once" in a.components and config.learner.aggregation != "token_mean":
        raise UserError("stage 'prefix_once' adds up tokens that weigh alike: set learner.aggregation = 'token_mean'")
    if strategy == "ead" and not config.learner.tis_cap:
        raise UserError(
            "rollout.strategy = 'ead' samples at other temperatures than the learner scores at: "
            "set learner.tis_cap = 2.0, which weighs that out"
        )
