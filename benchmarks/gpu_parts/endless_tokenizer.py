"""The tokenizer of a model with random weights that is to sample as many tokens as it is asked for."""

from __future__ import annotations

from typing import Any


class EndlessTokenizer:
    """As many tokens as the model has, none of which ends a turn."""

    eos_token_id = None

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        return self._vocabulary

    def decode(self, ids: Any, **_: Any) -> str:
        """A letter a token."""
        return "x" * len(ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The same letter for each."""
        return ["x"] * len(ids)

    def get_vocab(self) -> dict[str, int]:
        """Names that no other token has."""
        return {f"t{i}": i for i in range(self._vocabulary)}
