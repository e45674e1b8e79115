"""A call to an object of this process; what comes of a call to an actor is tested where there is a cluster."""

from typing import Any

import pytest

from solostream.training.cluster.handles import Local


class Counter:
    def __init__(self) -> None:
        self.total = 3

    def add(self, *numbers: int, times: int = 1) -> int:
        self.total += times * sum(numbers)
        return self.total

    async def later(self, number: int) -> int:
        return self.add(number)

    def fail(self) -> Any:
        raise LookupError("no such thing")


async def test_a_local_object_is_called_as_it_is() -> None:
    counter = Counter()
    local = Local(counter)
    assert await local.call("add", 4, 5, times=2) == 21
    assert await local.call("later", 7) == 28 == counter.total
    with pytest.raises(LookupError, match="no such thing"):
        await local.call("fail")
