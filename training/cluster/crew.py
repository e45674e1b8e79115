"""Who samples and who plays in a run: here, or in the processes that `[cluster]` asks for.

The driver's side is the same: a `Replicas` over one engine or many, and something with the methods of `Episodes`.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from solostream import registry
from solostream.agent.engine import Engine, Sleeper
from solostream.agent.engines.hf.forward import refuse_other_attention
from solostream.agent.engines.vllm.engine import refuse_unknown
from solostream.agent.replicas import Replicas
from solostream.envs.data import Tasks
from solostream.errors import UserError
from solostream.training.cluster.handles import Actor, own_address, share
from solostream.training.cluster.placement import Placement, versions
from solostream.training.cluster.players import EpisodePlayer, PlayerLost, Players
from solostream.training.cluster.ranks import refuse_too_many
from solostream.training.cluster.samplers import ByTransfer, SamplerReplica, by_memory, open_remote
from solostream.training.config import Config, colocation
from solostream.training.learner.device import device_of, sampler_dtype
from solostream.training.rollouts.env_pool import Episodes, Plays
from solostream.training.run import setup
from solostream.training.run.model import config_of, sampler_model
from solostream.training.run.setup import Components

Still = Callable[[], AbstractAsyncContextManager[None]]
OwnEngine = Callable[[int], Any]  # from the number of concurrent episodes to an engine, plain or async
AWAKE = ("hf", "server")  # the engines that cannot sleep; one of your own says so once it is made


def connect(config: Config, say: Callable[[str], None]) -> Placement | None:
    """Ray, where the run has other processes than this one. Raises UserError.

    say: told what has to wait for room, and later what went wrong and was seen to.
    """
    c = config.cluster
    if not c.used:
        return None
    # As in `refuse_sampler`: a `Trainer` may be made by itself.
    _shares(config)
    _refuse_transfer(config)
    if c.transfer != "memory" and find_spec("vllm") is None:
        raise UserError(f"cluster.transfer = \"{c.transfer}\" needs vllm: pip install 'solostream[vllm]'")
    placement = Placement(c, cpus=c.learners + c.replicas + c.players, say=say)
    try:
        refuse_transfer_without_gpus(config, placement.gpus)
        if c.learners > 1:
            refuse_too_many(config, placement.cpus, placement.gpus)
    except UserError:
        placement.close()
        raise
    short = placement.lacks(c.replicas + c.players, c.replicas * gpus_of_one(config, placement.gpus))
    if short is not None:
        say(short)
    return placement


def refuse_sampler(config: Config, source: Path | None = None) -> None:
    """Raises UserError, before weights are read, for what the engine of the configuration would refuse when opened.

    source: the checkpoint that the run goes on from.
    """
    name, model = config.run.engine, config.model
    if config.rollout.colocate == "turns" and name in AWAKE:
        raise UserError(colocation.no_sleeper(f'the engine "{name}"'))
    _shares(config)
    _refuse_transfer(config)
    if name == "vllm":
        refuse_unknown(config.engine.get(name, {}))
    if name == "server":
        registry.load("engine", name)  # says what is to be installed
        from solostream.agent.engines.vllm.server import check_urls

        check_urls(config.engine.get(name, {}).get("urls", ()))
    if name == "hf" and model.path != "build":
        refuse_other_attention(config_of(model.model_copy(update={"path": str(source)}) if source else model))


def assemble(
    config: Config,
    parts: Components,
    placement: Placement | None,
    *,
    still: Still,
    engine: OwnEngine | None = None,
    rollout: Callable[..., Any] | None = None,
) -> tuple[Replicas, Plays]:
    """(what samples, what plays). still: see `Replicas`. engine, rollout: instead of what the configuration names."""
    tasks = Tasks((*parts.train, *parts.test))
    if placement is None:
        make = partial(_make, config, parts, _in_flight(config), engine, partial(_beside, config, parts))
        return Replicas([make], still=still), Episodes(config, parts, tasks, play=rollout)
    samplers = _samplers(config, parts, placement, engine)
    c = config.cluster
    send = by_memory if c.transfer == "memory" else ByTransfer(c.transfer, c.timeout_s / 4, own_address, placement.say)
    openers = [partial(open_remote, one, share, c.transfer) for one in samplers]
    policy = Replicas(openers, still=still, send=send)
    here = Episodes(config, parts, tasks, play=rollout)
    if not config.cluster.players:
        return policy, here
    plain = replace(parts, model=None)
    players = [
        placement.actor(
            EpisodePlayer, config, plain, tasks, samplers, rollout, who=f"the player {i}", cpus=1, lost=PlayerLost,
            scheduling_strategy="SPREAD",
        )
        for i in range(config.cluster.players)
    ]  # fmt: skip
    return policy, Players(config, players, here.leaves)


def gpus_of_one(config: Config, available: int) -> int:
    """GPUs that one replica takes of a cluster that has so many: none on CPUs, else what its parallelism asks for."""
    if config.model.device == "cpu" or (config.model.device == "auto" and not available):
        return 0
    if not registry.asks("engine", config.run.engine, "slots"):  # it has no model here: servers do
        return 0
    options = config.engine.get(config.run.engine, {})
    return int(options.get("tensor_parallel_size", 1)) * int(options.get("pipeline_parallel_size", 1))


def _refuse_transfer(config: Config) -> None:
    """Raises UserError for a transfer that the engine does not know, or that needs other numbers of processes."""
    transfer, name = config.cluster.transfer, config.run.engine
    if transfer == "memory":
        return
    if not registry.asks("engine", name, "transfer"):
        raise UserError(
            f'cluster.transfer = "{transfer}", but the engine "{name}" takes weights by memory alone: set run.engine = '
            '"vllm", or cluster.transfer = "memory"'
        )
    if transfer == "ipc" and config.cluster.learners + config.cluster.replicas > 2:
        raise UserError(
            'cluster.transfer = "ipc" goes through the memory of the one GPU that learner and replica share: set '
            'cluster.learners = 1 and cluster.replicas = 1, or cluster.transfer = "nccl"'
        )


def refuse_transfer_without_gpus(config: Config, gpus: int) -> None:
    """gpus: of the cluster. Raises UserError for a transfer that needs some."""
    transfer = config.cluster.transfer
    if transfer in ("nccl", "ipc") and not gpus_of_one(config, gpus):
        raise UserError(
            f'cluster.transfer = "{transfer}" is between GPUs, and this run has none: set cluster.transfer = "memory", '
            'or "gloo"'
        )


def _samplers(config: Config, parts: Components, placement: Placement, engine: OwnEngine | None) -> list[Actor]:
    n, gpus = config.cluster.replicas, gpus_of_one(config, placement.gpus)
    kind = "cuda" if gpus else "cpu"
    shape, plain = parts.model.config, replace(parts, model=None)
    slots = _in_flight(config)
    if config.rollout.mode == "async":  # else each has room for all: a seeded token depends on the number of slots
        slots = math.ceil(slots / n)
    module = partial(_alone, config, shape, kind)
    made = [partial(_make, share, plain, slots, engine, module) for share in _shares(config)]
    return [
        placement.actor(
            SamplerReplica, make, versions(), who=f"the replica {i}", cpus=1, gpus=gpus, env=_threads(config, gpus)
        )
        for i, make in enumerate(made)
    ]


def _shares(config: Config) -> list[Config]:
    """The configuration of each replica: servers are dealt out among them. Raises UserError where some get none."""
    n, name = config.cluster.replicas, config.run.engine
    urls = config.engine.get(name, {}).get("urls", ())
    if n == 1 or not urls:
        return [config] * n
    if len(urls) < n:
        raise UserError(f"cluster.replicas = {n}, and engine.{name}.urls lists {len(urls)}: set as many or fewer")
    options = ({**config.engine[name], "urls": list(urls[i::n])} for i in range(n))
    return [config.model_copy(update={"engine": {**config.engine, name: own}}) for own in options]


def _threads(config: Config, gpus: int) -> Mapping[str, str]:
    """Without GPUs the processes of a machine share its processors."""
    c = config.cluster
    return {} if gpus else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (c.learners + c.replicas)))}


async def _make(
    config: Config, parts: Components, slots: int, own: OwnEngine | None, module: Callable[[], Any]
) -> Engine:
    if own is None:
        made: Any = setup.open_engine(config, parts, slots, module)
    else:
        made = own(slots)
    engine: Engine = await made if inspect.isawaitable(made) else made
    if config.rollout.colocate == "turns" and not isinstance(engine, Sleeper):
        await engine.close()
        raise UserError(colocation.no_sleeper(f"a {type(engine).__name__}"))
    return engine


def _beside(config: Config, parts: Components) -> Any:
    return setup.module_beside(config, parts.model)


def _alone(config: Config, shape: Any, kind: str) -> Any:
    """A model for a sampler in a process of its own, on the first of the GPUs that it was given."""
    device = device_of(kind)
    return sampler_model(shape, sampler_dtype(config.model, device), device)


def _in_flight(config: Config) -> int:
    r = config.rollout
    return round(r.batch * (r.over_provision if r.mode == "async" else 1))
