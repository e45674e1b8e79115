"""The quickstart's reinforcement learning by TRL's GRPOTrainer: its own batching, loss and update, our environment.

Episodes are played as TRL's own tool loop plays them: transformers' `generate` over all that have not ended, then every
tool call, then `generate` again over what goes on. Rendering, stops, environment and sandbox are ours, so that both
sides answer the same problems in the same words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from solostream.agent.engine import Generation, Sampling
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.training.config import Config
from solostream.training.rollouts.env_pool import Episodes
from solostream.training.run.setup import Components

GROUP, MICRO = 8, 32


class Rounds:
    """An engine: one `generate` a round, when every episode that goes on waits for it."""

    def __init__(self, tokenizer: Any) -> None:
        self.version, self.model, self._tokenizer, self.playing = 0, None, tokenizer, 0
        self._waiting: list[tuple[list[int], Sampling, asyncio.Future[Generation]]] = []

    async def generate(self, prompt_ids: Any, sampling: Sampling) -> Generation:
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(prompt_ids), sampling, future))
        self._go()
        return await future

    async def release(self, key: str) -> None:
        self.playing -= 1
        self._go()

    def _go(self) -> None:
        if self._waiting and len(self._waiting) == self.playing:
            batch, self._waiting = self._waiting, []
            for (_, _, future), made in zip(batch, self._round(batch), strict=True):
                future.set_result(made)

    @torch.no_grad()
    def _round(self, batch: list[Any]) -> list[Generation]:
        width = max(len(ids) for ids, _, _ in batch)
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p, _, _ in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _, _ in batch])
        sampling = batch[0][1]
        out = self.model.generate(  # type: ignore[attr-defined]
            ids,
            attention_mask=mask,
            max_new_tokens=max(s.max_tokens for _, s, _ in batch),
            do_sample=True,
            top_k=0,
            pad_token_id=pad,
            eos_token_id=[self._tokenizer.eos_token_id, *sampling.stop_token_ids],
            stop_strings=list(sampling.stop) or None,
            tokenizer=self._tokenizer,
        )[:, width:]
        return [self._cut(row.tolist(), s.max_tokens) for row, (_, s, _) in zip(out, batch, strict=True)]

    def _cut(self, row: list[int], limit: int) -> Generation:
        while len(row) > 1 and row[-1] == self._tokenizer.pad_token_id:  # what ended before the round did
            row.pop()
        ended, row = len(row) <= limit, row[:limit]
        finish = "stop" if ended and len(row) < limit else "length"
        return Generation(row, [-1.0] * len(row), [0] * len(row), finish)


def learn(
    config: Config, parts: Components, steps: int, batch: int, tell: Callable[[int, float], None], save: Path
) -> None:
    """`steps` updates of `batch` trajectories, groups of 8. tell: of each step, what it has cost and its reward."""
    engine, loop = Rounds(parts.tokenizer), asyncio.new_event_loop()
    episodes = Episodes(config, parts, parts.train)
    played: list[float] = []

    async def play(task_ids: list[str], first: int) -> list[Trajectory]:
        sampling, engine.playing = episodes.sampling(1.0), len(task_ids)
        one = (
            episodes.play(engine, task_id, sampling, Dispatch(), first + i)  # type: ignore[arg-type]
            for i, task_id in enumerate(task_ids)
        )
        return list(await asyncio.gather(*one))

    def rollouts(prompts: list[str], trainer: Any) -> dict[str, Any]:
        engine.model = trainer.accelerator.unwrap_model(trainer.model)
        done = loop.run_until_complete(play(prompts, len(played)))
        played.extend(t.reward for t in done)
        return {
            "prompt_ids": [t.token_ids[: t.prompt_length].tolist() for t in done],
            "completion_ids": [t.token_ids[t.prompt_length :].tolist() for t in done],
            "env_mask": [t.action_mask[t.prompt_length :].astype(int).tolist() for t in done],
            "logprobs": None,
            "score": [t.reward for t in done],
        }

    class Told(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell(state.global_step, sum(played[-batch:]) / batch)

    def score(completions: Any, score: list[float], **_: Any) -> list[float]:
        return score

    trainer = GRPOTrainer(
        parts.model,
        [score],
        GRPOConfig(
            str(save / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=min(MICRO, batch),
            gradient_accumulation_steps=max(batch // MICRO, 1),
            num_generations=GROUP,
            max_completion_length=config.env.episode_tokens,
            learning_rate=config.learner.lr,
            lr_scheduler_type="linear",
            beta=0.0,
            loss_type="dapo",
            epsilon_high=0.28,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            seed=config.run.seed,
        ),
        Dataset.from_dict({"prompt": [task.id for task in parts.train]}),
        processing_class=parts.tokenizer,
        rollout_func=rollouts,
        callbacks=[Told()],
    )
    trainer.train()
    loop.run_until_complete(episodes.close())
    loop.close()
    parts.model.save_pretrained(save)
    parts.tokenizer.save_pretrained(save)
