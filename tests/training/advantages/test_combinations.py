"""Which credit method goes with which estimator: the table of docs/algorithms.md, tried; and what each resumes from.

Single streams have no groups: there a method that compares answers to one prompt is refused in one line. With several
streams a prompt (`group_size`) the tracker's values and groups are there together.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.credit_parts.chain import Family, Policy
from solostream import registry
from solostream.agent.trajectory import Dispatch
from solostream.errors import UserError
from solostream.training.advantages import Advantage, ValueTracker, estimator, grouping
from solostream.training.batch import Batch
from solostream.training.config.algorithm import AlgorithmConfig

STREAM = ("spo", "bnpo_stream", "maxrl_stream", "reinforce_pp", "none")  # need no group
GROUPED = ("grpo", "dr_grpo", "rloo", "opo", "maxrl", "shrinkage", "optimal_token", "dcpo", "bnpo")
ANYWHERE = ("empg", "aepo", "dual_level", "d3s")  # stages that need no group
COMPARING = ("salt", "gigpo", "seed")  # stages that compare the answers to one prompt
ROOT = Path(__file__).parents[3]


def batches(n: int, grouped: bool) -> list[Batch]:
    """Of four prompts and three streams each, from a policy that does not move."""
    policy, rng, found = Policy(Family(settled=0.6, paid=True)), np.random.default_rng(7), []
    for step in range(n):
        order = [(p, s) for p in range(4) for s in range(3)]
        dispatches = [
            (f"t{p}", Dispatch(12 * step + 3 * p + s, 0.2 + 0.15 * p, step, 4 * step + p if grouped else None))
            for p, s in order
        ]
        found.append(Batch(policy.play(dispatches, rng), rng.random(12) > 0.1))
    return found


def chain(advantage: str, *stages: str) -> Advantage:
    logprobs = lambda batch: [np.zeros(t.n_action_tokens) for t in batch]
    return estimator(advantage, stages, {"d3s": {"tokens": 0.1}}, ValueTracker(), logprobs, logprobs)[-1]


def test_the_table_has_every_method() -> None:
    mine = {n for n, place in registry.BUILT_IN["advantage"].items() if ".credit." in place}
    assert mine == {*ANYWHERE, *COMPARING, "dcpo", "bnpo", "bnpo_stream"}


@pytest.mark.parametrize("stage", ANYWHERE + COMPARING)
@pytest.mark.parametrize("advantage", STREAM + GROUPED)
def test_a_stage_goes_with_an_estimator(advantage: str, stage: str) -> None:
    """With three streams a prompt: finite, one array a trajectory, and not what the estimator alone gives."""
    batch = batches(1, True)[0]
    got, plain = chain(advantage, stage)(batch), chain(advantage)(batch)
    assert [v.shape for v in got.values] == [v.shape for v in plain.values]
    assert all(np.isfinite(v).all() for v in got.values)
    assert any(not np.array_equal(a, b) for a, b in zip(got.values, plain.values, strict=True))


@pytest.mark.parametrize("stage", ANYWHERE)
@pytest.mark.parametrize("advantage", STREAM)
def test_single_streams_have_what_needs_no_group(advantage: str, stage: str) -> None:
    batch = batches(1, False)[0]
    assert all(np.isfinite(v).all() for v in chain(advantage, stage)(batch).values)


def test_a_configuration_takes_all_stages_at_once() -> None:
    assert AlgorithmConfig(advantage="spo", stages=ANYWHERE).grouped is False
    assert AlgorithmConfig(advantage="spo", stages=ANYWHERE + COMPARING, group_size=3).grouped is True


@pytest.mark.parametrize("name", [*COMPARING, "dcpo", "bnpo"])
def test_what_compares_is_refused_on_single_streams_in_one_line(name: str) -> None:
    stage = registry.asks("advantage", name, "inner")
    chosen = {"advantage": "spo", "stages": (name,)} if stage else {"advantage": name, "stages": ()}
    with pytest.raises(ValidationError) as refused:
        AlgorithmConfig(**chosen)
    (why,) = refused.value.errors()
    assert f"advantage '{name}' compares within groups: set algorithm.group_size to 2 or more" in why["msg"]
    assert "\n" not in why["msg"]


@pytest.mark.parametrize("name", ["dcpo", "bnpo", "bnpo_stream"])
def test_an_estimator_is_no_stage(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is no stage"):
        chain("spo", name)


@pytest.mark.parametrize(
    "names", [*((a, s) for a in ("spo", "grpo") for s in ANYWHERE + COMPARING), ("dcpo",), ("bnpo",), ("bnpo_stream",)]
)
def test_a_resumed_run_goes_on_with_the_very_numbers(names: tuple[str, ...]) -> None:
    """Two batches, a state through JSON, two more: as if nothing had been."""
    through, first, second = chain(*names), chain(*names), chain(*names)
    given = batches(4, True)
    for batch in given[:2]:
        through(batch)
        first(batch)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    trackers = [one for one in (first, second) if hasattr(_innermost(one), "tracker")]
    if trackers:
        _innermost(second).tracker.load_state_dict(json.loads(json.dumps(_innermost(first).tracker.state_dict())))
    for batch in given[2:]:
        one, two = through(batch), second(batch)
        assert all(np.array_equal(a, b) for a, b in zip(one.values, two.values, strict=True))
        assert one.metrics == two.metrics


def _innermost(one: object) -> object:
    while hasattr(one, "inner"):
        one = one.inner
    return one


def test_stages_say_whether_they_compare() -> None:
    said = {name: grouping(chain("grpo", name)) for name in ANYWHERE + COMPARING}
    assert said == {
        "empg": "none",
        "aepo": "none",
        "dual_level": "optional",
        "d3s": "optional",
        **dict.fromkeys(COMPARING, "required"),
    }


def test_a_run_that_does_not_use_them_does_not_import_them() -> None:
    """Neither methods nor losses: a component is imported when it is named."""
    code = (
        "import sys\n"
        "from solostream.training.config import Config\n"
        "import solostream.training.learner.learner\n"
        "Config(algorithm={'advantage': 'spo', 'stages': ['aspo']})\n"
        "print(*sorted(m for m in sys.modules if '.credit' in m or m.startswith('solostream.training.losses.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.rpartition(".")[2] for name in done.stdout.split()}
    assert loaded <= {"aggregation", "clip_cov", "kl", "ppo_clip", "tokens"}
