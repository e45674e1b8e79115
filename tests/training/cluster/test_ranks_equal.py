"""Several ranks give what one process gives: the cases of `benchmarks/cluster.py --stage equality`.

The ranks are real processes over gloo, started once for all cases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_parts.equality import RESUMED
from cluster_parts.rank_cases import CASES, WIDE

from solostream.training.learner.packing import idle, plan

ROOT = Path(__file__).parents[3]
METRICS = 5e-6  # float32 sums in another order: 5e-7 on a Xeon, 2.1e-6 on an EPYC
pytestmark = pytest.mark.timeout(900)  # a hundred seconds of CPU, which a busy machine may take long for


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("equality") / "found.json"
    command = [sys.executable, "benchmarks/cluster.py", "--stage", "equality", "--quick"]
    run = subprocess.run(
        [*command, "--json", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert run.returncode == 0, run.stderr
    measured: dict[str, Any] = json.loads(out.read_text())
    return measured


@pytest.mark.parametrize(("case", "world"), [*((case, "2") for case in CASES), *((case, "4") for case in WIDE)])
def test_weights_and_metrics_are_those_of_one_process(found: dict[str, Any], case: str, world: str) -> None:
    difference = found["cases"][case][world]
    assert difference["same"]  # the same metrics by name; the same words, where a batch is refused
    assert difference["weights"] < 1e-6
    assert difference["metrics"] < METRICS
    if "bfloat16" not in case:  # which rounds by the shape of a pack
        assert difference["logprobs"] < 1e-5
    if not CASES[case].blow_up:  # each rank has its share, and no more than padding beside it
        assert difference["share"] < 1.3 / int(world)


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("way", ["1 -> 2", "1 -> 4", "2 -> 1", "2 -> 2", "2 -> 4", "4 -> 1", "4 -> 4"])
def test_a_checkpoint_is_taken_up_by_another_number_of_ranks(found: dict[str, Any], case: str, way: str) -> None:
    difference = found["resumed"][f"{case}, {way}"]
    assert difference["weights"] < 1e-6
    assert difference["metrics"] < METRICS


def test_packs_are_dealt_evenly() -> None:
    lengths = np.random.default_rng(2).integers(5, 60, 40).tolist()  # 1,285 tokens in packs of at most 200: 8 of them
    for ranks, packs in ((1, 8), (3, 9), (5, 10), (8, 8), (11, 11)):
        dealt = plan(lengths, 200, ranks)
        assert len(dealt) == packs
        assert sorted(place for one in dealt for place in one) == list(range(40))
        sizes = [sum(lengths[place] for place in one) for one in dealt]
        assert max(sizes) <= 200
        if packs != 8:  # cut anew, so that nobody waits long for a full pack beside a rest
            assert min(sizes) > 0.65 * max(sizes)


def test_fewer_sequences_than_ranks_leave_packs_empty() -> None:
    assert plan([9, 4], 50, 4) == [[1], [0], [], []]
    assert plan([], 50, 4) == []
    nothing = idle()
    assert nothing.members == []
    assert nothing.token_ids.shape == (1, 2)
