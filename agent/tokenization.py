"""Text to token ids and back, exactly as written: special tokens kept, none added, spaces as they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def encode(tokenizer: Any, text: str) -> list[int]:
    """The token ids of `text`. Tokenizers that pad or cut by default do neither here."""
    rust = _rust(tokenizer)
    if rust is not None and rust.truncation is None and rust.padding is None and not tokenizer.split_special_tokens:
        return list(rust.encode(text, add_special_tokens=False).ids)
    return list(tokenizer.encode(text, add_special_tokens=False))


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of `ids`, special tokens included."""
    rust = _rust(tokenizer)
    if rust is not None:
        return str(rust.decode(ids, skip_special_tokens=False))
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _rust(tokenizer: Any) -> Any:
    """The tokenizer inside, where the class around it (half the time of a short call) adds nothing."""
    kind: Any = type(tokenizer)
    return tokenizer.backend_tokenizer if _adds_nothing(kind) else None


@lru_cache
def _adds_nothing(kind: Any) -> bool:
    from transformers import PreTrainedTokenizerFast

    own = ("encode", "_encode_plus", "decode", "_decode")
    return issubclass(kind, PreTrainedTokenizerFast) and all(
        getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in own
    )
