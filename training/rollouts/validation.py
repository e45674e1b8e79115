"""Held-out evaluation with the trainer's own episodes: sampled, greedy, and without the tool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from solostream.agent.engine import Engine, Generation, Sampling, Weights
from solostream.agent.rollout import seed_of
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.envs.types import Task
from solostream.evaluation.metrics import mean_of
from solostream.training.batch import Batch
from solostream.training.config import Config
from solostream.training.rollouts.env_pool import Plays
from solostream.training.rollouts.request import RolloutRequest
from solostream.training.rollouts.retry import RetryPolicy
from solostream.training.run.summary import Scores, by_problem, scores

# How an answer opens, by the environment's answer style.
OPENINGS = {
    "boxed": "\\boxed{",
    "auto": "\\boxed{",
    "tag": "<answer>",
    "line": "Answer: ",
    "last_number": "The answer is ",
}


class DirectAnswer:
    """The policy of `engine`, with every turn begun for it by the tokens `opening` (certain, so their logprob is 0)."""

    def __init__(self, engine: Engine, opening: Sequence[int]) -> None:
        self.version, self._engine, self.opening = engine.version, engine, list(opening)
        self._open: dict[str | None, list[int]] = {}  # episode -> its context where the last part of a turn ended

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """The engine's turn behind the given opening, whose tokens count as the policy's with log-probability 0.

        What goes on where the episode's last part ended (an engine may give up in the middle) is not opened again.
        """
        prompt = list(prompt_ids)
        goes_on = prompt == self._open.get(sampling.key)
        part = await (self._engine.generate(prompt, sampling) if goes_on else self._begun(prompt, sampling))
        self._open[sampling.key] = prompt + part.token_ids
        return part

    async def _begun(self, prompt_ids: list[int], sampling: Sampling) -> Generation:
        n = len(self.opening)
        left = sampling.max_tokens - n
        if left < 1:  # the opening is cut where the turn's room ends
            cut = self.opening[: sampling.max_tokens]
            return Generation(cut, [0.0] * len(cut), [self.version] * len(cut), "length")
        rest = await self._engine.generate([*prompt_ids, *self.opening], replace(sampling, max_tokens=left))
        return Generation(
            self.opening + rest.token_ids, [0.0] * n + rest.logprobs, [self.version] * n + rest.versions, rest.finish
        )

    async def release(self, key: str) -> None:
        """As the engine's."""
        self._open.pop(key, None)
        await self._engine.release(key)

    async def load_weights(self, weights: Weights, version: int) -> None:
        """As the engine's."""
        await self._engine.load_weights(weights, version)

    async def close(self) -> None:
        """The engine is not its own: nothing to close."""


class Validation:
    """Plays the held-out problems. Seeds follow from the problem: before and after draw the same random numbers."""

    def __init__(self, config: Config, tasks: Sequence[Task], tokenizer: Any, engine: Engine, episodes: Plays) -> None:
        self._config, self._tasks, self._tokenizer = config, list(tasks), tokenizer
        self._engine, self._episodes = engine, episodes

    @property
    def total(self) -> int:
        """Episodes of one evaluation."""
        return len(self._tasks) * (self._config.eval.samples + self._config.eval.greedy)

    async def scores(self, advance: Callable[[], None]) -> tuple[Scores, dict[str, float]]:
        """Play every problem as configured, sampled and greedy: (scores, task id -> mean reward of what was sampled).

        advance: called after each episode.
        """
        e = self._config.eval
        sampled, greedy = await asyncio.gather(
            self._play(self._episodes.sampling(e.temperature), e.samples, advance),
            self._play(self._episodes.sampling(0.0), int(e.greedy), advance),
        )
        return scores(sampled, greedy), by_problem(sampled)

    async def no_tool_accuracy(self, advance: Callable[[], None]) -> float | None:
        """Sampled accuracy of the policy when it must answer at once: what it can guess. Episodes with code count 0."""
        opening = OPENINGS.get(self._config.env.options.get("answer", "boxed"), "")
        engine = DirectAnswer(self._engine, self._tokenizer.encode(opening, add_special_tokens=False))
        played = await self._play(self._episodes.sampling(self._config.eval.temperature), 1, advance, engine)
        return mean_of([t.reward if t.n_calls == 0 else 0.0 for t in played])

    async def _play(
        self, sampling: Sampling, samples: int, advance: Callable[[], None], engine: Engine | None = None
    ) -> Batch:
        policy = engine or self._engine

        async def play(request: RolloutRequest) -> Trajectory:
            return await self._episodes.play(policy, request.task_id, sampling, request.dispatch, request.seed)

        retry = RetryPolicy(play, retries=self._config.rollout.retries, patience=len(self._tasks))

        async def one(task_id: str, sample: int) -> Trajectory | None:
            seed = seed_of(self._config.run.seed, "held out", task_id, sample)
            trajectory = await retry.run(RolloutRequest(task_id, seed, Dispatch()))
            advance()
            return trajectory

        played = await asyncio.gather(*(one(task.id, i) for task in self._tasks for i in range(samples)))
        return Batch(trajectory for trajectory in played if trajectory is not None)
