"""The device of a model in this process: where its weights are read to, what it cannot do, what it says when it fails.

The one place that knows torch's words for a device that is full or gone. For the sampler it is an EngineError, for all
else a UserError: either way one line with what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from solostream.agent.engine import EngineError
from solostream.errors import SandboxError, UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AMPERE = 8  # the first generation of NVIDIA's GPUs (compute capability) that has bfloat16
KEPT = "what is finished is kept: train goes on with --resume, eval and distill with the same command"
# Without a class of its own: on a CPU, and on a GPU where CUDA itself or cuBLAS found no room to begin with.
_FULL = re.compile(r"allocate memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED")
# How torch, cuBLAS and NCCL begin to say that a device, or its driver, is gone.
_GONE = re.compile(r"CUDA error|CUDA driver error|CUBLAS_STATUS_|CUDNN_STATUS_|NCCL error|device-side assert")


def _torchs(error: BaseException) -> bool:
    """Whether it may be torch's: ours, which may quote others, have their remedy already."""
    return isinstance(error, RuntimeError) and not isinstance(error, EngineError | SandboxError)


def full(error: BaseException) -> str:
    """The sentence of `error` that says what had no room; "" where it is about something else."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not (_torchs(error) and _FULL.search(text)):
        return ""
    # Around that sentence torch has a page about its allocators.
    sentences = (sentence.strip() for sentence in re.split(r"\.\s|\n", text))
    return next((one for one in sentences if "memory" in one or _FULL.search(one)), "the CPU's memory is full")


def told(error: BaseException, if_full: str) -> str:
    """One line for what torch raised about a device that is full, or gone; "" for any other error. if_full: remedy."""
    if said := full(error):
        return f"out of memory ({said}): {if_full}"
    lines = str(error).splitlines() if _torchs(error) else []
    # After such an error a process cannot use the device any more, whatever it does.
    if said := next((line for line in lines if _GONE.search(line)), ""):
        return f"the GPU failed ({said}): nvidia-smi says whether it is there, dmesg (Xid) why it went; {KEPT}"
    return ""


def with_fewer(slots: int) -> str:
    """What to do where a sampler of so many slots fills the device, whoever has opened it."""
    # Of a run's settings only the first may change on resume: the others are what the checkpoint was made of.
    fewer = max(slots // 2, 1)
    return (
        f"sample fewer than {slots} episodes at a time: train with engine.hf.concurrency = {fewer}, or begin a run "
        "with a lower rollout.batch, rollout.over_provision or env.episode_tokens; eval and distill with --concurrency "
        f"{fewer}; chat with a lower --max-tokens; {KEPT}"
    )


@contextmanager
def device_told(if_full: str) -> Iterator[None]:
    """Turn what `told` knows into a UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if said := told(error, if_full):
            raise UserError(said) from error
        raise


def has_bfloat16(device: torch.device) -> bool:
    """Whether it is a GPU that computes with it in hardware; CPUs compute with it too, at their own pace."""
    # torch's own `is_bf16_supported` asks about the current device, and says yes where it is only emulated (T4, V100).
    return device.type == "cuda" and (
        torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= AMPERE
    )


def dtype_on(device: torch.device, dtype: str, setting: str) -> torch.dtype:
    """`dtype` as torch's. Raises UserError, which names `setting`, for another name and for a GPU without bfloat16."""
    if dtype not in DTYPES:
        raise UserError(f'{setting} = "{dtype}" is not supported: {" or ".join(DTYPES)}')
    # Refused and not replaced: who asked for half the memory would run out of it in the middle of a run.
    if dtype == "bfloat16" and device.type == "cuda" and not has_bfloat16(device):
        raise UserError(f'{torch.cuda.get_device_name(device)} has no bfloat16: set {setting} = "float32"')
    return DTYPES[dtype]


def straight_to(device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told, so that each tensor is read to `device` and no model lies in the CPU's memory.

    Nothing on a CPU; nothing without accelerate either, without which transformers reads to the CPU only.
    """
    there = device.type != "cpu" and find_spec("accelerate") is not None
    return {"device_map": {"": device}} if there else {}
