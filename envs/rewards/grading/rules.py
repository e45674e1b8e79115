"""What a comparison may overlook, and what it found: the words that `grading` has in common with its child process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from solostream.errors import UserError

Strictness = Literal["lenient", "strict", "ignore"]


@dataclass(frozen=True, slots=True)
class Rules:
    """Options of grading.

    tolerance: relative, of the accepted answer; 0: exact, but for decimals that round it (see `literals`).
    units: `lenient`: a missing unit is no fault, a different one is; `strict`: both have it; `ignore`: any will do.
    percent: `lenient`: 28 % is 28 and 0.28; `strict`: it is 0.28; `ignore`: the sign says nothing, it is 28.
    """

    tolerance: float = 0.0
    units: Strictness = "lenient"
    percent: Strictness = "lenient"

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise UserError(f"grading: tolerance is relative and must be in [0, 1), not {self.tolerance}")
        for name in ("units", "percent"):
            if getattr(self, name) not in ("lenient", "strict", "ignore"):
                raise UserError(f"grading: {name} is lenient, strict or ignore, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is right, and the rule that decided, in words."""

    equal: bool
    rule: str
