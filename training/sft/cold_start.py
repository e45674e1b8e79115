"""The cold start: supervised steps on demonstrations that ran through the real environment.

A demonstration's texts are spoken by a scripted policy, so that its trajectory has the ledger, the tool outputs and the
action mask that the policy will meet. Those of step i depend on (seed, phases, i) only: a resumed run sees the same.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from statistics import fmean
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
JUDGED = 20  # steps whose mean loss ends a phase


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A problem of the training split, how it is to be solved, and what its texts are drawn with; `seed` names it."""

    task: Task
    style: Style
    seed: str


SFTBatch = tuple[Demonstration, ...]  # of one supervised step


def sft_batches(config: Config) -> list[SFTBatch]:
    """All of them, in order. Raises UserError for an unknown style, or data that has no demonstrations."""
    c, d = config.cold_start, config.data
    if c.phases and d.path is not None:
        raise UserError("cold_start needs generated problems (their reference code): remove its phases, or data.path")
    for phase in c.phases:
        unknown = sorted(set(phase.mix) - set(STYLES))
        if unknown:
            raise UserError(f"cold_start mix has '{unknown[0]}'; allowed: {', '.join(STYLES)}")
    made: list[SFTBatch] = []
    for phase in c.phases:
        first = len(made)
        fresh = -(-phase.steps // phase.epochs)
        for i in range(first, first + fresh):
            made.append(_fresh(config, phase, f"{config.run.seed}/cold start/{i}"))

        # The other epochs show the same in another order; the last one may be cut short.
        seen = [one for sft_batch in made[first:] for one in sft_batch]
        again: list[Demonstration] = []
        for epoch in range(1, phase.epochs):
            again += random.Random(f"{config.run.seed}/cold start/{first}/epoch {epoch}").sample(seen, len(seen))
        made += [tuple(again[k * c.batch : (k + 1) * c.batch]) for k in range(phase.steps - fresh)]
    return made


def _fresh(config: Config, phase: Phase, seed: str) -> SFTBatch:
    """Demonstrations of new problems."""
    n, d = config.cold_start.batch, config.data
    styles = draw_styles(n, phase.mix, random.Random(seed))  # type: ignore[arg-type]
    number = random.Random(seed + "/problems").getrandbits(48)
    tasks = generate(n, seed=number, split="train", kinds=d.kinds or None, levels=d.levels or None)
    pairs = enumerate(zip(tasks, styles, strict=True))
    return tuple(Demonstration(task, style, f"{seed}/{k}") for k, (task, style) in pairs)


def problems_of(sft_batches: Sequence[SFTBatch]) -> list[Task]:
    """Each problem once."""
    return list({one.task.id: one.task for sft_batch in sft_batches for one in sft_batch}.values())


class Demonstrations:
    """The batches of a cold start, played ahead of the learner, who says what it has learnt of each.

    A phase with `until` leaves out the rest of its steps once the losses say so. After a resume they are counted anew.
    """

    def __init__(self, config: Config, parts: Components, sft_batches: Sequence[SFTBatch]) -> None:
        self._config, self._parts, self._batches = config, parts, sft_batches
        self._ends = list(accumulate(phase.steps for phase in config.cold_start.phases))
        self._next = 0  # the first that nobody has begun to play
        self._losses: deque[float] = deque(maxlen=JUDGED)  # of the last steps of one phase
        self._phase = 0

    @property
    def steps(self) -> int:
        """All of them, those that may be left out included."""
        return len(self._batches)

    def record(self, step: int, loss: float) -> None:
        """What step `step` has cost, in nats a token: is its phase over?"""
        phase = bisect_right(self._ends, step)
        if phase != self._phase:
            self._losses.clear()
            self._phase = phase
        self._losses.append(loss)
        until = self._config.cold_start.phases[phase].until
        if until is not None and len(self._losses) == JUDGED and fmean(self._losses) < until:
            self._next = max(self._next, self._ends[phase])

    async def batches(self, start: int) -> AsyncIterator[tuple[int, list[MaskedTokens]]]:
        """Each step from `start` on and its sequences; up to `AHEAD` are played before they are asked for, and shown.

        What a later epoch shows again is played once, and kept until then.
        """
        self._next = start
        options = self._config.env.options.get("sandbox_options", {})
        episodes = Episodes(
            self._config,
            self._parts,
            Tasks(problems_of(self._batches[start:])),
            lambda **_: SharedSession(open_sandbox(self._config.env.sandbox, **options)),
        )
        to_show = Counter(one.seed for sft_batch in self._batches[start:] for one in sft_batch)
        kept: dict[str, asyncio.Task[list[MaskedTokens]]] = {}

        async def sequences(sft_batch: SFTBatch) -> list[MaskedTokens]:
            # One after the other, so that batches are ready in their order.
            shown = []
            for one in sft_batch:
                play = kept.pop(one.seed, None) or asyncio.create_task(_play(one, episodes, self._parts.tokenizer))
                to_show[one.seed] -= 1
                if to_show[one.seed]:
                    kept[one.seed] = play
                shown += await play
            return shown

        running: deque[tuple[int, asyncio.Task[list[MaskedTokens]]]] = deque()
        try:
            while True:
                while len(running) < AHEAD and self._next < self.steps:
                    running.append((self._next, asyncio.create_task(sequences(self._batches[self._next]))))
                    self._next += 1
                if not running:
                    return
                step, playing = running.popleft()
                yield step, await playing
        finally:
            for _, playing in running:
                playing.cancel()
            await asyncio.gather(*(playing for _, playing in running), return_exceptions=True)
            await episodes.close()


async def _play(shown: Demonstration, episodes: Episodes, tokenizer: Any) -> list[MaskedTokens]:
    """The sequences of one demonstration, a segment each. Raises UserError, SandboxError where it could not be."""
    texts = demonstration(shown.task, shown.style, random.Random(f"{shown.seed}/texts"))
    play = partial(_speak, texts, shown.task.id, episodes, tokenizer)
    trajectory = await play()
    if shown.style in RIGHT and _fault(trajectory) is not None:
        trajectory = await play()  # a loaded machine may have cut a call off
        if fault := _fault(trajectory):
            raise UserError(f"the demonstration of {shown.task.id} is right, and {fault}, or remove cold_start.phases")
    ids, mask = trajectory.token_ids, trajectory.action_mask
    return [(ids[start:end], mask[start:end]) for start, end in trajectory.segments]


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
