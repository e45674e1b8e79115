"""One forward pass over a `Feed`: by a model's own code, or by the lean decoder (`lean.py`) for common ones.

On a GPU the lean decoder's steps are CUDA graphs (`graphs.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig, PreTrainedModel

from solostream import hub
from solostream.agent.engines import four_bit
from solostream.agent.engines.hf.cache import Feed, SlotCache
from solostream.agent.engines.hf.device import device_told, dtype_on, has_bfloat16, straight_to
from solostream.agent.engines.hf.graphs import GraphedForward
from solostream.agent.engines.hf.lean import LeanForward
from solostream.agent.engines.hf.reading import read_model
from solostream.agent.engines.pretrained import no_model
from solostream.errors import UserError


class ModelForward:
    """Any decoder with full attention, by its own `forward`."""

    in_place = True  # each step reads the model's own weights

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device

    def refresh(self) -> None:
        """The model's weights have changed: nothing to do, they are read in place."""

    @torch.inference_mode()
    def __call__(self, batch: Feed, cache: SlotCache) -> Tensor:
        """Logits (rows, vocabulary) after each row's last token."""
        logits: Tensor = self.model(
            input_ids=batch.tokens,
            attention_mask=batch.mask(self.model.dtype),
            position_ids=batch.positions,
            past_key_values=_CacheOfBatch(batch, cache),
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]


class _CacheOfBatch(Cache):
    """What transformers' attention layers call."""

    def __init__(self, batch: Feed, cache: SlotCache) -> None:
        super().__init__(layers=[])
        self._batch, self._cache = batch, cache

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        batch = self._batch
        self._cache.write(layer_idx, batch, key_states, value_states)
        return self._cache.read(layer_idx, batch.slots, len(batch.tokens), batch.n_keys)


def forward_of(model: PreTrainedModel, *, graphs: bool = True) -> ModelForward | LeanForward | GraphedForward:
    """The fastest that computes `model`. Raises UserError for attention that a slot cache cannot hold.

    graphs: False for none on a GPU, which spares their memory.
    """
    refuse_other_attention(model.config)
    if not LeanForward.fits(model):
        return ModelForward(model)
    lean = LeanForward(model)
    packed = any(map(four_bit.is_packed, model.modules()))  # nobody has tried whether a graph takes their kernels
    return GraphedForward(lean) if graphs and not packed and lean.device.type == "cuda" else lean


def refuse_other_attention(config: PretrainedConfig) -> None:
    """Raises UserError, which names the engine that can, for windows and for layers that keep a state instead."""
    text: Any = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(text, "sliding_window", None):
        kinds.discard("full_attention")
        found = ", ".join(sorted(kinds)) or "a sliding window"
        raise UserError(
            f"the hf engine runs full attention only, {text.model_type} has {found}: use the engine vllm:PATH"
            " (solostream train … --engine vllm)"
        )


def load_state(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into `model`. Raises UserError when names or shapes differ; nothing is copied then."""
    own = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(own.keys() - weights.keys() - tied)
    unknown = sorted(weights.keys() - own.keys())
    shapes = sorted(name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape)
    for names, what in (
        (missing, "are missing"),
        (unknown, "are unknown to the model"),
        (shapes, "have another shape"),
    ):
        if names:
            raise UserError(
                f"weights do not fit the engine's model: {len(names)} {what} ({', '.join(names[:3])}); send the state"
                " dict of the same architecture"
            )
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def load_model(name: str, dtype: str = "auto") -> PreTrainedModel:
    """A causal language model, on the GPU if there is one.

    dtype: "auto": as stored, but float32 on a CPU and on a GPU without bfloat16. Raises UserError when there is no such
    model, or no room for it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto":
        wanted: Any = "auto" if has_bfloat16(device) else "float32"
    else:
        wanted = dtype_on(device, dtype, "dtype")
    with device_told(
        f"{name} does not fit: make room (nvidia-smi), take a smaller model, or let vLLM serve it on several GPUs "
        "(http://HOST:PORT)"
    ):
        try:
            with hub.asked(name):
                model: Any = read_model(name, dtype=wanted, **straight_to(device))
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(no_model(name, error)) from None
        placed: PreTrainedModel = model.to(device).eval()
        return placed
