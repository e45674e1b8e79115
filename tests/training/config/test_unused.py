"""What a configuration says and nothing reads."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from solostream.errors import UserError
from solostream.training.config import assign, validate
from solostream.training.config.unused import notices, unused
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.trainer import Trainer

RECIPES = Path(__file__).parents[3] / "configs" / "recipes"
TINY = Path(__file__).parents[1] / "run" / "tiny.toml"
SNAPSHOT = "algorithm.tracker.forgetting=snapshot"
CALIBRATED = "algorithm.spo.divergence=calibrated"
CONSTANT = ["algorithm.tracker.rho_min=0.9", "algorithm.tracker.rho_max=0.9"]


def lines(*settings: str) -> list[str]:
    return unused(validate(assign({}, settings)).completed())


def told(*settings: str) -> list[str]:
    return notices(validate(assign({}, settings)))


def test_nothing_is_said_of_what_is_used() -> None:
    assert lines() == []
    assert lines("algorithm.aspo.delta=0.1", "loss.ppo_clip.clip_high=0.3", "rollout.over_provision=2.0") == []
    own = ["learner.optimizer=muon", "learner.muon_lr=0.01", "learner.entropy_coef=1e-3"]
    assert lines(*own, "learner.entropy_band=[0.8,1.2]", "learner.entropy_band_weight=2.0") == []


def test_nothing_is_said_of_what_the_tracker_and_spo_read() -> None:
    d_half, measure = "algorithm.tracker.d_half=0.1", "algorithm.spo.measure=energy"
    for divergence in ("drift", "rescore"):
        assert lines(d_half, "algorithm.tracker.rho_max=0.9", f"algorithm.spo.divergence={divergence}") == []
    assert lines(CALIBRATED, "algorithm.tracker.rho_min=0.5", "algorithm.tracker.rho_max=0.98") == []
    assert lines(SNAPSHOT, "algorithm.tracker.rho_min=0.97") == []
    assert lines(measure) == lines(measure, "algorithm.spo.scale=none", "algorithm.spo.slope=fitted") == []
    # What dynamic sampling leaves out is aged by the drift.
    grouped = ["algorithm.group_size=4", "algorithm.aspo.compare=group", "algorithm.dynamic_sampling=1.0"]
    assert lines(CALIBRATED, d_half, *grouped) == []


@pytest.mark.parametrize("divergence", ["rescore", "calibrated"])
def test_a_divergence_that_a_snapshot_would_not_read_is_refused(divergence: str) -> None:
    with pytest.raises(UserError, match=rf"divergence '{divergence}' .* leave \[algorithm.spo\] divergence away"):
        validate(assign({}, [SNAPSHOT, f"algorithm.spo.divergence={divergence}"]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["algorithm.stages=[]", "algorithm.aspo.delta=0.1"],
            "[algorithm.aspo] is not used: algorithm.advantage or algorithm.stages does not name it",
        ),
        (["loss.gspo.clip_high=0.3"], "[loss.gspo] is not used: learner.loss does not name it"),
        (["engine.vllm.seed=1"], "[engine.vllm] is not used: run.engine does not name it"),
        (["sampler.prioritized.epsilon=0.2", "algorithm.sampler=uniform"], "[sampler.prioritized] is not used"),
        (["learner.muon_lr=0.01"], 'learner.muon_lr does nothing here: it needs learner.optimizer = "muon"'),
        (["learner.entropy_band_weight=2.0"], "learner.entropy_band_weight does nothing here: it needs"),
        (["learner.kl_estimator=k1"], "learner.kl_estimator does nothing here: it needs learner.kl_coef above 0"),
        (["rollout.mode=sync", "rollout.max_staleness=2"], "rollout.max_staleness does nothing here"),
        (["model.path=somewhere", "model.build.layers=3"], "model.build does nothing here"),
        (
            ["algorithm.advantage=grpo", "algorithm.group_size=4", "algorithm.tracker.window=8", "algorithm.stages=[]"],
            "algorithm.tracker does nothing here: it needs an advantage that keeps a tracker",
        ),
        (
            [SNAPSHOT, "algorithm.tracker.rho_max=0.9"],
            'algorithm.tracker.rho_max does nothing here: it needs algorithm.tracker.forgetting = "divergence"',
        ),
        (
            [SNAPSHOT, "algorithm.tracker.d_half=0.1"],
            'algorithm.tracker.d_half does nothing here: it needs algorithm.tracker.forgetting = "divergence"',
        ),
        (
            [*CONSTANT, "algorithm.tracker.d_half=0.1"],
            "algorithm.tracker.d_half does nothing here: it needs algorithm.tracker.rho_min below rho_max",
        ),
        (
            [*CONSTANT, "algorithm.spo.divergence=rescore"],
            "algorithm.spo.divergence does nothing here: it needs algorithm.tracker.rho_min below rho_max",
        ),
        (
            [CALIBRATED, "algorithm.tracker.d_half=0.1"],
            'algorithm.tracker.d_half does nothing here: it needs algorithm.spo.divergence = "drift" or "rescore"',
        ),
        (
            ["algorithm.spo.scale=none", "algorithm.spo.measure=energy"],
            'algorithm.spo.measure does nothing here: it needs algorithm.spo.scale = "deviation"',
        ),
        (
            ["algorithm.spo.scale=none", "algorithm.spo.measure=energy", "algorithm.spo.baseline=energy"],
            "algorithm.spo.measure does nothing here",
        ),
    ],
)
def test_what_is_not_used_is_one_line(settings: list[str], said: str) -> None:
    (line,) = lines(*settings)
    assert said in line


@pytest.mark.parametrize(
    "holds",
    [
        "learner.mask_outside=[0.5,5.0]",
        "learner.reject_outside=[0.9,1.1]",
        "learner.num_mini_batches=2",
        "learner.epochs=2",
        "learner.tis_cap=0.0",
    ],
)
def test_without_a_trust_region_a_line_says_so_and_names_the_mask(holds: str) -> None:
    (line,) = told("learner.tis_cap=2.0")
    assert "no trust region bounds a stale token" in line
    assert validate(assign({}, [line.split("; ")[1].removesuffix(" does")])).learner.mask_outside == (0.5, 5.0)
    assert told("learner.tis_cap=2.0", holds) == []
    assert told() == []


def test_gspo_under_the_mean_over_tokens_is_not_the_papers() -> None:
    (line,) = told("learner.loss=gspo")
    remedy = line.rpartition(" is ")[2]
    assert told("learner.loss=gspo", remedy) == []
    assert told("learner.loss=gspo", "learner.aggregation=seq_mean_token_sum") == []
    both = told("learner.loss=gspo", "learner.tis_cap=1.5")
    assert [line.split()[0] for line in both] == ["learner.tis_cap", "loss"]


def test_the_dtype_of_a_base_without_adapters_is_told() -> None:
    adapters, half = "learner.lora={rank=4}", "model.dtype=bfloat16"
    (line,) = told(half)
    assert line.startswith("model.dtype is of a base that is never trained, and here all weights are: leave it out")
    assert told(half, adapters, "cold_start.phases=[{steps=1,mix={early=1.0}}]") == [line]  # which trains them all
    assert told(half, adapters) == told("model.dtype=float32") == []


def test_a_recipe_says_nothing_that_it_does_not_use() -> None:
    for recipe in RECIPES.glob("*.toml"):
        config = validate(tomllib.loads(recipe.read_text()))
        assert unused(config) + notices(config) == [], recipe.name


def test_the_start_of_a_run_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    view = ProgressDisplay()
    monkeypatch.setattr(view, "say", said.append)
    more = ["algorithm.stages=[]", "algorithm.aspo.delta=0.1", "learner.loss=gspo"]
    config = validate(assign(tomllib.loads(TINY.read_text()), more))
    Trainer(config, tmp_path / "run", view)
    lines = "\n".join(said).splitlines()
    assert sum(line.startswith("[algorithm.aspo] is not used") for line in lines) == 1
    assert sum(line.startswith("loss gspo under") for line in lines) == 1


def test_a_stage_stands_once() -> None:
    for stages in ('["aspo","aspo"]', '["aspo","negative_weight","aspo"]'):
        with pytest.raises(UserError, match="'aspo' is named twice"):
            validate(assign({}, [f"algorithm.stages={stages}"]))
    with pytest.raises(UserError, match="'spo' is named twice"):
        validate(assign({}, ['algorithm.stages=["spo"]']))


def test_a_schedule_that_ends_before_the_run_is_told_with_the_length_that_does_not() -> None:
    linear = ("run.steps=10", "learner.schedule=linear", "learner.num_mini_batches=2")
    (line,) = told(*linear, "learner.total_steps=19")
    assert line.startswith("learner.total_steps = 19 ends the linear schedule before the last of 20 optimizer steps")
    assert told(*linear, line.split("; ")[1].split()[0]) == told(*linear) == told("learner.total_steps=1") == []
    cold = ("cold_start.phases=[{steps=4,mix={early=1.0}},{steps=3,mix={late=1.0}}]", "cold_start.learner.lr=1e-3")
    cosine = ("cold_start.learner.schedule=cosine", "cold_start.learner.total_steps=6")
    (line,) = told(*cold, *cosine)
    assert line.startswith("cold_start.learner.total_steps = 6 ends the cosine schedule before the last of 7 ")
    assert told(*cold, *cosine[:1]) == told(*cold) == told("cold_start.data=first-calls", *cosine) == []
