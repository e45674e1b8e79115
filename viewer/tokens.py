"""Token ids to the text that each token adds, with the run's own tokenizer where one is found."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solostream.errors import UserError


def _byte_of() -> dict[str, int]:
    """The GPT-2 byte alphabet: which byte a character of a byte-level vocabulary stands for."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [b for b in range(256) if b not in shown]
    return {**{chr(b): b for b in shown}, **{chr(256 + i): b for i, b in enumerate(hidden)}}


_BYTE_OF = _byte_of()


def find_tokenizer(place: Path) -> Path | None:
    """`tokenizer.json` of a run: in the folder, else in its newest checkpoint, else in the model it evaluated."""
    folder = place if place.is_dir() else place.parent
    found = [folder / "tokenizer.json", *folder.glob("*/tokenizer.json"), *folder.glob("checkpoints/*/tokenizer.json"),
             *folder.glob("checkpoints/*/*/tokenizer.json")]  # fmt: skip
    found = [path for path in found if path.is_file() and os.access(path, os.R_OK)]
    if found:
        return max(found, key=lambda path: path.stat().st_mtime)
    try:
        model = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["config"]["model"]
        candidate = Path(str(model).rpartition(":")[2]) / "tokenizer.json"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return candidate if candidate.is_file() else None


class Pieces:
    """Turns ids into pieces whose concatenation is the text; a split character appears with its last token."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            raise UserError(f"{path} is no tokenizer.json ({error}): give one with --tokenizer") from None
        setup: Any = json.loads(path.read_text(encoding="utf-8"))
        self._bytes = "ByteLevel" in json.dumps(setup.get("decoder"))
        self._added = {token["id"] for token in setup.get("added_tokens", [])}

    def __call__(self, token_ids: Sequence[int]) -> list[str]:
        """One string a token; an id outside the vocabulary becomes ⟨id⟩."""
        reader = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = []
        for token in token_ids:
            raw = self._tokenizer.id_to_token(token) if token >= 0 else None  # -1: an endpoint told a count, no ids
            if raw is None:
                pieces.append(f"⟨{token}⟩")
            elif self._bytes and token not in self._added and all(c in _BYTE_OF for c in raw):
                pieces.append(reader.decode(bytes(_BYTE_OF[c] for c in raw)))
            elif token in self._added:
                pieces.append(raw)
            else:
                pieces.append(self._tokenizer.decode([token], skip_special_tokens=False))
        return pieces
