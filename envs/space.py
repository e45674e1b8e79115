"""The space of all Unicode text. Gymnasium's own `Text` lists its alphabet and looks every character up in it."""

from __future__ import annotations

import re
from typing import Any

from gymnasium import Space
from gymnasium.vector.utils import create_shared_memory
from numpy.typing import NDArray

from solostream.errors import UserError

SURROGATE = re.compile("[\ud800-\udfff]")
_ALPHABETS = ((0x20, 0x7F), (0xA1, 0x250), (0x370, 0x400), (0x4E00, 0x9FFF), (0x1F300, 0x1F650))


class UnicodeText(Space[str]):
    """Any string that UTF-8 can carry (no lone surrogates), up to `max_length` characters."""

    def __init__(self, max_length: int = 1 << 20, seed: int | None = None) -> None:
        super().__init__(shape=None, dtype=None, seed=seed)
        self.max_length = max_length

    def sample(self, mask: None = None, probability: None = None) -> str:
        """0 to 64 characters from ASCII, Latin, Greek, CJK and emoji, newlines between."""
        if mask is not None or probability is not None:
            raise UserError("a space of text takes neither mask nor probability")
        length = int(self.np_random.integers(0, min(64, self.max_length) + 1))
        return "".join(self._character() for _ in range(length))

    def _character(self) -> str:
        if self.np_random.random() < 0.05:
            return "\n"
        low, high = _ALPHABETS[int(self.np_random.integers(len(_ALPHABETS)))]
        return chr(int(self.np_random.integers(low, high)))

    def contains(self, x: Any) -> bool:
        """Whether `x` is a text of at most `max_length` characters that UTF-8 can hold (no lone surrogates)."""
        return isinstance(x, str) and len(x) <= self.max_length and (x.isascii() or SURROGATE.search(x) is None)

    @property
    def is_np_flattenable(self) -> bool:
        """False: text of any alphabet has no fixed vector."""
        return False

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and other.max_length == self.max_length

    __hash__ = None  # type: ignore[assignment]


@create_shared_memory.register(UnicodeText)
def _refuse_shared_memory(space: UnicodeText, n: int = 1, ctx: Any = None) -> NDArray[Any]:
    raise UserError(
        "text does not fit AsyncVectorEnv's shared memory (it would return stale text); "
        "use vectorization_mode='vector_entry_point', or vector_kwargs={'shared_memory': False}"
    )
