"""A lean decoder for Qwen3, Qwen2 and Llama: what their own `forward` computes up to rounding, and far less between.

At half a million parameters a transformers forward spends most of its time between the matrix products; at a hundred
million on a CPU it spends it on repeating keys for every query head, because its attention gets a mask. Here the query
heads that share a key head take the place of a sequence, so one product reads the keys once, where they lie.

Small models are read from copies: products that read the same input are fused, norms' gains folded in, and weights lie
(in, out), which a CPU multiplies few rows with up to twice as fast as with (out, in). Larger ones are read in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from solostream.agent.engines import four_bit
from solostream.agent.engines.hf.cache import Feed, SlotCache

SMALL = 64_000_000  # parameters up to which a copy of the weights is cheap and pays


class _Block(Protocol):
    """A decoder layer between its attentions. x: (tokens, hidden), the residual stream."""

    gain: Tensor | None  # (heads + kv_heads, head_dim), of q_norm and k_norm; scales them as rotary positions do

    def qkv(self, x: Tensor) -> Tensor:
        """(tokens, (heads + 2 kv_heads) head_dim), after the norm."""

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        """x after the output projection of what was `attended`, (tokens, heads head_dim), and the MLP."""


class _Linear:
    """A copy of linears that read the same input, which a norm has scaled by `gain`."""

    weight: Tensor  # (in, out)
    bias: Tensor | None = None

    def read(self, linears: list[Any], gain: Tensor | None = None) -> None:
        """Into the memory of the copy before: new memory each time would leave holes that nothing else fits into."""
        wholes = [_whole(linear) for linear in linears]
        outs = [len(whole) for whole in wholes]
        if not hasattr(self, "weight"):
            self.weight = wholes[0].new_empty(wholes[0].shape[1], sum(outs))
        for part, whole in zip(self.weight.split(outs, 1), wholes, strict=True):
            part.copy_(whole.t())
        if gain is not None:
            self.weight *= gain[:, None]
        if linears[0].bias is not None:
            self.bias = torch.cat([linear.bias for linear in linears])

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def added_to(self, x: Tensor, inner: Tensor) -> Tensor:
        """x + self(inner)."""
        out = torch.addmm(x, inner, self.weight)
        return out if self.bias is None else out + self.bias


class _Copied:
    """A block's weights, copied and fused."""

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.qkv_linear, self.out, self.gate_up, self.down = (_Linear() for _ in range(4))
        self.gain: Tensor | None = None

    def read(self, block: Any, gain: Tensor | None) -> None:
        """The weights of now."""
        a, m = block.self_attn, block.mlp
        self.qkv_linear.read([a.q_proj, a.k_proj, a.v_proj], block.input_layernorm.weight)
        self.out.read([a.o_proj])
        self.gate_up.read([m.gate_proj, m.up_proj], block.post_attention_layernorm.weight)
        self.down.read([m.down_proj])
        self.gain = gain

    def qkv(self, x: Tensor) -> Tensor:
        return self.qkv_linear(_norm(x, self.eps))

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.out.added_to(x, attended)
        gate, up = self.gate_up(_norm(x, self.eps)).chunk(2, -1)
        return self.down.added_to(x, F.silu(gate).mul_(up))


@dataclass(slots=True)
class _InPlace:
    """A block that is read where it lies, by its own linears: the learner may have changed them, or adapted them."""

    eps: float
    block: Any
    gain: Tensor | None

    def qkv(self, x: Tensor) -> Tensor:
        a, h = self.block.self_attn, _norm(x, self.eps, self.block.input_layernorm.weight)
        return torch.cat([a.q_proj(h), a.k_proj(h), a.v_proj(h)], -1)

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.block.self_attn.o_proj(attended)
        m, h = self.block.mlp, _norm(x, self.eps, self.block.post_attention_layernorm.weight)
        out: Tensor = x + m.down_proj(F.silu(m.gate_proj(h)).mul_(m.up_proj(h)))
        return out


class LeanForward:
    """Computes what `ModelForward` does, faster."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.in_place = model.num_parameters() > SMALL  # else it reads copies, made when the weights were new
        config: Any = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        self._rotary = torch.empty(0), torch.empty(0)
        self._copies = [] if self.in_place else [_Copied(self.eps) for _ in range(config.num_hidden_layers)]
        self._blocks: Sequence[_Block] = self._copies
        self._last = _Linear()
        self.refresh()

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this code computes the model."""
        config: Any = model.config
        rope = getattr(config, "rope_parameters", None) or {}
        return (
            config.model_type in ("qwen3", "qwen2", "llama")
            and config.hidden_act == "silu"
            and rope.get("rope_type") in ("default", "linear", "llama3", "yarn")
            and not getattr(config, "pretraining_tp", 1) > 1
        )

    @torch.inference_mode()
    def refresh(self) -> None:
        """The model's weights are new."""
        inner: Any = self.model.model
        gains = [self._gain(block.self_attn) for block in inner.layers]
        if self.in_place:
            self._blocks = [_InPlace(self.eps, b, g) for b, g in zip(inner.layers, gains, strict=True)]
            return
        for copy, block, gain in zip(self._copies, inner.layers, gains, strict=True):
            copy.read(block, gain)
        self._last.read([self.model.get_output_embeddings()], inner.norm.weight)
        self._embedding = _whole(inner.embed_tokens).clone()

    def _embed(self, tokens: Tensor) -> Tensor:
        """Token ids to the residual stream."""
        if not self.in_place:
            return F.embedding(tokens, self._embedding)
        embedded: Tensor = self.model.model.embed_tokens(tokens)
        return embedded

    def _head(self, x: Tensor) -> Tensor:
        """The residual stream to logits."""
        if not self.in_place:
            return self._last(_norm(x, self.eps))
        head: Any = self.model.get_output_embeddings()
        logits: Tensor = head(_norm(x, self.eps, self.model.model.norm.weight))
        return logits

    def _gain(self, attention: Any) -> Tensor | None:
        if not hasattr(attention, "q_norm"):
            return None
        q, k = attention.q_norm.weight, attention.k_norm.weight
        return torch.cat([q.expand(self.heads, -1), k.expand(self.kv_heads, -1)])

    @torch.inference_mode()
    def __call__(self, batch: Feed, cache: SlotCache) -> Tensor:
        """Logits (rows, vocabulary) after each row's last token."""
        rows, width = batch.tokens.shape
        cos, sin = self._positions(batch, cache.columns)
        x = self._embed(batch.tokens.flatten())
        mask, groups = batch.mask(x.dtype), batch.by_length()
        masks = [mask if group.rows is None else mask[group.rows, ..., : group.n_keys] for group in groups]
        order = [group.rows for group in groups if group.rows is not None]
        back = torch.cat(order).argsort() if order else None
        turned = self.heads + self.kv_heads  # heads that rotary positions turn
        half = self.head_dim // 2
        for index, block in enumerate(self._blocks):
            h = block.qkv(x).view(rows * width, -1, self.head_dim)
            qk = h[:, :turned]
            if block.gain is not None:
                qk = _norm(qk, self.eps) * block.gain
            qk = torch.addcmul(qk * cos, torch.cat([qk[..., half:], qk[..., :half]], -1), sin)
            q, k = qk.split([self.heads, self.kv_heads], 1)
            k, v = (one.view(rows, width, -1, self.head_dim).transpose(1, 2) for one in (k, h[:, turned:]))
            cache.write(index, batch, k, v)
            parts = []
            for group, seen in zip(groups, masks, strict=True):
                keys, values = cache.read(index, group.slots, len(seen), group.n_keys)
                parts.append(self._attend(q if group.rows is None else q[group.rows], keys, values, seen, width))
            x = block.close(x, parts[0] if back is None else torch.cat(parts)[back])
        return self._head(x.view(rows, width, -1)[:, -1])

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, width: int) -> Tensor:
        """(tokens, heads head_dim). q: (tokens, heads, head_dim), width tokens a row."""
        rows = len(q) // width
        if width == 1:
            q = q.reshape(rows, self.kv_heads, -1, self.head_dim)
            return F.scaled_dot_product_attention(q, keys, values, mask).reshape(rows, -1)
        q = q.view(rows, width, self.heads, self.head_dim).transpose(1, 2)
        if q.is_cuda:  # no kernel there takes both a mask and shared keys
            keys, values = (one.repeat_interleave(self.heads // self.kv_heads, 1) for one in (keys, values))
        out = F.scaled_dot_product_attention(q, keys, values, mask, enable_gqa=not q.is_cuda)
        return out.transpose(1, 2).reshape(rows * width, -1)

    def _positions(self, batch: Feed, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin (tokens, 1, head_dim) from the model's own rotary module; sin with the sign of its half."""
        if len(self._rotary[0]) < length:
            everywhere = torch.arange(length, device=self.device)[None]
            cos, sin = self.model.model.rotary_emb(self._embed(everywhere[:, :1]), everywhere)
            sign = torch.ones(self.head_dim, device=self.device, dtype=sin.dtype)
            sign[: self.head_dim // 2] = -1
            self._rotary = cos[0], sin[0] * sign
        cos, sin = (F.embedding(batch.positions.flatten(), table)[:, None] for table in self._rotary)
        return cos, sin


def _norm(x: Tensor, eps: float, gain: Tensor | None = None) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], gain, eps)


def _whole(layer: Any) -> Tensor:
    """The layer's weight, with what peft's adapters add to it."""
    if hasattr(layer, "base_layer") and hasattr(layer, "get_delta_weight"):
        base: Tensor = four_bit.whole(layer.base_layer.weight)
        added: Tensor = layer.get_delta_weight("default")
        return base + added.to(base.dtype)
    weight: Tensor = four_bit.whole(layer.weight)
    return weight
