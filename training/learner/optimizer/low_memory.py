"""AdamW with half or a quarter of the memory, by torchao: bfloat16 weights that are rounded at random, 8-bit moments.

A step of 1e-6 is lost when it is rounded to the nearest bfloat16. Rounded up with the probability that the exact value
has on the way there, it arrives in the mean (stochastic rounding; arXiv 2010.06192). Moments in 8 bits have one scale
for each 256 of them (arXiv 2110.02861). docs/decisions.md says why torchao and not bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from solostream.errors import UserError
from solostream.training.config.learner import LearnerConfig


def check(config: LearnerConfig) -> None:
    """Raises UserError where `config` asks for torchao and it is not installed."""
    if (config.masters == "bfloat16" or config.moments == "8bit") and find_spec("torchao") is None:
        raise UserError("learner.masters and learner.moments need torchao: pip install 'solostream[low-memory]'")


def adamw(groups: list[dict[str, Any]], config: LearnerConfig) -> torch.optim.Optimizer:
    """With its moments there from the start. Raises UserError when torchao is missing."""
    check(config)
    from torchao.optim import AdamW8bit, _AdamW

    # With rounding at random the weights can be bfloat16 themselves, without masters beside them.
    made: Any = AdamW8bit if config.moments == "8bit" else _AdamW
    rounded = config.masters == "bfloat16"
    optimizer = made(groups, lr=config.lr, betas=config.betas, bf16_stochastic_round=rounded)
    # Made here as its first step would make them, so that a checkpoint always has the same tensors.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": optimizer._new_buffer(parameter, True),  # a mean of gradients has a sign,
                "exp_avg_sq": optimizer._new_buffer(parameter, False),  # one of squares has none
            }
    found: torch.optim.Optimizer = optimizer
    return found


@contextmanager
def repeatable(step: int, device: torch.device) -> Iterator[None]:
    """A step's random numbers are its own, so that a resumed run rounds as the other would have.

    On a CPU torchao's step runs as it is written: compiled it would want a compiler of C++, for every shape anew.
    """
    devices = [device] if device.type == "cuda" else []
    # Forked: what the run draws elsewhere goes on as if nothing had been drawn here.
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(step)
        with torch.compiler.set_stance("default" if devices else "force_eager"):
            yield
