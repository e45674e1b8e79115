"""The shape of a model as the plan of memory counts it: read from its configuration, without its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from solostream import hub
from solostream.errors import UserError
from solostream.training.config.learner import LearnerConfig
from solostream.training.config.models import Config

Sizes = Mapping[str, tuple[int, int]]  # name of a module -> its features on either side


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Of a causal language model; sizes in units. normed: queries and keys have norms of their own.

    maps: linear layers but the head. ends: the embedding, and a head that is not tied to it.
    """

    kind: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    normed: bool
    maps: Sizes = field(default_factory=dict)
    ends: Sizes = field(default_factory=dict)

    @property
    def linear(self) -> int:
        """Weights of linear layers but the head: what can lie in 4 bits, and what Muon steps."""
        return sum(one * other for one, other in self.maps.values())

    def adapters(self, config: LearnerConfig) -> int:
        """Parameters of LoRA. Raises UserError where its targets fit no layer."""
        if config.lora is None:
            return 0
        targets, everywhere = config.lora.targets, {**self.ends, **self.maps}
        chosen = list(self.maps) if targets == "all-linear" else [n for n in everywhere if _reached(n, targets)]
        if not chosen:
            last = dict.fromkeys(name.rpartition(".")[2] for name in everywhere)
            raise UserError(
                f'lora.targets = {_toml(targets)} fits no layer of this model: set it to "all-linear", to a list of '
                f"{', '.join(last)}, or to a regular expression for whole names like {next(reversed(everywhere), '')}"
            )
        return config.lora.rank * sum(sum(everywhere[name]) for name in chosen)

    def activations(self, config: LearnerConfig) -> int:
        """Bytes a token that the backward pass keeps, in float32: counted on Llama, Qwen2 and Qwen3."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = 4 * (6 * (self.hidden + q) + 2 * kv + 4 * self.mlp - (0 if self.normed else 2 * (q + kv)))
        if not config.gradient_checkpointing:
            return layer * self.layers
        return layer + self.returning + 4 * self.hidden * self.layers

    @property
    def returning(self) -> int:
        """Bytes a token on the way back through a layer that is still whole: of its gate and its residual stream."""
        return 4 * (2 * self.mlp + self.hidden)


def shape_of(config: Config) -> ModelShape:
    """Raises UserError for an unknown model."""
    if config.model.path == "build":
        b = config.model.build
        query, key = b.heads * b.head_dim, 2 * b.kv_heads * b.head_dim
        layer = b.hidden_size * (2 * query + key + 3 * b.mlp_size + 2) + 2 * b.head_dim
        rows = math.ceil(b.vocabulary / 64) * 64
        parameters = rows * b.hidden_size + b.layers * layer + b.hidden_size
        sizes = b.layers, b.hidden_size, b.heads, b.kv_heads, b.head_dim, b.mlp_size, rows
        maps = decoder_maps(b.layers, b.hidden_size, b.heads * b.head_dim, b.kv_heads * b.head_dim, b.mlp_size)
        ends = {"model.embed_tokens": (rows, b.hidden_size)}
        return ModelShape("qwen3", parameters, *sizes, normed=True, maps=maps, ends=ends)
    import torch
    from transformers import AutoModelForCausalLM

    whole = _hub_config(config.model.path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(whole)
    c = whole.get_text_config()
    heads = c.num_attention_heads
    return ModelShape(
        c.model_type,
        model.num_parameters(),
        c.num_hidden_layers,
        c.hidden_size,
        heads,
        getattr(c, "num_key_value_heads", None) or heads,
        getattr(c, "head_dim", None) or c.hidden_size // heads,
        getattr(c, "intermediate_size", None) or 4 * c.hidden_size,
        c.vocab_size,
        normed=any(name.endswith("q_norm.weight") for name, _ in model.named_parameters()),
        **_modules(model),
    )


def decoder_maps(layers: int, hidden: int, queries: int, keys: int, mlp: int) -> dict[str, tuple[int, int]]:
    """`ModelShape.maps` of a Llama, Qwen2 or Qwen3: sizes in features."""
    attention = {"q": (hidden, queries), "k": (hidden, keys), "v": (hidden, keys), "o": (queries, hidden)}
    gated = {"gate": (hidden, mlp), "up": (hidden, mlp), "down": (mlp, hidden)}
    parts = (("self_attn", attention), ("mlp", gated))
    return {
        f"model.layers.{layer}.{part}.{name}_proj": size
        for layer in range(layers)
        for part, names in parts
        for name, size in names.items()
    }


def _modules(model: Any) -> dict[str, dict[str, tuple[int, int]]]:
    """`maps` and `ends` of a model of transformers, which may be without weights."""
    from torch.nn import Embedding, Linear
    from transformers.pytorch_utils import Conv1D  # what GPT-2 calls its linear layers

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    found: dict[str, dict[str, tuple[int, int]]] = {"maps": {}, "ends": {}}
    for name, module in model.named_modules():
        if isinstance(module, Linear | Conv1D) and module is not head:
            found["maps"][name] = (module.weight.shape[0], module.weight.shape[1])
        elif isinstance(module, Embedding) or (module is head and head.weight is not embedding.weight):
            found["ends"][name] = (module.weight.shape[0], module.weight.shape[1])
    return found


def _reached(name: str, targets: str | tuple[str, ...]) -> bool:
    """Whether peft puts an adapter there: a string is a regular expression for the whole name, a list has its ends."""
    if not isinstance(targets, str):
        return any(f".{name}".endswith(f".{target}") for target in targets)
    try:
        return re.fullmatch(targets, name) is not None
    except re.error as error:
        raise UserError(f'lora.targets = "{targets}" is no regular expression ({error})') from None


def _toml(targets: str | tuple[str, ...]) -> str:
    return f'"{targets}"' if isinstance(targets, str) else str(list(targets))


def _hub_config(path: str) -> Any:
    from transformers import AutoConfig

    try:
        with hub.asked(path):
            found = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f'model.path = "{path}": {hub.no_model(path, error)}') from None
    quantized = (getattr(found, "quantization_config", None) or {}).get("quant_method", "mxfp4")
    if quantized != "mxfp4":  # that of gpt-oss, which transformers makes whole where it is loaded
        raise UserError(
            f'model.path = "{path}" is quantized ({quantized}), which cannot be trained: take the weights that it was '
            'made from, with model.dtype = "4bit" under learner.lora where memory is short'
        )
    return found
