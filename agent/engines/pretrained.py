"""Tokenizers by name, and whether two mean the same by their ids; the one line to say when a name does not load."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from solostream import hub
from solostream.errors import UserError

FORMS = (
    "PATH or a Hugging Face id, vllm:PATH, http://HOST:PORT (a vLLM server; several, separated by commas), "
    "chat:URL#MODEL (any OpenAI-compatible endpoint, evaluation only), scripted:MODULE:FUNCTION, or an engine of your "
    "own as MODULE:OBJECT:PATH"
)


def load_tokenizer(name: str) -> Any:
    """A tokenizer of transformers. Raises UserError when there is none."""
    from transformers import AutoTokenizer

    try:
        with hub.asked(name):
            return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(no_model(name, error)) from None


def tokenizer_of(model: str, tokenizer: Any) -> Any:
    """The tokenizer to use with `model`: its own, or one with the same vocabulary by name. Raises UserError.

    One that is loaded already is the caller's to vouch for.
    """
    if tokenizer is None:
        return load_tokenizer(model)
    if not isinstance(tokenizer, str):
        return tokenizer
    own, other = load_tokenizer(model), load_tokenizer(tokenizer)
    if vocabulary_hash(own) != vocabulary_hash(other):
        raise UserError(f"the vocabulary of {tokenizer!r} is not the one of {model!r}: leave the tokenizer out")
    return other


def vocabulary_hash(tokenizer: Any) -> str:
    """Of tokens and their ids: two tokenizers that agree on it give the ids the same meaning."""
    record = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def no_model(name: str, error: Exception) -> str:
    """One line for a model or tokenizer that does not load."""
    return f"cannot load {name!r}: {hub.no_model(name, error)}; an engine is {FORMS}"
