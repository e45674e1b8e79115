"""What a GPU must not change. Skipped where there is none: `scripts/gpu_check.sh` runs it on a machine that has one."""

from __future__ import annotations

import asyncio
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from solostream.agent.engine import Sampling
from solostream.agent.engines.hf import HFEngine
from solostream.agent.engines.hf import load_model as load_for_sampling
from solostream.agent.engines.hf.graphs import GraphedForward
from solostream.agent.trajectory import TokenRecord, Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantages, per_token
from solostream.training.batch import Batch
from solostream.training.config import BuildConfig, ModelConfig, validate
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.gradient import Gradient
from solostream.training.learner.learner import Learner
from solostream.training.learner.optimizer.on_host import HostMasters
from solostream.training.run.model import build_model, build_tokenizer, load_model
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.train import newest, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TINY = Path(__file__).parents[1] / "run" / "tiny.toml"
BUILD = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "mlp_size": 64}
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


def test_micro_batches_follow_each_other_without_waiting_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(tiny_models.model("qwen3").cuda(), LearnerConfig(dtype="bfloat16", max_tokens_per_batch=64))
    batch = skewed(learner)
    learner.update(batch, weighed(batch))  # kernels are loaded at their first use
    accumulate, packs = Gradient.add, []

    def watched(*arguments: Any) -> None:
        packs.append(arguments)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            accumulate(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    monkeypatch.setattr(Gradient, "add", watched)
    learner.update(batch, weighed(batch), drift=False)
    assert len(packs) > 2


def test_a_compiled_update_gives_the_weights_of_one_that_is_not() -> None:
    """In float32, so that nothing but the order of sums differs; chunks with a rest, a temperature, several packs."""
    settings = {"lr": 1e-3, "dtype": "float32", "max_tokens_per_batch": 128, "logits_chunk": 37}
    weights: list[Any] = []
    for compiled in (False, True):
        config = LearnerConfig(**settings, compile=compiled)  # type: ignore[arg-type]
        learner = Learner(tiny_models.model("qwen3", scale=3.0).cuda(), config, temperature=0.8)
        if not compiled:
            batch = skewed(learner)
        before = learner.logprobs(batch), learner.entropies(batch)
        found = learner.update(batch, weighed(batch))
        weights.append((before, found["grad_norm"], learner.weights()))
    (plain, norm, first), (fused, norm_fused, second) = weights
    for a, b in zip(plain, fused, strict=True):
        assert np.abs(np.concatenate(a) - np.concatenate(b)).max() < 1e-4
    assert norm_fused == pytest.approx(norm, rel=1e-3)
    for key, a in first.items():
        assert torch.allclose(a, second[key], atol=2e-4), key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_optimizer_on_the_host_takes_the_steps_of_the_one_on_the_device(dtype: str) -> None:
    settings = LearnerConfig(lr=1e-3, dtype=dtype, max_tokens_per_batch=64)  # type: ignore[arg-type]
    there = Learner(tiny_models.model("qwen3").cuda(), settings)
    made = tiny_models.model("qwen3")
    computed = torch.float32 if dtype == "float32" else torch.bfloat16
    masters = HostMasters(made, torch.device("cuda", 0), computed)
    here = Learner(made, settings.model_copy(update={"offload_optimizer": True}), masters=masters)
    batch = skewed(there)
    before = {name: tensor.detach().clone() for name, tensor in there.optimizer.named.items()}
    for _ in range(3):
        norms = [one.update(batch, weighed(batch))["grad_norm"] for one in (there, here)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4 if dtype == "float32" else 0.05)
    assert {p.device.type for p in here.optimizer.parameters} == {"cpu"}
    moved = [
        torch.cat([(o.named[n].detach().cpu() - before[n].cpu()).flatten() for n in before])
        for o in (there.optimizer, here.optimizer)
    ]
    assert float(moved[0].abs().max()) > 1e-3
    assert float(torch.cosine_similarity(*moved, 0)) > (0.9999 if dtype == "float32" else 0.9)


def test_a_device_that_is_full_in_the_middle_of_a_run_leaves_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allocations that do fail: another tenant, which is this test, takes what is free before the fourth update."""
    sections = {"model": {"device": "cuda", "build": BUILD}, "cold_start": {"phases": []}}
    config = validate(tomllib.loads(TINY.read_text()) | sections)
    whole, calls, tenant = Learner.update, iter(range(9)), list[torch.Tensor]()

    def update(self: Learner, *args: Any, **kwargs: Any) -> dict[str, float]:
        if next(calls) == 3:
            free = torch.cuda.memory_reserved() + (64 << 20)
            torch.cuda.set_per_process_memory_fraction(free / torch.cuda.mem_get_info()[1])
            for size in (4 << 20, 1 << 20, 64 << 10, 512):
                with suppress(torch.OutOfMemoryError):
                    while True:
                        tenant.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "update", update)
    try:
        with pytest.raises(UserError, match=r"out of memory with max_tokens_per_batch .* is finished is kept") as told:
            run(config, tmp_path / "run", None, ProgressDisplay())
    finally:
        tenant.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "\n" not in str(told.value)
    monkeypatch.setattr(Learner, "update", whole)
    kept = newest(tmp_path / "run")
    assert kept is not None
    run(config, tmp_path / "run", kept, ProgressDisplay())


async def test_graphs_sample_what_steps_of_their_own_sample() -> None:
    """Turns, idle rows between active ones, new weights in between, and a cache that grows."""
    tokenizer = build_tokenizer(["a b c d e f g"], 300)
    shape = BuildConfig(hidden_size=64, layers=2, heads=4, kv_heads=2, mlp_size=96, vocabulary=300)
    other = {name: tensor * 1.25 for name, tensor in build_model(shape, tokenizer, 4).state_dict().items()}
    models = [build_model(shape, tokenizer, 3).cuda() for _ in range(2)]  # type: ignore[arg-type]
    tokenizer.eos_token = None  # every response is as long as it may be
    said: list[list[Any]] = []
    for made, graphs in zip(models, (False, True), strict=True):
        made.generation_config.eos_token_id = made.config.eos_token_id = None
        engine = HFEngine(made, tokenizer, slots=21, max_len=700, graphs=graphs)
        assert isinstance(engine._forward, GraphedForward) == graphs
        found: list[Any] = []
        for turn, weights in enumerate((None, {name: tensor.cuda() for name, tensor in other.items()})):
            if weights is not None:
                await engine.load_weights(weights, 1)
            asked = []
            for i in range(13 + 8 * turn):
                prompt = [5 + i, 6, 7, *(found[i].token_ids if turn and i < 13 else [])]
                asked.append(engine.generate(prompt, Sampling(40 + 17 * i if not turn else 30, seed=i, key=str(i))))
            found += await asyncio.gather(*asked)
        said.append(found)
        await engine.close()
    for plain, graphed in zip(*said, strict=True):
        assert plain.token_ids == graphed.token_ids
        assert plain.logprobs == pytest.approx(graphed.logprobs, abs=1e-3)
    assert max(len(one.token_ids) for one in said[0]) > 240  # beyond the first columns of the cache


async def test_the_hf_engine_samples_what_the_cpu_samples(tmp_path: Path) -> None:
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


def test_weights_that_are_read_straight_to_the_device_are_those_of_the_folder(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["a b c d e f g"], 300)
    shape = BuildConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, mlp_size=64, vocabulary=300)
    written = build_model(shape, tokenizer, 3)
    written.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    trained, _ = load_model(ModelConfig(path=str(tmp_path), device="cuda"))
    for read in (trained, load_for_sampling(str(tmp_path), "float32")):
        found = read.state_dict()
        for name, value in written.state_dict().items():
            assert found[name].is_cuda
            assert torch.equal(found[name].cpu(), value), name
