"""AdamW in half and in a quarter of the memory: it arrives where the whole one does, and goes on where it was saved.

torchao lies in a folder of its own: transformers and peft import it wherever they find it, and it prints to stderr.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_ledgers import trajectory
from tiny_models import SHAPE
from transformers import Qwen3Config, Qwen3ForCausalLM

from solostream.agent.engines.hf.device import DTYPES
from solostream.errors import UserError
from solostream.training.advantages.base import Advantages
from solostream.training.config import validate
from solostream.training.config.learner import LearnerConfig
from solostream.training.config.memory import moments
from solostream.training.learner.learner import Learner
from solostream.training.learner.optimizer import Optimizer

SMALL = {
    "bfloat16": {"masters": "bfloat16"},
    "8bit": {"moments": "8bit"},
    "both": {"masters": "bfloat16", "moments": "8bit"},
}


@pytest.fixture(scope="module", autouse=True)
def _torchao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("torchao")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, "torchao==0.18.0"]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"torchao does not install: {installed.stderr[-300:]}")
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


def learner(**settings) -> Learner:
    torch.manual_seed(3)
    model = Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, "hidden_size": 64, "intermediate_size": 160}))
    return Learner(model, LearnerConfig(lr=2e-3, grad_clip=0.0, **settings))


def update(one: Learner, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = [
        trajectory(f"t{i}", 1.0, response=rng.integers(0, 64, 9).tolist(), logprobs=(-rng.random(9)).tolist())
        for i in range(6)
    ]
    one.update(batch, Advantages([rng.normal(size=9) for _ in batch]), drift=False)


def flat(one: Learner) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in one.optimizer.parameters])


def test_steps_too_small_for_bfloat16_arrive_in_the_mean() -> None:
    layer = torch.nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
    torch.nn.init.constant_(layer.weight, 1.0)  # its neighbours are 0.0039 and 0.0078 away
    optimizer = Optimizer(layer, LearnerConfig(lr=1e-4, masters="bfloat16"))
    for _ in range(8):
        layer.weight.grad = torch.full_like(layer.weight, 0.3)  # AdamW then moves by the rate
        optimizer.apply()
    assert float(layer.weight.detach().float().mean()) == pytest.approx(1 - 8e-4, abs=8e-5)
    nearest = torch.tensor(1.0, dtype=torch.bfloat16)
    for _ in range(8):
        nearest = nearest - 1e-4
    assert nearest == 1.0


@pytest.mark.parametrize(("name", "near"), [("bfloat16", 0.35), ("8bit", 0.15), ("both", 0.35)])
def test_it_arrives_where_the_whole_optimizer_does(name: str, near: float) -> None:
    whole, small = learner(), learner(**SMALL[name])
    start = flat(whole)
    for seed in range(6):
        update(whole, seed)
        update(small, seed)
    moved = flat(whole) - start
    assert (flat(small) - start - moved).norm() < near * moved.norm()
    assert torch.nn.functional.cosine_similarity(flat(small) - start, moved, dim=0) > 1 - near / 3


@pytest.mark.parametrize("name", SMALL)
def test_resumed_equals_uninterrupted_to_the_last_bit(name: str, tmp_path) -> None:
    whole = learner(**SMALL[name])
    update(whole, 0)
    whole.save(tmp_path, weights=True)
    update(whole, 1)
    torch.manual_seed(99)  # another process has other random numbers
    resumed = learner(**SMALL[name])
    resumed.load(tmp_path)
    update(resumed, 1)
    assert torch.equal(flat(whole), flat(resumed))


@pytest.mark.parametrize("name", SMALL)
def test_its_moments_are_as_small_as_is_planned(name: str, tmp_path) -> None:
    config = LearnerConfig(**SMALL[name])
    layer = torch.nn.Linear(512, 384, bias=False, dtype=DTYPES[config.masters])
    torch.save(Optimizer(layer, config).state_dict(), tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size == pytest.approx(moments(config) * 512 * 384, rel=0.05)


def test_what_makes_no_sense_is_refused() -> None:
    for settings, message in (
        ({"optimizer": "muon", "moments": "8bit"}, "are of AdamW"),
        ({"masters": "bfloat16", "lora": {"rank": 2}}, "no lora"),
        ({"masters": "bfloat16", "dtype": "float32"}, "no dtype"),
    ):
        with pytest.raises(UserError, match=message):
            validate({"learner": settings})
    with pytest.raises(UserError, match="for one learner"):
        validate({"learner": {"moments": "8bit"}, "cluster": {"learners": 2}})
