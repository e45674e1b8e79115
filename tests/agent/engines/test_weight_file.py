"""The file in which weights travel to an engine on the same machine: what it holds, and how large it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from solostream.agent.engines.live_weights import LiveWeights
from solostream.agent.engines.weight_file import TIED, read_weights, weight_file


def sent(weights: Any, dtype: str | None) -> tuple[dict[str, torch.Tensor], int]:
    with weight_file(weights, dtype) as path:
        return dict(read_weights(path)), Path(path).stat().st_size


@pytest.mark.parametrize("live", [True, False], ids=["learner", "state dict"])
def test_it_holds_what_samples_in_its_own_precision_and_half_the_bytes(make_model: Any, live: bool) -> None:
    model = make_model(seed=0, head_dim=32)
    weights = LiveWeights(model) if live else model.state_dict()
    numbers = sum(p.numel() for p in model.parameters())  # a tied head once
    as_it_is, large = sent(weights, None)
    whole, same = sent(weights, "float32")
    half, small = sent(weights, "bfloat16")
    assert abs(large - same) < 64
    assert large - small == pytest.approx(2 * numbers, rel=0.02)  # the rest are names
    assert small < 2.2 * numbers + 20_000
    assert as_it_is.keys() == half.keys() == {*model.state_dict(), TIED}
    for name, tensor in model.state_dict().items():
        assert torch.equal(whole[name], tensor)
        assert torch.equal(as_it_is[name], tensor)
        assert torch.equal(half[name], tensor.bfloat16())
        assert tensor.dtype == torch.float32  # the learner's own stay
    assert torch.equal(half[TIED], half["model.embed_tokens.weight"])
    assert half[TIED].data_ptr() == half["model.embed_tokens.weight"].data_ptr()


def test_a_head_of_its_own_stays_its_own(make_model: Any) -> None:
    state = dict(make_model(seed=0, head_dim=32).state_dict())
    state[TIED] = state["model.embed_tokens.weight"] + 1.0
    state["counter"] = torch.arange(3)
    found, _ = sent(state, "bfloat16")
    assert torch.equal(found[TIED], state[TIED].bfloat16())
    assert torch.equal(found["counter"], torch.arange(3))  # no number with a point


def test_nothing_is_left_open(make_model: Any) -> None:
    model, before = make_model(seed=0, head_dim=32), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        sent(LiveWeights(model), "bfloat16")
    assert len(os.listdir("/proc/self/fd")) == before
