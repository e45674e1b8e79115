"""Weights on their way to an engine in other processes: one file in memory.

It has no name in any folder: nothing is left of it when this process is killed, and /dev/shm, which containers keep at
64 MB, may be small. Adapters are a thousandth of that, and who loads them wants a folder: they get one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from solostream.agent.engine import Weights
from solostream.agent.engines.live_weights import Adapters
from solostream.errors import UserError

TIED = "lm_head.weight"
ALIGNED, LENGTH = 64, 8  # bytes: where a tensor may begin; of the length of the index


def stored_shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a model folder or of a Hugging Face id that is on this machine.

    Empty when they are not here, or not in safetensors files.
    """
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(_folder(model).glob("model*.safetensors")):
        with safe_open(file, "np") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    return shapes


def _folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return Path(model)


def check(weights: Weights, shapes: dict[str, tuple[int, ...]]) -> None:
    """vLLM loads an incomplete set without a word: refuse one. Raises UserError."""
    if shapes:
        check_shapes({name: tuple(weights[name].shape) for name in weights}, shapes)


def check_shapes(given: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]]) -> None:
    """As `check`, where nothing but the shapes is known."""
    if not shapes:
        return
    missing = sorted(shapes.keys() - given.keys())
    unknown = sorted(given.keys() - shapes.keys() - {TIED})
    other = sorted(n for n in shapes.keys() & given.keys() if given[n] != shapes[n])
    for names, what in ((missing, "are missing"), (unknown, "are unknown to the model"), (other, "have another shape")):
        if names:
            raise UserError(
                f"weights do not fit the engine's model: {len(names)} {what} ({', '.join(names[:3])}); send the state"
                " dict of the same architecture"
            )


@contextmanager
def weight_file(weights: Weights, dtype: str | None = None) -> Iterator[str]:
    """The path of a file that holds `weights`, for `read_weights`; gone afterwards.

    dtype: of what samples ("bfloat16"), which would round to it anyway: half the bytes of float32. None: as they are.
    The output layer is named also where it is tied to the embedding: on CPUs vLLM keeps a packed copy of its own, which
    would silently stay as it was. In the file the two are one tensor.

    The bytes of each tensor, then where they are, in JSON, and how long that is: one tensor at a time leaves the
    device and is converted, so that all of them lie in memory once. (`torch.save` and safetensors take all tensors
    at one time, and safetensors has no two names for one.)
    """
    import torch

    embedding = next((name for name in weights if name.endswith("embed_tokens.weight")), None)
    tied = embedding is not None and (TIED not in weights or _shares(weights[TIED], weights[embedding]))
    index: dict[str, tuple[str, tuple[int, ...], int]] = {}
    handle = os.memfd_create("solostream-weights")
    try:
        with open(handle, "wb", closefd=False) as file:
            for name in weights:
                if tied and name == TIED:
                    continue
                tensor = weights[name].detach()
                to = getattr(torch, dtype) if dtype and tensor.is_floating_point() else tensor.dtype
                place = file.seek(-file.tell() % ALIGNED, os.SEEK_CUR)
                file.write(tensor.to("cpu", to).contiguous().reshape(-1).view(torch.uint8).numpy())
                index[name] = str(to).removeprefix("torch."), tuple(tensor.shape), place
            if tied and embedding is not None:
                index[TIED] = index[embedding]
            told = json.dumps(index).encode()
            file.write(told + len(told).to_bytes(LENGTH))
        yield f"/proc/{os.getpid()}/fd/{handle}"
    finally:
        os.close(handle)


def read_weights(path: str) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of a `weight_file`; the tensors are views of the file, which is mapped and not read."""
    import torch

    size = os.stat(path).st_size
    whole = torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
    end = size - LENGTH
    told = int.from_bytes(bytes(whole[end:].numpy()))
    for name, (dtype, shape, place) in json.loads(bytes(whole[end - told : end].numpy())).items():
        to = getattr(torch, dtype)
        yield name, whole[place : place + math.prod(shape) * to.itemsize].view(to).reshape(shape)


@contextmanager
def adapter_folder(adapters: Adapters) -> Iterator[str]:
    """The path of a folder that peft and vLLM load; gone afterwards."""
    from safetensors.torch import save_file

    with TemporaryDirectory(prefix="solostream-adapter-") as folder:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in adapters.tensors.items()}
        save_file(tensors, Path(folder) / "adapter_model.safetensors")
        (Path(folder) / "adapter_config.json").write_text(json.dumps(adapters.config), encoding="utf-8")
        yield folder


def _shares(one: Any, other: Any) -> bool:
    return bool(one.data_ptr() == other.data_ptr())
