"""The optimizer on the host, with a CPU as the device: what computes and what is stepped are two sets of tensors."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_ledgers import trajectory
from tiny_models import SHAPE
from transformers import Qwen3Config, Qwen3ForCausalLM

from solostream.errors import UserError
from solostream.training.advantages.base import Advantages
from solostream.training.config import validate
from solostream.training.config.learner import LearnerConfig
from solostream.training.config.memory import host_memory, memory
from solostream.training.config.memory.shape import shape_of
from solostream.training.learner.device import cast
from solostream.training.learner.guards import NotFinite
from solostream.training.learner.learner import Learner
from solostream.training.learner.optimizer.on_host import HostMasters
from solostream.training.learner.supervised import sft_step
from solostream.training.run import setup
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.trainer import Trainer

TINY = Path(__file__).parents[1] / "run" / "tiny.toml"
CPU = torch.device("cpu")
CONFIG = LearnerConfig(lr=2e-3, grad_clip=0.01, weight_decay=0.1, max_tokens_per_batch=40)  # clips, in several packs


def learner(dtype: torch.dtype | None, config: LearnerConfig = CONFIG, **options) -> Learner:
    """dtype: of the copy that computes; None: without one."""
    torch.manual_seed(3)
    model = Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, "hidden_size": 64, "intermediate_size": 160}))
    masters = None if dtype is None else HostMasters(model, CPU, dtype)
    computed = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return Learner(model, config.model_copy(update={"dtype": computed}), masters=masters, **options)


def update(one: Learner, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    batch = [
        trajectory(f"t{i}", 1.0, response=rng.integers(0, 64, 7 + i).tolist(), logprobs=(-rng.random(7 + i)).tolist())
        for i in range(6)
    ]
    return one.update(batch, Advantages([rng.normal(size=7 + i) for i in range(6)]))


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])


def test_in_float32_it_is_the_same_optimizer_to_the_last_bit() -> None:
    plain, moved = learner(None), learner(torch.float32)
    for seed in range(3):
        first, second = update(plain, seed), update(moved, seed)
        assert first["grad_norm"] == second["grad_norm"] > CONFIG.grad_clip  # of what is clipped there
        assert first["drift"] == second["drift"] > 0
    assert torch.equal(flat(plain.model.parameters()), flat(moved.model.parameters()))
    ids = np.arange(30) % 60
    assert sft_step(plain, [(ids, ids > 2)])["loss"] == sft_step(moved, [(ids, ids > 2)])["loss"]
    assert torch.equal(flat(plain.model.parameters()), flat(moved.optimizer.parameters))


def test_what_computes_holds_no_gradient_and_shares_nothing_with_the_masters() -> None:
    one = learner(torch.float32)
    own = {p.data_ptr() for p in one.optimizer.parameters}
    assert not own & {p.data_ptr() for p in one.model.parameters()}
    one.optimizer.zero()
    logprob, _ = one.scorer(one.packs([(np.arange(9), np.arange(9) > 2)])[0])
    with one.scorer.active():
        logprob.sum().backward()
    assert all(p.grad is None for p in one.model.parameters())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in one.optimizer.parameters)


def test_masters_keep_the_steps_that_a_half_precision_copy_rounds_away() -> None:
    one = learner(torch.bfloat16, CONFIG.model_copy(update={"lr": 1e-6, "weight_decay": 0.0}))
    start, seen = flat(one.optimizer.parameters), flat(one.model.parameters())
    for seed in range(3):
        update(one, seed)
    assert {p.dtype for p in one.model.parameters()} == {torch.bfloat16}
    moved = (flat(one.optimizer.parameters) - start).abs()
    assert 1e-6 < float(moved.median()) < 3.1e-6  # three steps of the rate
    assert (flat(one.model.parameters()) == seen).float().mean() > 0.9
    assert torch.equal(flat(one.model.parameters()), flat(p.bfloat16() for p in one.optimizer.parameters))


def test_positions_keep_their_precision_in_half() -> None:
    """Of a rotary frequency in bfloat16 a position a thousand tokens away is off by radians."""
    plain = learner(None).model
    exact = plain.model.rotary_emb.inv_freq.clone()
    assert torch.equal(learner(torch.bfloat16).model.model.rotary_emb.inv_freq, exact)
    cast(plain, torch.bfloat16)  # as `masters = "bfloat16"` does
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert torch.equal(plain.model.rotary_emb.inv_freq, exact)


def test_a_run_with_it_is_the_run_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold start, sampling from the learner's own weights, reinforcement, and the checkpoint that is left."""
    monkeypatch.setattr(setup, "offloads", lambda config, device: config.learner.offload_optimizer)  # on a CPU, too
    weights, said = [], []
    for offload in (False, True):
        both = {"lr": 1e-3, "optimizer": "adamw", "offload_optimizer": offload}
        tree = tomllib.loads(TINY.read_text())
        tree["run"] |= {"steps": 1}
        tree["data"] |= {"train": 6, "test": 1}
        tree |= {"learner": both, "cold_start": {**tree["cold_start"], "learner": both}}
        config = validate(tree)
        view = ProgressDisplay()
        monkeypatch.setattr(view, "say", said.append)
        folder = tmp_path / str(offload)
        Trainer(config, folder, view).run()
        weights.append(load_file(folder / "checkpoints/step-000001/model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any("the optimizer on the host" in line for line in said)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_equals_uninterrupted_to_the_last_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    whole = learner(dtype)
    update(whole, 0)
    whole.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")  # the masters, not what they are rounded to
    assert all(torch.equal(saved[name], tensor) for name, tensor in whole.optimizer.named.items())
    update(whole, 1)

    model = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    resumed = Learner(model, whole.config, masters=HostMasters(model, CPU, dtype))
    resumed.load(tmp_path)
    update(resumed, 1)
    assert torch.equal(flat(whole.optimizer.parameters), flat(resumed.optimizer.parameters))
    assert torch.equal(flat(whole.model.parameters()), flat(resumed.model.parameters()))

    other = learner(dtype)
    other.load_state_dict(whole.state_dict())  # with the weights in it
    assert torch.equal(flat(whole.model.parameters()), flat(other.model.parameters()))


def test_a_gradient_that_is_not_finite_names_its_task_and_moves_nothing(tmp_path: Path) -> None:
    one = learner(torch.float32, CONFIG.model_copy(update={"max_tokens_per_batch": 1}), dump_dir=tmp_path)
    before = flat(one.optimizer.parameters)
    rows = [trajectory(f"t{i}", 1.0, response=[5, 6, 7, 8 + i], logprobs=[-1.0] * 4) for i in range(3)]
    huge = Advantages([np.full(4, value, np.float32) for value in (-1.0, 3e38, -1.0)])
    with pytest.raises(NotFinite, match="gradients that are not finite, tasks t1;"):
        one.update(rows, huge)
    assert torch.equal(flat(one.optimizer.parameters), before)
    assert all(p.grad is None for p in one.optimizer.parameters)


def test_the_plan_counts_what_stays_on_the_device_and_what_leaves_it() -> None:
    sizes = {"hidden_size": 96, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_size": 160}
    config = validate({"model": {"build": sizes}, "learner": {"offload_optimizer": True}})
    shape = shape_of(config)
    device, host = memory(config, shape, 8, 64, "cuda", 0), host_memory(config, shape)
    assert device["weights"] == 2 * shape.parameters  # bfloat16, and no second copy in half precision
    assert "optimizer" not in device
    assert "half copy" not in device
    assert device["gradients"] == 2 * shape.vocabulary * shape.hidden
    assert host["masters"] + host["gradients"] + host["optimizer"] == 16 * shape.parameters
    whole = validate({"model": {"build": sizes}})
    assert memory(config, shape, 8, 64, "cpu", 0) == memory(whole, shape, 8, 64, "cpu", 0)  # nothing to move there


def test_what_makes_no_sense_is_refused() -> None:
    for settings, message in (
        ({"optimizer": "muon"}, "for AdamW on all weights: Muon"),
        ({"lora": {"rank": 2}}, "adapters have a small optimizer"),
        ({"moments": "8bit"}, "in float32: leave masters and moments out"),
    ):
        with pytest.raises(UserError, match=message):
            validate({"learner": {"offload_optimizer": True, **settings}})
    with pytest.raises(UserError, match="for one learner"):
        validate({"learner": {"offload_optimizer": True}, "cluster": {"learners": 2}})
    phases = [{"steps": 1, "mix": {"early": 1.0}}]
    with pytest.raises(UserError, match="both phases train the same masters"):
        validate({"learner": {"offload_optimizer": True}, "cold_start": {"phases": phases}})
