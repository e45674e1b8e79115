"""The cold start: supervised steps on demonstrations that ran through the real environment.

A demonstration's texts are spoken by a scripted policy, so that its trajectory has the ledger, the tool outputs and the
action mask that the policy will meet. Demonstrations of step i depend on (seed, i) only: a resumed run sees the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from solostream.agent.engine import Generation, Sampling, Weights
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.envs.data import Tasks
from solostream.envs.data.arithmetic import generate
from solostream.envs.types import Task
from solostream.errors import SandboxError, UserError
from solostream.sandbox.spec import open_sandbox
from solostream.training.config import Config, Phase
from solostream.training.learner.packing import MaskedTokens
from solostream.training.rollouts.env_pool import Episodes
from solostream.training.run.setup import Components
from solostream.training.sft.demonstrations import RIGHT, STYLES, Style, demonstration, draw_styles
from solostream.training.sft.shared_session import SharedSession

AHEAD = 4  # batches of demonstrations that may wait for the learner


@dataclass(frozen=True, slots=True)
class SFTBatch:
    """One supervised step: problems of the training split and how each is to be solved."""

    tasks: tuple[Task, ...]
    styles: tuple[Style, ...]
    seed: str


def sft_batches(config: Config) -> list[SFTBatch]:
    """All of them, in order. Raises UserError for an unknown style, or data that has no demonstrations."""
    c, d = config.cold_start, config.data
    if c.phases and d.path is not None:
        raise UserError("cold_start needs generated problems (their reference code): remove its phases, or data.path")
    for phase in c.phases:
        unknown = sorted(set(phase.mix) - set(STYLES))
        if unknown:
            raise UserError(f"cold_start mix has '{unknown[0]}'; allowed: {', '.join(STYLES)}")
    phases: list[Phase] = [phase for phase in c.phases for _ in range(phase.steps)]
    made = []
    for i, phase in enumerate(phases):
        seed = f"{config.run.seed}/cold start/{i}"
        styles = draw_styles(c.batch, phase.mix, random.Random(seed))  # type: ignore[arg-type]
        number = random.Random(seed + "/problems").getrandbits(48)
        tasks = generate(c.batch, seed=number, split="train", kinds=d.kinds or None, levels=d.levels or None)
        made.append(SFTBatch(tuple(tasks), tuple(styles), seed))
    return made


async def demonstrate(
    config: Config, parts: Components, sft_batches: Sequence[SFTBatch]
) -> AsyncIterator[list[MaskedTokens]]:
    """The sequences of each sft_batch; up to `AHEAD` sft_batches are played before they are asked for."""
    tasks = Tasks({task.id: task for sft_batch in sft_batches for task in sft_batch.tasks}.values())
    options = config.env.options.get("sandbox_options", {})
    episodes = Episodes(config, parts, tasks, lambda **_: SharedSession(open_sandbox(config.env.sandbox, **options)))
    running: list[asyncio.Task[list[MaskedTokens]]] = []
    rest = iter(sft_batches)
    try:
        while True:
            while len(running) < AHEAD and (sft_batch := next(rest, None)) is not None:
                running.append(asyncio.create_task(_play(sft_batch, episodes, parts.tokenizer)))
            if not running:
                return
            yield await running.pop(0)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await episodes.close()


async def _play(sft_batch: SFTBatch, episodes: Episodes, tokenizer: Any) -> list[MaskedTokens]:
    """One after the other, so that sft_batches are ready in their order."""
    rng = random.Random(f"{sft_batch.seed}/texts")
    played = []
    for task, style in zip(sft_batch.tasks, sft_batch.styles, strict=True):
        texts = demonstration(task, style, rng)
        play = partial(_speak, texts, task.id, episodes, tokenizer)
        trajectory = await play()
        if style in RIGHT and _fault(trajectory) is not None:
            trajectory = await play()  # a loaded machine may have cut a call off
            if fault := _fault(trajectory):
                raise UserError(f"the demonstration of {task.id} is right, and {fault}, or remove cold_start.phases")
        ids, mask = trajectory.token_ids, trajectory.action_mask
        played += [(ids[start:end], mask[start:end]) for start, end in trajectory.segments]
    return played


async def _speak(texts: Sequence[str], task_id: str, episodes: Episodes, tokenizer: Any) -> Trajectory:
    """One demonstration, played. Raises UserError, SandboxError where it could not be."""
    script = Script(texts, tokenizer)
    trajectory = await episodes.play(script, task_id, episodes.sampling(1.0), Dispatch(), 0)
    if trajectory.ending == "infra":
        grading = trajectory.grading
        if grading is not None and grading.failure:
            raise UserError(f"a demonstration has no reward: {grading.failure}. Is it one for these data?")
        raise SandboxError(f"the demonstration of {task_id} failed; check the sandbox: solostream sandbox check")
    return trajectory


def _fault(trajectory: Trajectory) -> str | None:
    """What went wrong where code and answer are right, and the remedy: it would teach that."""
    for execution in (execution for turn in trajectory.turns for execution in turn.executions):
        if execution is not None and execution.error is not None:
            error = " ".join(f"{execution.error.name}: {execution.error.message}".split())[:200]
            return f"its code failed in the sandbox with {error}; see what sessions lack (solostream doctor)"
    if trajectory.reward > 0:
        return None
    return (
        f"it ended as {trajectory.ending} with {_read(trajectory.answer)} and no reward; it calls in a ```python fence "
        "and answers in \\boxed{}: let env.options (syntax, answer) and the reward take these, and env.max_turns and "
        "env.episode_tokens leave room"
    )


def _read(answer: str | None) -> str:
    return "no answer that was read" if answer is None else f"the answer {answer[:40]}"


class Script:
    """An `Engine` that says given texts: a deterministic policy, so every logprob is 0 (probability 1)."""

    version = 0

    def __init__(self, texts: Sequence[str], tokenizer: Any) -> None:
        self._turns = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        self._turns[-1].append(tokenizer.eos_token_id)
        self._next = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """The next text of the script, whatever the prompt. Raises IndexError after the last."""
        ids = self._turns[self._next]
        self._next += 1
        return Generation(ids, [0.0] * len(ids), [0] * len(ids), "stop")

    async def release(self, key: str) -> None:
        """Nothing is kept for an episode."""

    async def load_weights(self, weights: Weights, version: int) -> None:
        """A script has no weights."""

    async def close(self) -> None:
        """There is nothing to close."""
