"""Linear layers in 4 bits, by bitsandbytes: the base under adapters in a quarter of bfloat16 (QLoRA, arXiv 2305.14314).

A weight is one of sixteen quantiles of a normal distribution (NF4) times the largest of its block of 64, which is kept
in 8 bits itself: 4.13 bits a weight. Embeddings, head, norms and biases stay in bfloat16, in which all is computed: for
each product a layer's weights are made whole. docs/decisions.md says why bitsandbytes.
"""

from __future__ import annotations

import copy
import logging
from importlib.util import find_spec
from typing import Any

from solostream.errors import UserError

BLOCK = 64  # weights with a scale of their own
BYTES = (
    0.5 + (1 + 4 / 256) / BLOCK
)  # a weight: four bits, and its block's scale in 8 bits, with a scale for 256 of those


def check() -> None:
    """Raises UserError where what 4 bits need is not installed."""
    missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if missing:
        raise UserError(f"model.dtype = \"4bit\" needs {' and '.join(missing)}: pip install 'solostream[4bit]'")


def quiet() -> None:
    """Before peft is imported, which imports bitsandbytes: that says which kernels of the Hub it has not found."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def quantization() -> Any:
    """For `from_pretrained`, which then makes each tensor small as it is read. Raises UserError."""
    check()
    quiet()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="bfloat16",
    )


def settle(model: Any) -> None:
    """What was loaded in 4 bits stays as it is. Raises ValueError for weights that would be computed wrongly."""
    for name, module in model.named_modules():
        if not is_packed(module):
            continue
        where = None
        if module.source_cls.__name__ == "Conv1D":
            where = "keeps its weights transposed"
        # There it takes the scale of another block as soon as a row ends within one (0.50.2; right on a GPU).
        elif module.in_features % BLOCK and module.weight.device.type == "cpu":
            where = f"reads {module.in_features} numbers, no multiple of {BLOCK}, on a CPU"
        if where:
            raise ValueError(f'{name} {where}, which model.dtype = "4bit" cannot: take "bfloat16"')
        # On some CPUs a layer that is asked by a sampler would lay its weights out anew, in place, and differently: the
        # learner computes with these very weights.
        module.support_avx512bf16_for_cpu = False


def is_packed(module: Any) -> bool:
    """Whether the weights of `module` are in 4 bits."""
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def whole(weight: Any) -> Any:
    """`weight` [out, in] with a number for each; one that is not in 4 bits as it is."""
    if getattr(weight, "quant_state", None) is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def size(parameter: Any) -> int:
    """Of how many numbers `parameter` is, however they are kept."""
    state = getattr(parameter, "quant_state", None)
    count: int = parameter.numel() if state is None else state.shape.numel()
    return count


def plain(config: Any) -> Any:
    """A copy of transformers' `config`, of a model that is not quantized."""
    found = copy.deepcopy(config)
    if hasattr(found, "quantization_config"):
        del found.quantization_config
    return found
