"""What a configuration says and nothing reads."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from solostream.errors import UserError
from solostream.training.config import assign, validate
from solostream.training.config.unused import unused
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.trainer import Trainer

RECIPES = Path(__file__).parents[3] / "configs" / "recipes"
TINY = Path(__file__).parents[1] / "run" / "tiny.toml"


def lines(*settings: str) -> list[str]:
    return unused(validate(assign({}, settings)).completed())


def test_nothing_is_said_of_what_is_used() -> None:
    assert lines() == []
    assert lines("algorithm.aspo.delta=0.1", "loss.ppo_clip.clip_high=0.3", "rollout.over_provision=2.0") == []
    own = ["learner.optimizer=muon", "learner.muon_lr=0.01", "learner.entropy_coef=1e-3"]
    assert lines(*own, "learner.entropy_band=[0.8,1.2]", "learner.entropy_band_weight=2.0") == []


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
    ],
)
def test_what_is_not_used_is_one_line(settings: list[str], said: str) -> None:
    (line,) = lines(*settings)
    assert said in line


def test_a_recipe_says_nothing_that_it_does_not_use() -> None:
    for recipe in RECIPES.glob("*.toml"):
        assert unused(validate(tomllib.loads(recipe.read_text()))) == [], recipe.name


def test_the_start_of_a_run_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    view = ProgressDisplay()
    monkeypatch.setattr(view, "say", said.append)
    config = validate(assign(tomllib.loads(TINY.read_text()), ["algorithm.stages=[]", "algorithm.aspo.delta=0.1"]))
    Trainer(config, tmp_path / "run", view)
    lines = "\n".join(said).splitlines()
    assert sum(line.startswith("[algorithm.aspo] is not used") for line in lines) == 1


def test_a_stage_stands_once() -> None:
    for stages in ('["aspo","aspo"]', '["aspo","negative_weight","aspo"]'):
        with pytest.raises(UserError, match="'aspo' is named twice"):
            validate(assign({}, [f"algorithm.stages={stages}"]))
    with pytest.raises(UserError, match="'spo' is named twice"):
        validate(assign({}, ['algorithm.stages=["spo"]']))
