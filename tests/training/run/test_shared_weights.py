"""A sampler that reads the learner's own parameters samples from one version of them at a time, and says which."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from tiny_ledgers import constant, trajectory
from transformers import LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM, PreTrainedModel

from solostream.agent.engine import Generation, Sampling
from solostream.agent.engines.hf import HFEngine, lean
from solostream.agent.engines.hf.forward import ModelForward
from solostream.agent.engines.hf.lean import LeanForward
from solostream.agent.engines.live_weights import LiveWeights
from solostream.training.config import Config, validate
from solostream.training.config.learner import LearnerConfig, LoraConfig
from solostream.training.config.memory.weights import rank_to_send
from solostream.training.learner.learner import Learner
from solostream.training.rollouts.learner_thread import LearnerThread
from solostream.training.run.model import build_tokenizer
from solostream.training.run.setup import why_a_second_copy

TOKENIZER = build_tokenizer(["a b c"], 300)
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "eos_token_id": None,
    "pad_token_id": None,
    "bos_token_id": None,
}


def model(kind: str) -> PreTrainedModel:
    torch.manual_seed(5)
    made = LlamaForCausalLM(LlamaConfig(**SHAPE)) if kind.startswith("lean") else Olmo2ForCausalLM(Olmo2Config(**SHAPE))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return made


def test_the_samplers_module_shares_the_parameters_and_nothing_that_anybody_changes() -> None:
    learned = model("any")
    sampled = LiveWeights(learned).module()
    assert all(a is b for a, b in zip(learned.parameters(), sampled.parameters(), strict=True))
    learned.config._attn_implementation = "eager"
    sampled.eval()
    learned.train()
    assert sampled.config._attn_implementation == "sdpa"
    assert {m.config._attn_implementation for m in sampled.modules() if hasattr(m, "config")} == {"sdpa"}
    assert not sampled.model.layers[1].training
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(learned.buffers(), sampled.buffers(), strict=True))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=3)], ids=["whole", "adapters"])
@pytest.mark.parametrize("kind", ["lean", "lean, in place", "any"])
async def test_each_token_is_of_the_version_that_it_names(
    kind: str, lora: LoraConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates large enough that a token of another version would show in its logprob, while requests are in flight."""
    if kind == "lean, in place":
        monkeypatch.setattr(lean, "SMALL", 0)
    learned = model(kind)
    engine = HFEngine(LiveWeights(learned).module(), TOKENIZER, slots=6)
    assert isinstance(engine._forward, ModelForward if kind == "any" else LeanForward)
    assert engine._forward.in_place == (kind != "lean")
    learner = Learner(learned, LearnerConfig(lr=0.02, grad_clip=0, lora=lora))
    thread, versions = LearnerThread(), []
    batch = [trajectory("a", prompt=[9, 8], response=[21, 7, 33, 80]), trajectory("b", prompt=[4], response=[6, 90])]

    def keep() -> None:
        versions.append({name: tensor.clone() for name, tensor in learner.weights().items()})

    async def play(i: int) -> list[tuple[list[int], Generation]]:
        done = []
        while len(versions) < 6:
            prompt = [3 + i, 250 - 7 * i, 40, 41 + i]
            done.append((prompt, await engine.generate(prompt, Sampling(120, seed=100 * i + len(done)))))
        return done

    try:
        await engine.load_weights(learner.weights(), 0)
        keep()
        players = [asyncio.create_task(play(i)) for i in range(5)]
        for version in range(1, 6):
            await asyncio.sleep(0.03)
            await thread.run(learner.update, batch, constant(1.0, -1.0, batch=batch))
            await asyncio.sleep(0.01)  # between the update and its version nothing may be sampled
            keep()
            await engine.load_weights(learner.weights(), version)
        played = [pair for done in await asyncio.gather(*players) for pair in done]
    finally:
        await engine.close()
        thread.close()
    assert any(len(set(generation.versions)) > 1 for _, generation in played)
    plain = model(kind)
    for version, weights in enumerate(versions):
        plain.load_state_dict(weights)
        for prompt, generation in played:
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([prompt + generation.token_ids])).logits[0, len(prompt) - 1 : -1]
            told = logits.log_softmax(-1).gather(1, torch.tensor(generation.token_ids)[:, None])[:, 0].numpy()
            mine = np.asarray(generation.versions) == version
            assert np.abs(told - generation.logprobs)[mine].max(initial=0.0) < 2e-4
    first, last = (next(iter(v.values())) for v in (versions[0], versions[-1]))
    assert lora is not None or (first - last).abs().max() > 0.01


async def test_a_sampler_with_weights_of_its_own_copies_them_and_leaves_the_learners_alone() -> None:
    learned, own = model("any"), model("any")
    learner = Learner(learned, LearnerConfig(lr=0.02))
    engine = HFEngine(own, TOKENIZER, slots=1)
    batch = [trajectory("a", prompt=[9, 8], response=[21, 7, 33, 80])]
    try:
        learner.update(batch, constant(1.0, batch=batch))
        await engine.load_weights(learner.weights(), 1)
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), learned.parameters(), strict=True))
        before = [p.clone() for p in own.parameters()]
        learner.update(batch, constant(1.0, batch=batch))
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), before, strict=True))
        assert (await engine.generate([5, 6], Sampling(3, seed=1))).versions == [1, 1, 1]
    finally:
        await engine.close()


def config(**sections: dict[str, Any]) -> Config:
    return validate(sections)


def test_when_a_second_copy_is_needed() -> None:
    learned = model("any")
    assert why_a_second_copy(config(), learned) is None
    said = why_a_second_copy(config(model={"sampler_dtype": "bfloat16"}), learned)
    assert said == "the sampler's weights are bfloat16"
    several = {"learner": {"num_mini_batches": 2}}
    assert "several steps" in (why_a_second_copy(config(**several), learned) or "")
    assert why_a_second_copy(config(**several, rollout={"mode": "sync"}), learned) is None


def test_when_adapters_travel_alone() -> None:
    lora, place = {"rank": 6}, {"path": "some/model"}

    def rank(**sections: Any) -> int:
        return rank_to_send(validate({"learner": {"lora": lora}, "model": place, **sections}))

    assert rank() == 6
    assert rank(learner={"lora": {**lora, "targets": ["q_proj", "up_proj"]}}) == 6
    assert rank(learner={"lora": {**lora, "targets": ["q_proj", "lm_head"]}}) == 0  # vLLM may not know it
    assert rank(learner={}) == 0
    assert rank(model={}) == 0  # built: it lies in no folder
    assert rank(cold_start={"data": "traces.jsonl"}) == 0  # the base is no longer what the folder holds
    assert rank(cluster={"replicas": 2}) == 0
