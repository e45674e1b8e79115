"""What a run cannot sample with, said by the plan and by the run before any weights are read."""

from __future__ import annotations

from pathlib import Path

from solostream import registry
from solostream.agent.engines.hf.forward import refuse_other_attention
from solostream.errors import UserError
from solostream.training.config import Config, colocation
from solostream.training.run.model import config_of

AWAKE = ("hf", "server")  # the engines that cannot sleep; one of your own says so once it is made


def refuse_sampler(config: Config, source: Path | None = None) -> None:
    """Raises UserError for what the engine that the configuration names would refuse once it is opened.

    source: the checkpoint that the run goes on from.
    """
    name, model = config.run.engine, config.model
    if config.rollout.colocate == "turns" and name in AWAKE:
        raise UserError(colocation.no_sleeper(f'the engine "{name}"'))
    if name == "server":
        registry.load("engine", name)  # says what is to be installed
        from solostream.agent.engines.vllm.server import check_urls

        check_urls(config.engine.get(name, {}).get("urls", ()))
    if name == "hf" and model.path != "build":
        refuse_other_attention(config_of(model.model_copy(update={"path": str(source)}) if source else model))
