"""Stop strings on the level of tokens: which tokens could complete one, and whether one just did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from solostream.agent.engine import Generation
from solostream.agent.tokenization import decode


class StopTable:
    """Finds stop strings without decoding every token of every row.

    A token can complete a stop string only if it contains the string or begins with the string's end. `mask` finds
    those once for each set of stops; only where the mask hits is the tail of the row decoded.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """vocabulary: the width of the model's logits (at least the tokenizer's size)."""
        self._tokenizer = tokenizer
        self._size = vocabulary
        self._texts: list[str] | None = None

    def mask(self, stop: Sequence[str], stop_token_ids: Sequence[int]) -> np.ndarray:
        """(vocabulary,) bool: the tokens after which a turn may have to end."""
        table = np.zeros(self._size, bool)
        table[list(stop_token_ids)] = True
        if stop:
            for token, text in enumerate(self._token_texts()):
                table[token] |= any(_may_complete(text, s) for s in stop)
        return table

    def ends(self, sampled: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the text of the `sampled` tokens of this turn contains a stop string."""
        longest = max((len(s.encode()) for s in stop), default=0)
        tail = decode(self._tokenizer, sampled[-(longest + 4) :])  # a token holds at least one byte
        return any(s in tail for s in stop)

    def _token_texts(self) -> list[str]:
        if self._texts is None:
            ids = [[i] for i in range(min(self._size, len(self._tokenizer)))]
            self._texts = self._tokenizer.batch_decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return self._texts


def _may_complete(text: str, stop: str) -> bool:
    if "\ufffd" in text:  # part of a character: cannot tell
        return True
    # Tokenizers of the SentencePiece kind drop the leading space of a token that is decoded alone.
    return any(
        stop in t or any(stop.endswith(t[:n]) for n in range(1, min(len(t), len(stop)) + 1)) for t in (text, " " + text)
    )


def end_of_turn(
    tokenizer: Any, ids: Sequence[int], part: Generation, stop: Sequence[str], stop_token_ids: Sequence[int]
) -> Literal["token", "silence", None]:
    """How the policy ended its turn `ids`, of which `part` came last; None: it did not, or at a stop string.

    "token": the last token is an end of turn, and no text. It may be one of the model that the template knows nothing
    of (Qwen's <|endoftext|> beside <|im_end|>); one that is a stop string, such as <|eom_id|>, closes a call and is
    text. "silence": the engine had nothing more to say.
    """
    if part.finish != "stop":
        known = bool(ids) and ids[-1] in stop_token_ids
        return "token" if known and not _completes(tokenizer, ids, 1, stop) else None
    if not part.token_ids:
        return "silence"
    return None if _completes(tokenizer, ids, len(part.token_ids), stop) else "token"


def _completes(tokenizer: Any, ids: Sequence[int], new: int, stop: Sequence[str]) -> bool:
    """Whether a stop string ends within the last `new` tokens."""
    if not stop:
        return False
    before = max((len(s.encode()) for s in stop), default=0)  # a token holds at least one byte
    old = decode(tokenizer, ids[max(len(ids) - new - before, 0) : len(ids) - new])
    text = decode(tokenizer, ids[max(len(ids) - new - before, 0) :])
    return any(text.rfind(s) + len(s) > len(old) for s in stop if s in text)


def eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a turn whatever the request says, as for every engine: the model's and the tokenizer's."""
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        found |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return tuple(sorted(found))
