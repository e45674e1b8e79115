"""The sampler of a run goes on after a failure with the weights of the moment, and gives up with the engine's words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch

from solostream.agent.engine import EngineError, Sampling
from solostream.agent.engines.hf import HFEngine
from solostream.agent.engines.hf.forward import ModelForward
from solostream.training.config import BuildConfig
from solostream.training.rollouts.restarting_engine import RestartingEngine
from solostream.training.run.model import build_model, build_tokenizer


async def test_a_failed_engine_is_opened_again_with_the_weights_of_now() -> None:
    opened: list[HFEngine] = []

    async def open_engine() -> HFEngine:
        opened.append(HFEngine(build_model(shape, tokenizer, 0), tokenizer, slots=1))
        return opened[-1]

    @asynccontextmanager
    async def still() -> AsyncIterator[None]:
        held.append("held")
        yield
        held.append("free")

    held: list[str] = []

    def spoil(engine: HFEngine) -> None:
        engine._forward = ModelForward(engine._forward.model)
        engine._forward.model.model.layers[0].mlp.gate_proj = torch.nn.Linear(3, 3)

    tokenizer = build_tokenizer(["a b c"], 300)
    shape = BuildConfig(hidden_size=32, layers=1, heads=2, kv_heads=1, mlp_size=64, vocabulary=300)
    policy = RestartingEngine(open_engine, still=still, restarts=1)
    other = build_model(shape, tokenizer, 1)
    try:
        await policy.load_weights(other.state_dict(), 7)
        before = await policy.generate([5, 6], Sampling(4, temperature=0.0))
        assert before.versions == [7] * len(before.versions)
        spoil(opened[0])
        with pytest.raises(EngineError, match="the hf engine failed"):
            await policy.generate([7, 8], Sampling(4, temperature=0.0))
        after = await policy.generate([5, 6], Sampling(4, temperature=0.0))
        assert (after.token_ids, after.versions) == (before.token_ids, before.versions)
        assert after.logprobs == pytest.approx(before.logprobs, abs=1e-6)
        spoil(opened[1])
        with pytest.raises(EngineError, match=r"again and again, at last with: the hf engine failed: RuntimeError"):
            await policy.generate([7, 8], Sampling(4, temperature=0.0))
        assert len(opened) == 2
        assert held == ["held", "free"]  # when it was opened again, and at no other time
    finally:
        await policy.close()
