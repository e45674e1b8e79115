"""Continuous batching over any Hugging Face causal language model, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from solostream.agent.engines.hf.engine import HFEngine
from solostream.agent.engines.hf.forward import load_model
from solostream.agent.engines.pretrained import tokenizer_of

__all__ = ["HFEngine", "load_model", "open_hf"]


def open_hf(
    model: str,
    *,
    tokenizer: Any = None,
    module: Callable[[], Any] | None = None,
    slots: int = 256,
    max_len: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    reproducible: bool = False,
    graphs: bool = True,
    concurrency: int = 0,
) -> HFEngine:
    """The engine `hf`. `module`, a function, makes the model where it does not come from the folder or id `model`.

    concurrency: at most so many episodes have a cache at a time, the others wait; 0: all of `slots`.
    Raises UserError when there is no such model, and for a tokenizer that is not the model's.
    """
    known = tokenizer_of(model, tokenizer)
    loaded = load_model(model, dtype) if module is None else module()
    slots = min(slots, concurrency or slots)
    return HFEngine(loaded, known, slots=slots, max_len=max_len, seed=seed, reproducible=reproducible, graphs=graphs)
