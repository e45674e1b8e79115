"""What the plan calls an upper bound is one: the longest prompt as it is tokenised, and what lies on the disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_architectures import write_model

from solostream.errors import UserError
from solostream.training.config import Config, validate
from solostream.training.config.dry_run import describe, exceeds, plan, shared_device
from solostream.training.config.memory.lengths import Longest
from solostream.training.run import setup

LONG = "How many of the " + "very " * 90 + "small numbers below 7 are even?"


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {i} plus 5?", "answer": str(i + 5)} for i in range(30)]
    rows.append({"prompt": LONG, "answer": "3"})
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def of(model: Path, problems: Path, few_shot: int) -> Config:
    env = {"id": "solostream/Math-v0", "episode_tokens": 300, "options": {"few_shot": few_shot}}
    data = {"path": str(problems), "test_share": 0.2}
    return validate({"model": {"path": str(model), "device": "cpu"}, "data": data, "env": env})


@pytest.mark.parametrize("few_shot", [0, 2])
def test_the_longest_prompt_is_that_of_the_run(few_shot: int, problems: Path, tmp_path: Path) -> None:
    """With its instructions and its examples."""
    write_model(tmp_path / "model", "qwen3")
    config = of(tmp_path / "model", problems, few_shot)
    train, test = setup.problems(config, lambda _: None)
    tokens = setup.planned_longest(config, train, test, []).prompt
    # The run tells its longest prompt where the two together are more than the 512 tokens that the model can read.
    long = config.model_copy(update={"env": config.env.model_copy(update={"episode_tokens": 511})})
    with pytest.raises(UserError, match=f"and a prompt of {tokens} tokens exceed the model's context"):
        setup.build(long, train, test, [])
    assert tokens is not None
    assert tokens > 90 + 100 * few_shot
    shown = describe(config)
    assert "trajectories ≤ " in shown
    assert "about" not in shown


def test_the_start_counts_with_the_prompts_that_the_plan_counts_with(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model", "qwen3", max_position_embeddings=4096)
    config = of(tmp_path / "model", problems, 2)
    monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (1 << 20, 64 << 30))
    planned = re.search(r"\n +≤ (.*?) of 1 MiB free", describe(config))
    said: list[str] = []
    parts = setup.build(config, *setup.problems(config), [], say=said.append)
    assert planned is not None
    assert [line.partition(" on cpu")[0] for line in said] == [f"memory: the plan takes ≤ {planned[1]}"]
    short = exceeds(config, "cpu").partition(" on cpu")[0]  # with a guessed prompt
    assert short not in said[0]
    assert parts.longest.episode(config) == parts.max_tokens


def test_vllm_is_left_less_of_a_gpu_where_prompts_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = validate({"run": {"engine": "vllm"}, "model": {"device": "cuda"}, "rollout": {"colocate": "beside"}})
    monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (8 << 30, 8 << 30))
    short, long = (
        shared_device(shared, "cuda", longest)["gpu_memory_utilization"] for longest in (Longest(), Longest(40_000))
    )
    assert 0 < long < short


def test_without_a_tokenizer_here_the_figures_are_about(problems: Path) -> None:
    shape = Path(__file__).parents[1] / "config" / "shapes" / "Qwen3-0.6B"
    shown = describe(of(shape, problems, 2))
    assert "trajectories about " in shown
    assert "\n               about " in shown


def test_what_lies_on_the_disk() -> None:
    """The newest `keep` and the one being written; the base of adapters where it is the run's own."""
    built = {
        "model": {"build": {"layers": 3}},
        "run": {"keep": 5, "steps": 7},
        "rollout": {"batch": 11, "mode": "sync"},
    }
    whole = plan(validate(built), 20, 10, longest=Longest(36))
    assert whole.trajectories == 7 * 11 * (36 + 256) * 40
    assert whole.base == 0
    adapters = validate({**built, "learner": {"lora": {"rank": 3}}})
    assert plan(adapters, 20, 10).base == 4 * whole.shape.parameters
    shown = describe(adapters)
    assert "checkpoints 5 + 1 while one is written" in shown
    assert f"each, base {4 * whole.shape.parameters / 2**20:.3g} MiB, trajectories" in shown
