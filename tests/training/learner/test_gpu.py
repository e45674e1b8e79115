"""What a GPU must not change. Skipped where there is none: `scripts/gpu_check.sh` runs it on a machine that has one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from solostream.agent.engine import Sampling
from solostream.agent.engines.hf import HFEngine
from solostream.agent.trajectory import TokenRecord, Trajectory
from solostream.training.advantages.base import Advantages, per_token
from solostream.training.batch import Batch
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.learner import Learner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NAMES = [name for name in tiny_models.MODELS if name != "gpt2"]


def skewed(learner: Learner, count: int = 9) -> Batch:
    """On-policy trajectories of lengths from 7 to 40 tokens."""
    rng = np.random.default_rng(5)
    batch: list[Trajectory] = []
    for i in range(count):
        prompt, response = rng.integers(2, 60, 3).tolist(), rng.integers(2, 60, int(rng.integers(4, 37))).tolist()
        logprobs = [-1.0] * len(response)
        for _ in range(2):  # the second time with the policy's own log-probabilities
            record = TokenRecord()
            record.add_observation("user", prompt, "")
            record.add_action(response, logprobs, [0] * len(response), "")
            one = record.close(f"t{i}", float(i % 2), "answered")
            logprobs = learner.logprobs([one])[0].tolist()
        batch.append(one)
    return Batch(tuple(batch))


def weighed(batch: Batch) -> Advantages:
    values = np.random.default_rng(7).normal(size=len(batch))
    return Advantages(per_token(values.tolist(), batch))


@pytest.mark.parametrize("name", NAMES)
def test_an_update_gives_the_weights_that_the_cpu_gives(name: str) -> None:
    settings = LearnerConfig(lr=1e-3, dtype="float32", max_tokens_per_batch=64)
    here = Learner(tiny_models.model(name), settings)
    there = Learner(tiny_models.model(name).cuda(), settings)
    batch = skewed(here)
    for _ in range(3):
        here.update(batch, weighed(batch))
        there.update(batch, weighed(batch))
    for (key, a), (_, b) in zip(here.weights().items(), there.weights().items(), strict=True):
        assert torch.allclose(a, b.cpu(), atol=2e-4), key


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_in_half_precision_stay_near(name: str) -> None:
    """Through the kernel without padding, where this torch has it; Adam's step has the sign of the same gradient."""
    exact = Learner(tiny_models.model(name, scale=4.0).cuda(), LearnerConfig(dtype="float32"))
    half = Learner(tiny_models.model(name, scale=4.0).cuda(), LearnerConfig(dtype="bfloat16", max_tokens_per_batch=128))
    batch = skewed(exact)
    differences = [a - b for a, b in zip(exact.logprobs(batch), half.logprobs(batch), strict=True)]
    assert float(np.abs(np.concatenate(differences)).mean()) < 0.02


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_in_half_precision_points_the_same_way(checkpointing: bool) -> None:
    def gradient(dtype: str) -> torch.Tensor:
        learner = Learner(
            tiny_models.model("qwen3", scale=4.0).cuda(),
            LearnerConfig(lr=1e-9, dtype=dtype, grad_clip=0.0, gradient_checkpointing=checkpointing),  # type: ignore[arg-type]
        )
        batch, caught = skewed(learner), []
        apply = learner.optimizer.apply
        take = lambda: torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None])
        learner.optimizer.apply = lambda: (caught.append(take().double()), apply())[1]  # type: ignore[method-assign]
        learner.update(batch, weighed(batch))
        return caught[0]

    assert torch.cosine_similarity(gradient("float32"), gradient("bfloat16"), 0) > 0.99


async def test_the_hf_engine_samples_what_the_cpu_samples(tmp_path: Path) -> None:
    from solostream.training.config import BuildConfig
    from solostream.training.run.model import build_model, build_tokenizer

    tokenizer = build_tokenizer(["a b c d e f g"], 300)
    shape = BuildConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, mlp_size=64, vocabulary=300)
    said = []
    for device in ("cpu", "cuda"):
        engine = HFEngine(build_model(shape, tokenizer, 3).to(device), tokenizer, slots=4)  # type: ignore[arg-type]
        generation = await engine.generate([5, 6, 7, 8], Sampling(24, temperature=0.0))
        said.append((generation.token_ids, generation.logprobs))
        await engine.close()
    assert said[0][0] == said[1][0]
    assert said[0][1] == pytest.approx(said[1][1], abs=1e-3)
