"""What all sections of a configuration share: how strict they are, and the kinds of numbers and lists in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from solostream.agent.engine import COLDEST, HOTTEST, LARGEST_TOP_K, SEEDS

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
TopK = Annotated[int, Field(ge=0, le=LARGEST_TOP_K)]
Temperature = Annotated[float, Field(ge=COLDEST, le=HOTTEST)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
# TOML has lists, a frozen model wants tuples: the one conversion that strict mode would refuse.
Names = Annotated[tuple[str, ...], Field(strict=False)]
Levels = Annotated[tuple[int, ...], Field(strict=False)]
Bounds = Annotated[tuple[float, float], Field(strict=False)]


class Section(BaseModel):
    """Unknown keys are errors, values are never coerced ("3" is not 3) and finite, instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
