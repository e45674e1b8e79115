from __future__ import annotations

import gc
import weakref

import pytest

from solostream.training.rollouts.rare_collections import YOUNG, rare_collections


class Held:
    """Weakly referable, in a cycle with itself."""

    def __init__(self) -> None:
        self.itself = self


def searches(containers: int) -> list[int]:
    """The generations that are searched while so many containers are made and kept."""
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            found.append(info["generation"])

    gc.callbacks.append(note)
    try:
        kept = [[] for _ in range(containers)]
        assert len(kept) == containers
    finally:
        gc.callbacks.remove(note)
    return found


def test_the_young_are_searched_rarely_and_what_was_there_never() -> None:
    gc.collect()
    often = len(searches(15_000))
    before = gc.get_freeze_count()
    mine = [[] for _ in range(100)]
    with rare_collections():
        assert gc.get_freeze_count() >= before + len(mine)
        assert not any(one is mine for one in gc.get_objects())  # no search walks it
        assert searches(15_000) == []
    assert often >= 10
    assert len(searches(15_000)) >= 10


def lose_a_cycle() -> None:
    """It is found within; then the run fails."""
    with rare_collections():
        lost = weakref.ref(Held())
        assert lost() is not None
        searches(YOUNG + 1000)
        assert lost() is None
        raise ValueError("of the run")


def test_a_cycle_is_still_found_and_all_is_as_before_after_an_error() -> None:
    was = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(ValueError, match="of the run"):
        lose_a_cycle()
    assert (gc.get_threshold(), gc.get_freeze_count()) == was
