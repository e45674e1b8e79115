"""The weights of a model that is being trained in this process: by name, as they are now, and by one owner at a time.

A sampler in the same process reads the learner's own parameters: no clone, no second copy. Three things keep it right:

- `module` is a model of its own over those parameters: configuration, buffers and mode are copies, for each side
  changes its own (the learner another attention function, the sampler evaluation mode).
- `writing` holds off the sampler's steps while the optimizer writes, and a step of the sampler holds off the optimizer.
- After the first write `moved` is set: what a sampler has cached is of other weights, and no version is theirs yet. It
  waits until the owner of both has said which (`settle`, from `Engine.load_weights`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from solostream.agent.engines import four_bit


@dataclass(frozen=True, slots=True)
class Adapters:
    """LoRA's matrices under peft's names, and what its `adapter_config.json` says of them."""

    tensors: dict[str, Any]
    config: dict[str, Any]


class LiveWeights(Mapping[str, Any]):
    """The weights of `model`, a plain model of transformers or one whose layers peft has adapted.

    As a mapping: Hugging Face name -> tensor, tied heads too, whole where they lie in 4 bits, with adapters merged in
    (each when it is asked for); a live view, copy to keep.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.moved = False
        self._lock = threading.Lock()
        adapted = {
            f"{name}.base_layer.weight": module
            for name, module in model.named_modules()
            if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
        }
        self._adapted = {name.removesuffix(".base_layer.weight"): module for name, module in adapted.items()}
        packed = {f"{name}.weight": m.weight for name, m in model.named_modules() if four_bit.is_packed(m)}
        self._places = {
            name.replace(".base_layer.", "."): (packed.get(name, tensor.detach()), adapted.get(name))
            for name, tensor in model.state_dict().items()
            if ".lora_" not in name and name.rpartition(".weight.")[0] + ".weight" not in packed  # scales of those
        }

    def __getitem__(self, name: str) -> Any:
        place, adapted = self._places[name]
        tensor = four_bit.whole(place)
        if adapted is None:
            return tensor
        return tensor + adapted.get_delta_weight("default").detach().to(tensor.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def adapters(self) -> Adapters | None:
        """The adapters alone, as they are now; None where all weights are trained."""
        if not self._adapted:
            return None
        tensors, layers = {}, list(self._adapted.values())
        for name, layer in self._adapted.items():
            for side, of_name in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                tensors[f"base_model.model.{name}.{side}.weight"] = of_name["default"].weight.detach()
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": layers[0].r["default"],
            "lora_alpha": layers[0].lora_alpha["default"],
            "target_modules": sorted({name.rpartition(".")[2] for name in self._adapted}),
            "bias": "none",
        }
        return Adapters(tensors, config)

    def module(self) -> Any:
        """A model that shares every parameter with this one, and nothing else that anybody changes."""
        parameters = {id(p): p for p in self.model.parameters()}
        return copy.deepcopy(self.model, parameters)

    def within(self, module: Any) -> bool:
        """Whether `module` reads these parameters, so that nothing needs to be copied to it."""
        own = {id(p) for p in self.model.parameters()}
        return any(id(p) in own for p in module.parameters())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Held by whoever changes the parameters."""
        with self._lock:
            self.moved = True
            yield

    @contextmanager
    def reading(self) -> Iterator[bool]:
        """Held by a step of the sampler; False when it must not be taken, for the weights have no version yet."""
        with self._lock:
            yield not self.moved

    def settle(self) -> None:
        """What they are now has a version, and may be sampled from."""
        with self._lock:
            self.moved = False


def version_a_token(changes: list[tuple[int, int]], start: int, stop: int) -> list[int]:
    """One version a token of [start, stop), from (version, the position at which it began)."""
    ends = [position for position, _ in changes[1:]] + [stop]
    return [v for (begin, v), end in zip(changes, ends, strict=True) for _ in range(max(begin, start), end)]
