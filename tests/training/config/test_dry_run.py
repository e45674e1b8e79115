"""What `--dry-run` says, against real models."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import Qwen3Config, Qwen3ForCausalLM

from solostream.errors import UserError
from solostream.training.config import Config, assign, validate
from solostream.training.config.dry_run import describe, plan, refuse_too_large, shared_device
from solostream.training.config.learner import LearnerConfig, LoraConfig
from solostream.training.config.memory import GROWN, memory, of_phases, peak
from solostream.training.config.memory.remedies import remedies
from solostream.training.config.memory.shape import shape_of
from solostream.training.learner.learner import Learner
from solostream.training.learner.packing import pack
from solostream.training.learner.supervised import sft_step

SIZES = {"hidden_size": 48, "layers": 3, "heads": 6, "kv_heads": 2, "head_dim": 16, "mlp_size": 160}


def model() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=640,
            hidden_size=48,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=True,
        )
    )


def planned(*settings: str) -> Any:
    config = validate(assign({"model": {"build": SIZES}}, settings))
    return plan(config, config.data.train or 512, config.data.test)


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are gone; `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x.untyped_storage()._cdata for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        found = operation(*args, **(kwargs or {}))
        for tensor in tree_flatten(found)[0]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), given)
        return found

    def _count(self, storage: torch.UntypedStorage, given: list[int]) -> None:
        place, nbytes = storage._cdata, storage.nbytes()
        if place in given or place in self.known:
            return
        self.known.add(place)
        self.now += nbytes
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self.known.discard(place)
            self.now -= nbytes

        weakref.finalize(storage, gone)


def size(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(size, parts))


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ([], {}),
        (["learner.kl_coef=0.1"], {"kl_coef": 0.1}),
        (["learner.lora.rank=4"], {"lora": LoraConfig(rank=4)}),
        (["learner.lora={rank=4, targets=['q_proj', 'down_proj']}"],
         {"lora": LoraConfig(rank=4, targets=("q_proj", "down_proj"))}),
    ],
)  # fmt: skip
def test_the_sizes_of_a_real_learner(settings: list[str], config: dict) -> None:
    learner = Learner(model(), LearnerConfig(lr=1e-3, **config))
    sft_step(learner, [(np.arange(9), np.arange(9) > 2)])
    found = planned(*settings)
    weights = learner.weights()
    assert found.shape.parameters == sum(w.numel() for name, w in weights.items() if name != "lm_head.weight")
    trained = sum(p.numel() for p in learner.model.parameters() if p.requires_grad)
    assert trained == (found.shape.adapters(LearnerConfig(**config)) or found.shape.parameters)
    merged = 4 * found.shape.parameters
    folder = 4 * trained if "lora" in config else 0  # of peft's
    assert found.checkpoint == pytest.approx(
        merged + folder + size(learner.state_dict(weights=False, base=False)), rel=0.01
    )
    kept = size(learner.state_dict()) + 4 * trained  # and the gradients, which a checkpoint has not
    parts = ("base", "weights", "gradients", "optimizer", "reference")
    assert sum(found.memory.get(part, 0) for part in parts) == pytest.approx(kept, rel=0.01)


COLD = "cold_start.phases=[{steps=1,mix={early=1.0}}]"
COLD_ADAPTERS = "cold_start.learner={lora={rank=5}, lr=1e-3}"


def test_a_base_that_a_phase_trains_is_counted_in_float32_and_any_other_as_it_is() -> None:
    adapters = ("learner.lora.rank=4", 'model.dtype="bfloat16"')
    n = planned().shape.parameters
    assert planned(*adapters).memory["base"] == 2 * n
    trained = planned(*adapters, COLD).phases
    assert "base" not in trained["the cold start"]
    assert trained["reinforcement"]["base"] == 4 * n
    both = planned(*adapters, COLD, COLD_ADAPTERS)
    assert [parts["base"] for parts in both.phases.values()] == [2 * n, 2 * n]
    first = planned('model.dtype="bfloat16"', COLD, COLD_ADAPTERS).phases
    assert first["the cold start"]["base"] == 4 * n
    assert "base" not in first["reinforcement"]


def test_the_plan_is_that_of_the_phase_that_takes_more() -> None:
    tokens = "cold_start.learner.max_tokens_per_batch={}".format
    one, two = (planned(COLD, tokens(n), "learner.max_tokens_per_batch=1000") for n in (700, 3000))
    assert one.memory == one.phases["reinforcement"] == two.phases["reinforcement"]
    assert two.memory == two.phases["the cold start"]
    assert two.memory["activations"] == pytest.approx(3 * one.memory["activations"])
    few = planned(COLD, "cold_start.batch=3", "env.episode_tokens=200")  # 3 traces of 264 tokens
    more = planned(COLD, "cold_start.batch=7", "env.episode_tokens=200")
    seven, three = (found.phases["the cold start"]["activations"] for found in (more, few))
    assert seven == pytest.approx(7 / 3 * three)


def test_the_plan_says_which_phase_takes_more_and_sft_that_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (9 << 30, 10 << 30))
    tokens = ["cold_start.learner.max_tokens_per_batch=700", "learner.max_tokens_per_batch=3000"]
    config = validate(assign({"model": {"build": SIZES, "device": "cpu"}}, [COLD, *tokens]))
    small, large = (sum(parts.values()) / (1 << 20) for parts in planned(COLD, *tokens).phases.values())
    both, sft = describe(config), describe(config, cold_start_only=True)
    assert f"≤ {large:.3g} MiB of 9 GiB free (10 GiB in all): fits; this is reinforcement" in both
    assert f"this is reinforcement, the cold start ≤ {small:.3g} MiB" in both
    assert f"≤ {small:.3g} MiB of 9 GiB free (10 GiB in all): fits\n" in sft
    alone = describe(validate({"model": {"build": SIZES, "device": "cpu"}}))
    assert ": fits\n" in alone


def test_a_phase_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights are trained in the one, adapters in the other."""
    monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (700 << 20, 700 << 20))
    built = {"hidden_size": 512, "layers": 4, "mlp_size": 2048}
    config = validate(assign({"model": {"build": built}}, [COLD, "learner.lora.rank=4"]))
    with pytest.raises(UserError, match=r"in the cold start: .*; set .*, or cold_start.learner.lora"):
        refuse_too_large(config, "cpu")


def test_what_vllm_takes_of_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = shared("engine.vllm.gpu_memory_utilization=0.45")
    needed = sum(memory(config, shape_of(config), 192, 264, "cuda", 0).values()) / GIB
    least = f"≤ {needed * 1024:.3g} MiB and 45 % of the GPU for vLLM: one of {needed / 0.55:.3g} GiB or more; there is"
    assert least in describe(config)
    assert "90 % of the GPU" in describe(shared())
    assert "% of the GPU" not in describe(shared("rollout.colocate=beside"))


def test_what_would_make_it_fit_is_named_where_it_has_to_be_set() -> None:
    """The mildest in the phase that is too large; in both where both are."""
    tokens = ["learner.max_tokens_per_batch=1200", "cold_start.learner.max_tokens_per_batch=4400"]
    config = validate(assign({"model": {"build": SIZES}}, [COLD, *tokens]))
    shape = shape_of(config)

    def need(c: Config) -> int:
        return sum(memory(c, shape, 192, 320, "cpu", 0).values())

    smaller = sum(planned(COLD, *tokens).phases["reinforcement"].values())
    assert remedies(config, need, smaller)[0] == "cold_start.learner.max_tokens_per_batch = 1100"
    assert remedies(config, need, smaller - 1)[0] == (
        "cold_start.learner.max_tokens_per_batch = 1100 and learner.max_tokens_per_batch = 300"
    )
    swapped = validate(assign({"model": {"build": SIZES}}, [COLD, "learner.max_tokens_per_batch=30000"]))
    assert remedies(swapped, need, need(swapped) - 1)[0] == "learner.max_tokens_per_batch = 7500"


def test_only_what_is_float32_is_cast_for_a_computation_in_bfloat16() -> None:
    def half(*settings: str) -> int:
        config = shared("run.engine=server", *settings)
        return memory(config, shape_of(config), 8, 264, "cuda", 0)["half copy"]

    shape = planned().shape
    adapters = shape.adapters(LearnerConfig(lora=LoraConfig(rank=7)))
    assert half() == 2 * shape.parameters
    assert half("learner.lora.rank=7") == 2 * (shape.parameters + adapters)
    assert half("learner.lora.rank=7", "model.dtype=bfloat16") == 2 * adapters


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_activations_that_the_backward_pass_keeps(checkpointing: bool) -> None:
    """Distinct storages that autograd saves below the head; recomputation also needs one layer at a time."""
    config = LearnerConfig(gradient_checkpointing=checkpointing)
    learner = Learner(model(), config)
    known = {p.untyped_storage().data_ptr() for p in learner.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return x

    ids = np.arange(200)
    packed = pack([(ids, ids > 0)] * 4, [0, 1, 2, 3])
    with learner.scorer.active(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = learner.scorer._hidden(packed)
    assert hidden.requires_grad
    a_token = sum(storage.nbytes() for storage in kept.values()) / 800
    shape = planned().shape
    one_layer = shape.activations(LearnerConfig()) / shape.layers + shape.returning
    assert shape.activations(config) - (one_layer if checkpointing else 0) == pytest.approx(a_token, rel=0.1, abs=700)


@pytest.mark.parametrize(
    ("vocabulary", "checkpointing"),
    [(320, True), (320, False), (6400, True), (6400, False)],  # a layer that is computed again, or the logits
)
def test_the_most_that_an_update_holds_at_one_time(vocabulary: int, checkpointing: bool) -> None:
    """Every storage that comes and goes, counted while an update runs, against the plan's passing parts."""
    sizes = {**SIZES, "vocabulary": vocabulary}
    tokens = 2000
    settings = {"max_tokens_per_batch": tokens, "gradient_checkpointing": checkpointing, "logits_chunk": 500}
    config = validate({"model": {"build": sizes}, "learner": settings, "env": {"episode_tokens": tokens}})
    shape = shape_of(config)
    parts = memory(config, shape, 1, tokens, "cpu", 0)

    built = model()
    built.resize_token_embeddings(vocabulary, mean_resizing=False)
    learner = Learner(built, LearnerConfig(lr=1e-3, **settings))
    short = [(np.arange(9), np.arange(9) > 2)]
    sft_step(learner, short)  # gradients and moments are there from now on
    with Live() as live:
        sft_step(learner, [(np.arange(tokens) % 300, np.arange(tokens) > 2)])
    passing = parts["activations"] + parts["logits"]
    assert live.peak == pytest.approx(passing, rel=0.12)


def test_what_bounds_the_parts() -> None:
    found = planned(
        "rollout.batch=100", "rollout.over_provision=1.25", "learner.max_tokens_per_batch=512", "data.test=10"
    )
    assert found.in_flight == 125
    assert found.episodes == 512 + 40 * 100 + 2 * 20 + 10
    assert planned("rollout.mode=sync").in_flight == 128
    fewer, more = (
        planned(f"learner.max_tokens_per_batch={n}", "env.episode_tokens=150").memory["activations"] for n in (256, 512)
    )
    assert more == pytest.approx(2 * fewer)
    alone = planned("learner.max_tokens_per_batch=512", "env.episode_tokens=960").memory["activations"]
    assert alone == pytest.approx(2 * more)  # one sequence is never cut


def cached(*settings: str) -> int:
    parts = planned(*settings).memory
    return parts["KV cache"] + parts[GROWN]


def test_what_the_sampler_takes() -> None:
    """Fused copies of a small model; a second model where dtypes differ or an update has several steps."""
    weights = planned().memory["weights"]
    assert planned().memory["sampler"] == weights
    assert planned("learner.epochs=3").memory["sampler"] == 2 * weights
    assert planned("learner.epochs=3", "rollout.mode=sync").memory["sampler"] == weights
    assert planned("rollout.mode=lockstep").memory["sampler"] == 2 * weights
    assert planned("cluster.replicas=2", "rollout.mode=sync").memory["sampler"] == 2 * weights  # in another process
    assert planned("model.sampler_dtype=bfloat16").memory["sampler"] == weights  # twice, at half the size
    # 2 sides, 4 bytes, 3 layers, 2 heads of 16; 300 + 64 columns, from 256 doubled to 512; 192 in flight.
    wide = cached("env.episode_tokens=300")
    assert wide == 2 * 4 * 3 * 2 * 16 * 512 * 192
    # Where fewer have a cache at a time.
    assert cached("env.episode_tokens=300", "engine.hf.concurrency=64") == wide // 3
    assert cached("env.episode_tokens=300", "engine.hf.concurrency=999") == wide


def test_a_run_of_which_not_even_the_weights_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate({"model": {"build": {"hidden_size": 512, "layers": 8, "mlp_size": 2048}}})
    monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (900 << 20, 960 << 20))
    with pytest.raises(UserError, match=r"build does not fit on cpu: .* take .* GiB of 960 MiB; set learner.lora"):
        refuse_too_large(config, "cpu")
    refuse_too_large(validate({}), "cpu")


def test_how_a_batch_is_cut_may_change_on_resume() -> None:
    cut = {"max_tokens_per_batch": 77, "logits_chunk": 5, "gradient_checkpointing": True}
    assert validate({"learner": cut}).hash() == validate({"learner": {}}).hash()
    assert validate({"cold_start": {"learner": cut}}).hash() == validate({"cold_start": {"learner": {}}}).hash()
    assert validate({"learner": {**cut, "epochs": 2}}).hash() != validate({"learner": {}}).hash()


GIB = 1 << 30
SHARED = {"run": {"engine": "vllm"}, "model": {"device": "cuda", "build": SIZES}, "env": {"episode_tokens": 200}}
UPDATE = ("activations", "logits", "half copy")


def shared(*settings: str) -> Config:
    return validate(assign(SHARED, settings))


@pytest.mark.parametrize(("how", "aside"), [("beside", ()), ("turns", UPDATE)])
def test_vllm_gets_what_the_learner_leaves(how: str, aside: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it all that an update takes stays free, in turns what lies there always; 600 MiB for each program."""
    config, total = shared(f"rollout.colocate={how}", "rollout.mode=sync"), 5 * GIB
    alone = memory(
        config.model_copy(update={"run": shared("run.engine=server").run}), shape_of(config), 128, 264, "cuda", total
    )
    kept = sum(size for name, size in alone.items() if name not in aside)
    parts = memory(config, shape_of(config), 128, 264, "cuda", total)
    assert parts["vLLM's share"] == total - (600 << 20) - kept
    assert peak(config, parts) == total
    monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (total, total))
    options = shared_device(config, "cuda")
    share = options.pop("gpu_memory_utilization")
    assert 0 <= parts["vLLM's share"] / total - share < 0.001
    assert options == ({"enable_sleep_mode": True} if how == "turns" else {})
    named = shared(f"rollout.colocate={how}", "rollout.mode=sync", "engine.vllm.gpu_memory_utilization=0.3")
    assert "gpu_memory_utilization" not in shared_device(named, "cuda")
    assert memory(named, shape_of(config), 128, 264, "cuda", total)["vLLM's share"] == round(0.3 * total)


def test_vllm_gets_what_the_larger_phase_leaves() -> None:
    """It starts once, before both."""
    tokens = "cold_start.learner={max_tokens_per_batch=6000, lr=1e-3}"
    config, total = shared("rollout.colocate=beside", "rollout.batch=64", COLD, tokens), 5 * GIB
    phases = of_phases(config, shape_of(config), 96, 264, "cuda", total)
    kept = {name: sum(size for part, size in found.items() if "vLLM" not in part) for name, found in phases.items()}
    assert kept["the cold start"] != kept["reinforcement"]
    assert {found["vLLM's share"] for found in phases.values()} == {total - (600 << 20) - max(kept.values())}


def test_what_vllm_takes_at_least_decides_whether_both_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights and the longest episode: 2 bytes of each parameter, and 2 sides, 3 layers, 2 heads of 16 a token."""
    beside = shared("rollout.colocate=beside")
    shape = shape_of(beside)
    least = memory(beside, shape, 192, 264, "cuda", 0)
    assert least["vLLM's share"] == 2 * (shape.parameters + 264 * 2 * 3 * 2 * 16)
    needed = sum(least.values())

    def refuse(config: Config, total: int) -> None:
        monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (total, total))
        refuse_too_large(config, "cuda")

    refuse(beside, needed)
    with pytest.raises(UserError, match=r"activations .*, vLLM's share .* take .*; set learner.max_tokens_per_batch"):
        refuse(beside, needed - 1)
    turns = shared("rollout.colocate=turns", "rollout.mode=sync")
    resting = needed - sum(least.get(name, 0) for name in UPDATE)
    refuse(turns, resting)
    with pytest.raises(UserError, match="does not fit on cuda"):
        refuse(turns, resting - 1)


def test_how_one_gpu_is_shared_makes_no_other_run() -> None:
    ways = [shared(f"rollout.colocate={how}", "rollout.mode=sync") for how in ("no", "beside", "turns")]
    assert len({config.hash() for config in ways}) == 1
