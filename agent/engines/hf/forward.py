"""One forward pass over a `Feed`: through any transformers model, or through a lean decoder for small common ones.

At half a million parameters a transformers forward spends most of its time between the matrix products. The lean
decoder reads the same weights with those products fused and the norms' gains folded in; its logits equal the model's up
to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel

from solostream import hub
from solostream.agent.engines.hf.cache import Feed, SlotCache
from solostream.agent.engines.pretrained import no_model
from solostream.errors import UserError

SMALL = 64_000_000  # parameters up to which a fused copy of the weights is cheap and pays


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
            attention_mask=batch.mask(),
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
        return self._cache.update(layer_idx, self._batch, key_states, value_states)


@dataclass(slots=True)
class _Layer:
    """Fused weights, each (out, in) with its bias or None; `gain` scales queries and keys as rotary positions do."""

    qkv: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    gate_up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]
    gain: Tensor | None  # (heads + kv_heads, head_dim), of q_norm and k_norm


class LeanForward:
    """Qwen3, Qwen2 and Llama decoders: computes what `ModelForward` does, faster while models are small."""

    in_place = False  # it reads copies, fused when the weights were new

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        config: Any = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        self._rotary = torch.empty(0), torch.empty(0)
        self.refresh()

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this code computes the model, and it is small enough (`SMALL`) for fused weights to pay."""
        config: Any = model.config
        rope = getattr(config, "rope_parameters", None) or {}
        return (
            config.model_type in ("qwen3", "qwen2", "llama")
            and config.hidden_act == "silu"
            and rope.get("rope_type") in ("default", "linear", "llama3", "yarn")
            and model.num_parameters() <= SMALL
            and not getattr(config, "pretraining_tp", 1) > 1
        )

    @torch.inference_mode()
    def refresh(self) -> None:
        """Fuse the model's weights anew."""
        inner: Any = self.model.model
        self.embedding = _whole(inner.embed_tokens).clone()
        self.layers = []
        for block in inner.layers:
            a, m = block.self_attn, block.mlp
            before, after = block.input_layernorm.weight, block.post_attention_layernorm.weight
            gain = None
            if hasattr(a, "q_norm"):
                q, k = a.q_norm.weight, a.k_norm.weight
                gain = torch.cat([q.expand(self.heads, -1), k.expand(self.kv_heads, -1)])
            self.layers.append(
                _Layer(
                    qkv=_fuse([a.q_proj, a.k_proj, a.v_proj], before),
                    out=_fuse([a.o_proj]),
                    gate_up=_fuse([m.gate_proj, m.up_proj], after),
                    down=_fuse([m.down_proj]),
                    gain=gain,
                )
            )
        head: Any = self.model.get_output_embeddings()
        self.head = _fuse([head], inner.norm.weight)

    @torch.inference_mode()
    def __call__(self, batch: Feed, cache: SlotCache) -> Tensor:
        """Logits (rows, vocabulary) after each row's last token."""
        rows, width = batch.tokens.shape
        cos, sin = self._positions(batch, cache.columns)
        mask = batch.mask()
        x = F.embedding(batch.tokens, self.embedding)
        for index, layer in enumerate(self.layers):
            h = F.linear(self._norm(x), *layer.qkv).view(rows, width, -1, self.head_dim)
            v = h[:, :, self.heads + self.kv_heads :]
            qk = h[:, :, : self.heads + self.kv_heads]
            if layer.gain is not None:
                qk = self._norm(qk) * layer.gain
            qk = qk * cos + _rotate_half(qk) * sin
            q, k = qk.split([self.heads, self.kv_heads], 2)
            keys, values = cache.update(index, batch, k.transpose(1, 2), v.transpose(1, 2))
            x = x + F.linear(self._attend(q, keys, values, mask), *layer.out)
            gate, up = F.linear(self._norm(x), *layer.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, *layer.down)
        return F.linear(self._norm(x[:, -1]), *self.head)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        rows, width = q.shape[:2]
        if width == 1:  # the query heads that share a key head take the place of a sequence: one product reads the keys
            q = q.view(rows, self.kv_heads, -1, self.head_dim)
            return F.scaled_dot_product_attention(q, keys, values, mask).reshape(rows, 1, -1)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, mask, enable_gqa=True)
        return out.transpose(1, 2).reshape(rows, width, -1)

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)

    def _positions(self, batch: Feed, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin (rows, width, 1, head_dim) from the model's own rotary module."""
        if len(self._rotary[0]) < length:
            everywhere = torch.arange(length, device=self.device)[None]
            cos, sin = self.model.model.rotary_emb(self.embedding, everywhere)
            self._rotary = cos[0], sin[0]
        cos, sin = (F.embedding(batch.positions, table)[:, :, None] for table in self._rotary)
        return cos, sin


def _fuse(linears: list[Any], gain: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """One weight and bias for linears that read the same input, which a norm has scaled by `gain`."""
    weight = torch.cat([_whole(linear) for linear in linears])
    if gain is not None:
        weight = weight * gain
    biased = linears[0].bias is not None
    return weight, torch.cat([linear.bias for linear in linears]) if biased else None


def _whole(layer: Any) -> Tensor:
    """The layer's weight, with what peft's adapters add to it."""
    if hasattr(layer, "base_layer") and hasattr(layer, "get_delta_weight"):
        base: Tensor = layer.base_layer.weight
        added: Tensor = layer.get_delta_weight("default")
        return base + added.to(base.dtype)
    weight: Tensor = layer.weight
    return weight


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def forward_of(model: PreTrainedModel) -> ModelForward | LeanForward:
    """The faster of the two that computes `model`. Raises UserError for attention that a slot cache cannot hold."""
    config: Any = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        kinds.discard("full_attention")
        found = ", ".join(sorted(kinds)) or "a sliding window"
        raise UserError(
            f"the hf engine runs full attention only, {config.model_type} has {found}: use the engine vllm:PATH"
        )
    return LeanForward(model) if LeanForward.fits(model) else ModelForward(model)


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
    """A causal language model, on the GPU if there is one. dtype: "auto": as stored, but float32 on a CPU.

    Raises UserError when there is no such model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = "float32" if dtype == "auto" and device == "cpu" else dtype
    try:
        with hub.asked():
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=wanted)
    except (OSError, ValueError) as error:
        raise UserError(no_model(name, error)) from None
    placed: PreTrainedModel = model.to(device).eval()
    return placed
