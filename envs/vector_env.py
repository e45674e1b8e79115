"""`ToolVectorEnv`: N episodes side by side on one event loop; a slow tool call holds up no other episode.

`gymnasium.make_vec(id, num_envs, **kwargs)` builds it; `autoreset_mode` is one more keyword. Observations and actions
are tuples of strings. Rewards, ends of episodes and infos follow Gymnasium's conventions for each autoreset mode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from solostream.envs import data
from solostream.envs.tool_env import ToolEnv
from solostream.errors import UserError
from solostream.sandbox.interpreter import wait

Arrays = tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
Result = tuple[str, float, bool, bool, dict[str, Any]]


class ToolVectorEnv(VectorEnv[tuple[str, ...], Sequence[str], np.ndarray]):
    """`reset`/`step` wait for `areset`/`astep`. Keywords other than these two go to every `ToolEnv`."""

    def __init__(
        self, num_envs: int = 1, *, autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, **kwargs: Any
    ) -> None:
        self.num_envs = num_envs
        if "tasks" in kwargs:
            kwargs["tasks"] = data.tasks(kwargs["tasks"])  # once for all
        self.envs = [ToolEnv(**kwargs) for _ in range(num_envs)]
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**ToolEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = self.envs[0].render_mode
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._observations = [""] * num_envs

    async def areset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Reset all environments, or those in options["reset_mask"] (bool, shape (num_envs,)).

        seed: one for each environment, or an int n for n, n + 1, ….
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise UserError(f"reset_mask must be a bool array of shape ({self.num_envs},) with at least one True")
        if seed is None or isinstance(seed, int | np.integer):
            seeds: list[int | None] = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise UserError(f"{len(seeds)} seeds for {self.num_envs} environments")
        chosen = np.flatnonzero(mask).tolist()
        results = await _together(self.envs[i].areset(seed=seeds[i], options=options) for i in chosen)
        infos: dict[str, Any] = {}
        for i, (observation, info) in zip(chosen, results, strict=True):
            self._observations[i] = observation
            infos = self._add_info(infos, info, i)
        return tuple(self._observations), infos

    async def astep(self, actions: Sequence[str]) -> Arrays:
        """One turn in every environment. The first SandboxError is raised after all others have finished.

        The episode that failed is then over, and reset as one that ended is; the others go on where they are.
        """
        if len(actions) != self.num_envs:
            raise UserError(f"{len(actions)} actions for {self.num_envs} environments")
        if any(env.task is None for env in self.envs):
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        over = [i for i, env in enumerate(self.envs) if env.over]
        if over and self.autoreset_mode is AutoresetMode.DISABLED:
            raise UserError(f"episodes {over} are over: reset(options={{'reset_mask': …}}) before the next step")
        results = await _together(self._one(i, action) for i, action in enumerate(actions))
        infos: dict[str, Any] = {}
        for i, (observation, _, _, _, info) in enumerate(results):
            self._observations[i] = observation
            if "final_info" in info:
                final = {key: info.pop(key) for key in ("final_obs", "final_info")}
                infos = self._add_info(infos, final, i)
            infos = self._add_info(infos, info, i)
        rewards = np.array([result[1] for result in results], np.float64)
        terminated = np.array([result[2] for result in results], bool)
        truncated = np.array([result[3] for result in results], bool)
        return tuple(self._observations), rewards, terminated, truncated, infos

    async def _one(self, i: int, action: str) -> Result:
        env = self.envs[i]
        if env.over:
            observation, info = await env.areset()
            return observation, 0.0, False, False, info
        observation, reward, terminated, truncated, info = await env.astep(action)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and (terminated or truncated):
            first, first_info = await env.areset()
            return first, reward, terminated, truncated, {**first_info, "final_obs": observation, "final_info": info}
        return observation, reward, terminated, truncated, info

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """As `areset`, for callers without an event loop."""
        return wait(self.areset(seed=seed, options=options))

    def step(self, actions: Sequence[str]) -> Arrays:
        """As `astep`, for callers without an event loop."""
        return wait(self.astep(actions))

    def render(self) -> tuple[str | None, ...]:  # type: ignore[override]
        """The transcript of every environment, for `render_mode="ansi"`."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Called once by `close`."""
        for env in self.envs:
            env.close()


async def _together(work: Iterable[Any]) -> list[Any]:
    """Wait for all, then raise the first failure: no episode is left running behind the caller's back."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
