"""The rows of `--dry-run` are of what the command does."""

from __future__ import annotations

from pathlib import Path

import pytest

from solostream.errors import UserError
from solostream.training.config import Config, assign, validate
from solostream.training.config.dry_run import describe, exceeds, refuse_too_large
from solostream.training.config.memory import host_memory, memory, peak
from solostream.training.config.memory.shape import shape_of
from solostream.training.run.trainer import Trainer

COLD = "cold_start.phases=[{steps=1,mix={early=1.0}}]"


def rows(config: Config, **how: bool) -> dict[str, str]:
    return {line[:14].strip(): line[15:] for line in describe(config, **how).splitlines() if line.strip()}


def test_the_plan_of_sft_is_of_what_it_does() -> None:
    """5 problems, each evaluated three times sampled and once greedily; no batch is learnt from."""
    some = ["data.test=5", "eval.samples=3", "run.steps=7", "eval.every=2", "cold_start.eval_every=11"]
    config = validate(assign({"model": {"device": "cpu"}}, [COLD, *some]))
    whole, sft = rows(config), rows(config, cold_start_only=True)
    of_reinforcement = ["tracker start", "rollouts", "learning", "episodes", "tokens"]
    assert [name for name in whole if name not in sft] == of_reinforcement
    assert sft["cold start"] == whole["cold start"] == "1 steps of 32 demonstrations"
    assert sft["evaluation"] == "once 20 episodes; every 11 steps of the cold start 20 more"
    said = "5 times 20 episodes, and 5 without the tool; every 11 steps of the cold start 20 more"
    assert whole["evaluation"] == said
    assert "trajectories" in whole["disk"]
    assert sft["disk"] == whole["disk"].partition(", trajectories")[0]


def test_sft_is_refused_for_its_own_phase_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters there, all weights in the reinforcement that follows: which does not fit, and is another command's."""
    monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (700 << 20, 700 << 20))
    built = {"hidden_size": 512, "layers": 4, "mlp_size": 2048}
    more = ["cold_start.learner.lora.rank=4", "cold_start.learner.max_tokens_per_batch=256", "rollout.batch=4"]
    config = validate(assign({"model": {"build": built}}, [COLD, *more]))
    with pytest.raises(UserError, match="does not fit on cpu in reinforcement: "):
        refuse_too_large(config, "cpu")
    refuse_too_large(config, "cpu", cold_start_only=True)
    assert "the plan takes" in exceeds(config, "cpu")
    assert exceeds(config, "cpu", cold_start_only=True) == ""
    Trainer(config, tmp_path / "sft", cold_start_only=True)
    with pytest.raises(UserError, match="does not fit on cpu in reinforcement: "):
        Trainer(config, tmp_path / "train")


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("sync", "sync, 20 in flight, batches of 20 trajectories"),
        ("lockstep", "lockstep, 20 in flight, batches of 20 trajectories, one update old"),
        ("async", "async, 30 in flight, batches of 20 trajectories, staleness at most 3"),
    ],
)
def test_the_plan_says_how_old_a_trajectory_can_be(mode: str, said: str) -> None:
    given = [f"rollout.mode={mode}", "rollout.batch=20", "rollout.max_staleness=3", "cold_start.eval_every=11"]
    found = rows(validate(assign({"model": {"device": "cpu"}}, given)))
    assert found["rollouts"] == said
    assert found["cold start"] == "none"
    assert "cold start" not in found["evaluation"]


@pytest.mark.parametrize(
    ("settings", "of_a_parameter"),
    [
        (["run.engine=vllm"], 4),
        (["run.engine=vllm", "model.sampler_dtype=bfloat16"], 2),
        (["run.engine=server"], 4),
        (["run.engine=vllm", "learner.lora.rank=4"], 4),  # over a model built here: vLLM has no base to lay them on
        (["run.engine=hf"], 0),
    ],
)
def test_weights_on_their_way_to_another_process_are_in_the_plan(settings: list[str], of_a_parameter: int) -> None:
    """Not while there is an update, with its gradients: what takes more of the two counts."""
    config = validate(assign({"model": {"device": "cpu"}}, ["learner.max_tokens_per_batch=300", *settings]))
    shape = shape_of(config)
    parts = memory(config, shape, 7, 300, "cpu", 0)
    way = parts.get("weights on their way", 0)
    assert way == of_a_parameter * shape.parameters
    assert peak(config, parts) == sum(parts.values()) - min(
        way, parts["gradients"] + parts["activations"] + parts["logits"]
    )


def test_weights_on_their_way_refuse_no_run_that_has_room_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """These are gone when those are sent, and what an update takes besides may be less than planned."""
    built = {"hidden_size": 512, "layers": 4, "mlp_size": 2048}
    config = validate(assign({"model": {"build": built, "device": "cpu"}}, ["run.engine=vllm"]))
    shape = shape_of(config)
    lie = {"program": 480 << 20, "vLLM": 900 << 20, "KV cache": 256 << 20}
    needed = sum(lie.values()) + 5 * 4 * shape.parameters  # weights, gradients, two moments; the sampler's
    for room, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr("solostream.training.config.dry_run.available", lambda _, room=room: (room, room))
        if fits:
            refuse_too_large(config, "cpu")
        else:
            with pytest.raises(UserError, match="does not fit on cpu"):
                refuse_too_large(config, "cpu")


def test_adapters_over_a_folder_travel_alone() -> None:
    sections = {"model": {"path": "somebody/model", "device": "cuda"}}
    whole = validate(assign(sections, ["run.engine=vllm"]))
    alone = validate(assign(sections, ["run.engine=vllm", "learner.lora.rank=4"]))
    shape = shape_of(validate({}))
    assert host_memory(alone, shape) == {}
    assert host_memory(whole, shape)["weights on their way"] == 2 * shape.parameters


def test_what_a_gpu_needs_of_the_host_is_said_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(assign({"model": {"device": "cuda"}}, ["run.engine=vllm"]))
    assert rows(config)["memory cpu"].startswith("program 480 MiB, weights on their way ")
    there = {"cuda": (8 << 30, 8 << 30), "cpu": (480 << 20, 480 << 20)}
    monkeypatch.setattr("solostream.training.config.dry_run.available", there.get)
    with pytest.raises(UserError, match=r"on cuda needs .* of the CPU's memory, too \(program 480 MiB, weights on"):
        refuse_too_large(config, "cuda")
