"""The quickstart's reinforcement learning by TRL's GRPOTrainer: its own batching, loss and update, our environment.

Episodes are played in rounds (`rounds.py`), as TRL's own tool loop plays them. Rendering, stops, environment and
sandbox are ours, so that both sides answer the same problems in the same words.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset
from transformers import TrainerCallback

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # a warning each that `rollout_func` may change
from trl import GRPOConfig, GRPOTrainer

from benchmarks.end_to_end_parts.rounds import Rounds
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.training.config import Config
from solostream.training.rollouts.env_pool import Episodes
from solostream.training.run.setup import Components

GROUP, MICRO = 8, 32


class Tells(Protocol):
    """Whoever counts what the steps cost."""

    def on_start(self, step: int = 0) -> None:
        """Before the first episode."""
        ...

    def tell(self, step: int, reward: float) -> None:
        """After a step, with the mean reward of its trajectories."""
        ...


def learn(config: Config, parts: Components, steps: int, batch: int, clock: Tells, save: Path) -> None:
    """`steps` updates of `batch` trajectories, groups of 8; the model and its tokenizer end in `save`."""
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
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.on_start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.tell(state.global_step, sum(played[-batch:]) / batch)

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
