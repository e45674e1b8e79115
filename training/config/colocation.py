"""`rollout.colocate`: what a run must keep to where one device samples and learns, and what that asks of vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solostream.errors import UserError

if TYPE_CHECKING:
    from solostream.training.config.models import Config


def check(config: Config) -> None:
    """Raises UserError."""
    how, run, options = config.rollout.colocate, config.run, config.engine.get(config.run.engine, {})
    share = options.get("gpu_memory_utilization") if run.engine == "vllm" else None
    if share is not None and not (isinstance(share, float | int) and 0 < share <= 1):
        raise UserError(
            f"engine.vllm.gpu_memory_utilization = {share!r} is no share of a GPU: set it above 0, to 1 at most"
        )
    if how == "no":
        return
    if how == "turns" and config.rollout.mode != "sync":
        raise UserError(
            f'rollout.colocate = "turns" needs rollout.mode = "sync": {config.rollout.mode} samples while it learns, '
            'for which there is rollout.colocate = "beside"'
        )
    if how == "beside" and run.engine != "vllm":
        raise UserError(
            f'rollout.colocate = "beside" sets vLLM\'s share of a GPU, and run.engine = "{run.engine}": '
            'set it to "vllm", or leave rollout.colocate out'
        )
    if config.cluster.used:
        raise UserError('rollout.colocate is for one process and one GPU: set it to "no", or leave out [cluster]')
    if max(int(options.get(f"{kind}_parallel_size", 1)) for kind in ("tensor", "pipeline", "data")) > 1:
        raise UserError("rollout.colocate is for one GPU: leave it out, or the parallel sizes of [engine.vllm]")
    if config.model.device.startswith("cuda:") and config.model.device != "cuda:0":
        raise UserError(
            f'rollout.colocate: vLLM takes the first GPU, and model.device = "{config.model.device}": '
            'choose it by CUDA_VISIBLE_DEVICES and set model.device = "cuda"'
        )


def check_device(config: Config, device: str) -> None:
    """Raises UserError where vLLM would run on a CPU, whose memory it does not share out and cannot give back."""
    if config.run.engine == "vllm" and config.rollout.colocate != "no" and device == "cpu":
        raise UserError(
            f'rollout.colocate = "{config.rollout.colocate}" is for a GPU, and this run is on a CPU: leave it out'
        )


def no_sleeper(engine: str) -> str:
    """The line for an engine, so called, that cannot give its memory back for an update."""
    return (
        f'rollout.colocate = "turns": {engine} cannot sleep while the learner computes: set run.engine = "vllm", or '
        'rollout.colocate = "no"'
    )


def takes_the_rest(config: Config) -> bool:
    """Whether vLLM's share is what the learner leaves, because nobody has named another."""
    options = config.engine.get("vllm", {})
    named = options.get("gpu_memory_utilization") is not None
    return config.run.engine == "vllm" and config.rollout.colocate != "no" and not named


def sleeping(config: Config) -> dict[str, Any]:
    """vLLM's engine arguments for an engine that can sleep."""
    return {"enable_sleep_mode": True} if config.run.engine == "vllm" and config.rollout.colocate == "turns" else {}
