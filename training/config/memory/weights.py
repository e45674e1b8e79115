"""Which weights a run's phases train, and what of them travels to what samples."""

from __future__ import annotations

from solostream.training.config.learner import LearnerConfig
from solostream.training.config.models import Config

COLD_START, REINFORCEMENT = "the cold start", "reinforcement"  # the phases of a run
SECTIONS = {COLD_START: "cold_start.learner", REINFORCEMENT: "learner"}  # where each says how it trains
# layers that an adapter may sit on and still travel alone
PROJECTIONS = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
LARGEST_RANK = 512  # of an adapter in vLLM


def learners(config: Config) -> dict[str, LearnerConfig]:
    """Phase of the run -> what trains in it; one after the other."""
    begun = {COLD_START: config.cold_start.learner} if config.cold_start.phases or config.cold_start.data else {}
    return {**begun, REINFORCEMENT: config.learner}


def only_adapters(config: Config) -> bool:
    """Whether the weights under the adapters are never trained, not in a cold start either."""
    return config.learner.lora is not None and not (config.cold_start.phases or config.cold_start.data)


def untouched(config: Config) -> bool:
    """Whether the weights under the adapters are those that lie where `model.path` says."""
    return only_adapters(config) and config.model.path != "build"


def small_base(config: Config) -> bool:
    """Whether the weights under adapters stay in `model.dtype`: no phase trains them.

    Those of a cold start are merged into them once, which rounds as what samples them in bfloat16 is rounded.
    """
    return all(c.lora is not None for c in learners(config).values())


def rank_to_send(config: Config) -> int:
    """The rank of adapters that can travel without the base under them; 0 where whole weights, merged, have to.

    The engine loads the base from the folder that training begins with, so nothing may have changed it (in 4 bits it is
    another model), and vLLM knows adapters of the layers in `PROJECTIONS` for certain. Replicas in other processes get
    whole weights.
    """
    lora, targets = config.learner.lora, config.learner.lora and config.learner.lora.targets
    if lora is None or not untouched(config) or config.model.dtype == "4bit":
        return 0
    known = targets == "all-linear" or (not isinstance(targets, str) and set(targets or ()) <= PROJECTIONS)
    return lora.rank if known and lora.rank <= LARGEST_RANK and not config.cluster.used else 0
