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
from solostream.training.sft.trace_set import TraceSet

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


def on_traces(folder: Path, problems: Path, words: int, **model: int) -> Config:
    """Of the second and longest of three traces, so many words."""
    write_model(folder / "model", "qwen3", **model)
    ask, said = {"role": "user", "content": "What is 2 plus 2 plus 3?"}, "It is \\boxed{7}."
    rows = [{"messages": [ask, {"role": "assistant", "content": "hm " * n + said}]} for n in (3, words, 5)]
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cold = {"data": str(folder / "traces.jsonl"), "batch": 1}
    return validate(of(folder / "model", problems, 0).model_dump(exclude_unset=True) | {"cold_start": cold})


def test_a_cold_start_is_planned_with_its_longest_trace(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on_traces(tmp_path, problems, 900, max_position_embeddings=4096)
    train, test = setup.problems(config, lambda _: None)
    longest = setup.planned_longest(config, train, test, [])
    monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (1 << 20, 64 << 30))
    said: list[str] = []
    parts = setup.build(config, train, test, [], say=said.append, cold_start_only=True)
    traces = TraceSet(config, parts, said.append)
    assert longest == parts.longest
    assert longest.trace == max(len(ids) for step in range(3) for ids, _ in traces.batch(step))
    assert longest.trace > 900
    planned = plan(config, len(train), len(test), longest=longest)
    cold, then = planned.phases.values()
    assert cold["activations"] == longest.trace * planned.shape.activations(config.cold_start.learner)
    assert cold["KV cache"] == then["KV cache"]  # the policy is evaluated on episodes
    (figure,) = re.findall(r"\n +≤ (.*?) of 1 MiB free", describe(config, cold_start_only=True))
    assert said[0].startswith(f"memory: the plan takes ≤ {figure} on cpu")


def test_a_trace_that_is_longer_than_the_context_is_not_learnt(problems: Path, tmp_path: Path) -> None:
    config = on_traces(tmp_path, problems, 900)
    assert setup.planned_longest(config, *setup.problems(config), []).trace == 512


def test_traces_of_the_hub_are_not_asked_for_by_a_plan(problems: Path, tmp_path: Path) -> None:
    config = on_traces(tmp_path, problems, 4)
    there = config.model_copy(update={"cold_start": config.cold_start.model_copy(update={"data": "somebody/traces"})})
    assert setup.planned_longest(there, *setup.problems(there), []).trace is None
    assert "\n               about " in describe(there)


def test_traces_beside_batches_count_in_reinforcement() -> None:
    sections = {"cold_start": {"data": "first-calls"}, "learner": {"imitation": {}, "max_tokens_per_batch": 256}}
    for learner, rows in ((sections["learner"], 4000), ({"max_tokens_per_batch": 256}, 20 + 256)):
        config = validate(sections | {"learner": learner})
        found = plan(config, 20, 10, longest=Longest(20, 4000))
        assert found.phases["reinforcement"]["activations"] == rows * found.shape.activations(config.learner)


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
