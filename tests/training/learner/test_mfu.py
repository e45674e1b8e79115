"""FLOPs by hand, and against torch's own counter on a real model."""

import numpy as np
import pytest
import tiny_models
import torch
from torch.utils.flop_counter import FlopCounterMode

from solostream.training.config.learner import LearnerConfig, LoraConfig
from solostream.training.learner.learner import Learner
from solostream.training.learner.mfu import PEAKS, Shape, flops, peak, peak_of, shape_of
from solostream.training.learner.supervised import sft_step


def test_flops_by_hand() -> None:
    shape = Shape(body=100, head=50, layers=2, width=8)
    # 6·(100·7 + 50·4) + 6·2·8·(9 + 16)
    assert flops(shape, [3, 4], action_tokens=4) == 5400 + 2400
    assert flops(Shape(100, 50, 2, 8, trained=False), [3, 4], action_tokens=4) == 3600 + 2400


def test_the_matrices_of_a_real_model_against_torch() -> None:
    """Without attention's part (the counter does not know the causal half) the numbers are the same."""
    model = tiny_models.model()
    shape = shape_of(model, adapters=False)
    learner = Learner(model, LearnerConfig())
    ids = np.arange(12) % 60
    mask = np.arange(12) >= 4
    with FlopCounterMode(display=False) as counter:
        sft_step(learner, [(ids, mask)])
    counted = counter.get_flop_counts()["Global"]
    matrices = sum(n for op, n in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert matrices == flops(shape, [12], action_tokens=8) - 6 * shape.layers * shape.width * 12 * 12
    assert shape.width == 4 * 8


def test_adapters_do_not_count_and_their_base_is_frozen() -> None:
    plain = shape_of(tiny_models.model(), adapters=False)
    model = tiny_models.model()
    Learner(model, LearnerConfig(lora=LoraConfig(rank=4)))
    assert shape_of(model, adapters=True) == Shape(plain.body, plain.head, plain.layers, plain.width, trained=False)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
    ],
)
def test_peaks(name: str, tera: float) -> None:
    assert peak(name) == tera * 1e12


def test_no_peak_no_metric() -> None:
    assert peak("GeForce 256") is None
    assert peak_of(torch.device("cpu")) is None
    assert all(value > 1e13 for value in PEAKS.values())
