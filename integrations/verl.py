"""For verl: our episodes as its agent loop "solostream", our advantages as its estimator "solostream".

verl keeps models, optimizer, losses, placement and the transfer of weights. What stays here: environments and
sandboxes, one value a task (SPO), shaping (ASPO), the log. Both sides meet in a `Book`, an actor of verl's own Ray job,
because verl hands an estimator of one's own nothing but rewards, mask and `uid`.

`VERL_USE_EXTERNAL_MODULES=solostream.integrations.verl` makes every process of verl import this file. How it is set up,
and what verl cannot express, is in docs/how-to/verl.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import ray
import torch
from omegaconf import OmegaConf
from torch import Tensor
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
from verl.trainer.ppo.core_algos import register_adv_est

from solostream.agent.chat_template import Chat
from solostream.agent.engine import EngineError, Generation, Sampling, Weights
from solostream.agent.rollout import fit_to, rollout
from solostream.agent.trajectory import Trajectory
from solostream.envs import making
from solostream.envs.data.layouts.verl import Verl
from solostream.envs.data.loader import Tasks
from solostream.envs.data.rows import Reader
from solostream.errors import SandboxError, UserError
from solostream.integrations.verl_book import Book

NAME = "solostream"  # of the agent loop, of the estimator, and of the actor that both know


class VerlEngine:
    """An `Engine` of one episode over verl's client of its inference servers.

    params: verl's sampling parameters of this batch. uid: keeps the episode on one server.
    """

    def __init__(self, servers: Any, params: Mapping[str, Any], uid: str, version: int) -> None:
        self._servers, self._params, self._uid, self.version = servers, dict(params), uid, version

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Temperature, top-p and top-k are verl's. Raises UserError when verl does not keep log-probabilities."""
        asked = {
            **self._params,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "stop": list(sampling.stop),
            "stop_token_ids": list(sampling.stop_token_ids),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
        }
        said = await self._servers.generate(request_id=self._uid, prompt_ids=list(prompt_ids), sampling_params=asked)
        ids = list(said.token_ids)
        if ids and not said.log_probs:
            raise UserError("the log-probabilities of the sampler are missing: set rollout.calculate_log_probs=True")
        version = said.extra_fields.get("global_steps")
        versions = [self.version if version is None else version] * len(ids)
        logprobs = list(said.log_probs or ())
        if said.stop_reason == "aborted":
            return Generation(ids, logprobs, versions, "abort")
        return Generation(ids, logprobs, versions, "length" if len(ids) >= sampling.max_tokens else "stop")

    async def release(self, key: str) -> None:
        """Nothing to do: the servers drop what was used longest ago."""

    async def load_weights(self, weights: Weights, version: int) -> None:
        """Raises EngineError: the trainer sends them itself."""
        raise EngineError("verl's trainer sends the weights to its servers")

    async def close(self) -> None:
        """Nothing to do: the servers are verl's."""


@register(NAME)
class Episodes(AgentLoopBase):  # type: ignore[misc]  # verl has no annotations
    """One episode of one of our environments on the problem of a row, whose columns `envs.data.layouts.verl` reads.

    env, env_options: as `env.id` and `[env.options]`. template: `model.chat_template`. book: keywords of `Book`.
    """

    def __init__(
        self,
        *args: Any,
        env: str = "solostream/Math-v0",
        env_options: Mapping[str, Any] | None = None,
        template: str | None = None,
        book: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._env, self._options = env, _plain(env_options)
        self._chat = Chat(self.tokenizer, template)
        self._book = _book(OmegaConf.to_yaml(OmegaConf.create(_plain(book))))

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """kwargs: the row. Raises SandboxError where the infrastructure failed: verl drops the prompt."""
        task = Reader("verl", layout=Verl()).task({**kwargs, "prompt": list(kwargs["raw_prompt"])})
        uid, version = str(kwargs["uid"]), kwargs.get("global_steps")
        dispatch = await self._book.dispatch.remote(task.id, None if version is None else int(version))
        environment = making.make(
            self._env, {"tokenizer": lambda: self.tokenizer, **self._options, "tasks": Tasks([task])}
        )
        try:
            trajectory = await rollout(
                environment,
                VerlEngine(self.server_manager, sampling_params, uid, dispatch.version),
                self._chat,
                sampling=Sampling(self.rollout_config.response_length),
                max_tokens=await self._room(environment, task.id),
                task_id=task.id,
                dispatch=dispatch,
                seed=dispatch.event,
            )
        finally:
            await environment.aclose()
        if trajectory.ending == "infra":
            raise SandboxError(f"the sandbox failed on task {task.id}; see the log of the agent loop's worker")
        await self._book.finish.remote(uid, trajectory)
        return output(trajectory)

    async def _room(self, environment: Any, task_id: str) -> int:
        """Tokens of the whole ledger: the opening, and verl's `response_length` behind it."""
        fit_to(self._chat, environment)
        _, info = await environment.areset(options={"task_id": task_id})
        opening = len(self._chat.open(info["messages"], environment.tools))
        if opening > self.rollout_config.prompt_length:
            raise UserError(f"a prompt of {opening} tokens: raise data.max_prompt_length, instructions count as well")
        return opening + int(self.rollout_config.response_length)


def output(trajectory: Trajectory) -> AgentLoopOutput:
    """What verl trains on. Its reward is the environment's, so that no reward function of verl is asked."""
    start, mask = trajectory.prompt_length, trajectory.action_mask
    versions = trajectory.versions[mask]
    return AgentLoopOutput(
        prompt_ids=trajectory.token_ids[:start].tolist(),
        response_ids=trajectory.token_ids[start:].tolist(),
        response_mask=mask[start:].astype(int).tolist(),
        response_logprobs=np.nan_to_num(trajectory.logprobs[start:]).tolist(),
        reward_score=float(trajectory.reward),
        num_turns=len(trajectory.turns),
        metrics=AgentLoopMetrics(),
        extra_fields={
            "turn_scores": [],
            "tool_rewards": [],
            "reward_extra_info": {},
            "min_global_steps": int(versions.min(initial=trajectory.dispatch.version)),
            "max_global_steps": int(versions.max(initial=trajectory.dispatch.version)),
        },
    )


@register_adv_est(NAME)  # type: ignore[untyped-decorator]
def advantages(
    token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Advantages and, equal to them, returns, float32 [rows, response tokens]; 0 where the policy did not speak.

    token_level_rewards, response_mask: [rows, response tokens]. index: verl's `uid` of each row. Raises UserError.
    """
    book = ray.get_actor(NAME)
    uids, rewards = [str(uid) for uid in index], token_level_rewards.sum(-1).tolist()
    values: list[np.ndarray] = ray.get(book.advantages.remote(uids, rewards))
    found = torch.zeros(response_mask.shape, dtype=torch.float32, device=response_mask.device)
    for row, mask, value in zip(found, response_mask.bool(), values, strict=True):
        if int(mask.sum()) != len(value):
            raise UserError("verl's mask leaves out tokens that were sampled: switch algorithm.rollout_correction off")
        row[mask] = torch.as_tensor(value, dtype=torch.float32, device=row.device)
    return found, found


@cache
def _book(settings: str) -> Any:
    """The actor, made by whichever loop comes first and kept alive by it. settings: keywords of `Book`, as YAML."""
    made: Any = ray.remote(Book).options(name=NAME, get_if_exists=True, num_cpus=0)
    return made.remote(**_plain(OmegaConf.create(settings)))


def _plain(section: Any) -> dict[str, Any]:
    """A section of verl's configuration as dictionaries and lists."""
    return dict(OmegaConf.to_container(OmegaConf.create(dict(section or {})), resolve=True))
