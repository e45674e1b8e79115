"""What `scripts/gpu_check.sh` goes by: a failed part of `benchmarks/gpu.py` makes it fail, a missed goal does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu_parts.goals import missed


def works(size: str, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    yield {"compiled mfu": 0.3, "mfu": 0.1}


def fails(size: str, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    yield {"found": 1}
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(("parts", "code"), [(("learner",), 0), (("memory", "learner"), 1)])
def test_a_part_that_fails_leaves_the_others_and_the_exit_code_says_so(
    parts: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "PARTS", {"learner": works, "memory": fails})
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--sizes", "0.02", "--parts", *parts])
    assert gpu.main() == code
    told = capsys.readouterr()
    assert '"part": "learner"' in told.out
    assert ("no such kernel" in told.err) == bool(code)


def test_goals_that_are_missed_are_said() -> None:
    assert missed({"mfu": 0.147, "compiled mfu": 0.336}) == ["33.6% of the device's peak, wanted 40%"]
    assert missed({"variant": "lora", "plan / peak": 0.8}) == ["the plan of lora is 20% off, wanted 15%"]
    for met in ({"mfu": 0.2, "compiled mfu": 0.468}, {"variant": "packed", "plan / peak": 1.15}, {"mfu": 0.1}):
        assert missed(met) == []
