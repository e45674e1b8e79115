"""What would make a run fit is said as it can be typed, and does: the KV cache counts, and is no reason to refuse."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from solostream.errors import UserError
from solostream.training.config import Config, assign, load, validate
from solostream.training.config.dry_run import describe, refuse_too_large
from solostream.training.config.memory import GROWN, memory, of_phases
from solostream.training.config.memory.remedies import remedies
from solostream.training.config.memory.shape import shape_of

SHAPES = Path(__file__).parent / "shapes"
GIB = 1 << 30
# 28 layers of 8 heads of 128, keys and values in float32
A_TOKEN = 2 * 28 * 8 * 128 * 4


def room(monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (total, total))


def own_data(*settings: str) -> Config:
    return load(Path("own-data"), [f"model.path={SHAPES}/Qwen3-0.6B", *settings])


def needed(config: Config) -> int:
    episodes = round(config.rollout.batch * config.rollout.over_provision)
    phases = of_phases(config, shape_of(config), episodes, 64 + config.env.episode_tokens, "cpu", 0)
    return sum(phases["reinforcement"].values())


def test_what_the_cache_is_at_the_start_and_how_it_grows() -> None:
    """64 + 1,536 tokens: 256 columns are doubled to 2,048; 96 episodes in flight."""
    config = own_data()
    parts = of_phases(config, shape_of(config), 96, 1600, "cpu", 0)["reinforcement"]
    assert parts["KV cache"] == 96 * 256 * A_TOKEN
    assert parts[GROWN] == 96 * (2048 - 256) * A_TOKEN
    at_once = own_data("rollout.mode=sync")
    parts = of_phases(at_once, shape_of(at_once), 64, 1600, "cpu", 0)["reinforcement"]
    assert parts["KV cache"] == 64 * 1601 * A_TOKEN
    assert GROWN not in parts


def test_a_run_whose_cache_may_grow_too_large_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.6 B on 23.5 GiB: what lies there from the start fits, the longest episodes in flight may not."""
    room(monkeypatch, round(23.5 * GIB))
    refuse_too_large(own_data(), "cpu")


@pytest.mark.parametrize(("total", "said"), [(45, "rollout.over_provision = 1.0"), (27, "engine.hf.concurrency = 24")])
def test_fewer_episodes_at_a_time_are_named_and_enough(total: int, said: str) -> None:
    config = own_data("learner.max_tokens_per_batch=1024", "learner.logits_chunk=256")
    assert needed(config) > total * GIB
    found = remedies(config, needed, total * GIB)
    assert said in found
    changed = own_data("learner.max_tokens_per_batch=1024", "learner.logits_chunk=256", said.replace(" ", ""))
    assert needed(changed) <= total * GIB


def test_a_cache_that_is_there_from_the_start_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 20 * GIB)
    with pytest.raises(UserError, match=r"KV cache 21\.9 GiB take .* of 20 GiB; set engine\.hf\.concurrency = 16") as e:
        refuse_too_large(own_data("rollout.mode=sync"), "cpu")
    assert "smaller model" not in str(e.value)


def test_where_no_single_setting_is_enough_fewer_episodes_join_the_others() -> None:
    config = own_data()
    few = remedies(config, needed, 13 * GIB)
    assert few
    for one in few:
        assert "engine.hf.concurrency = " in one
        assert "learner.gradient_checkpointing = true" in one


@pytest.mark.parametrize("share", [0.95, 0.7, 0.5, 0.3, 0.2, 0.1])
def test_every_remedy_is_toml_and_makes_the_run_fit(share: float) -> None:
    """As a person types it: into the file, key by key."""
    config = own_data("rollout.batch=24", "cold_start.phases=[{steps=1,mix={early=1.0}}]")
    one_phase = own_data("rollout.batch=24")
    for given in (config, one_phase):
        free = round(share * needed(given))
        for remedy in remedies(given, needed, free):
            typed = re.sub(r" \(after pip install 'solostream\[4bit\]'\)", "", remedy)
            settings = re.split(r" and | with ", typed)
            changed = validate(assign(given.model_dump(mode="json", exclude_none=True), settings))
            assert all(tomllib.loads(setting) for setting in settings)
            assert needed(changed) <= free, remedy


def test_four_bits_name_what_to_install() -> None:
    config = own_data(
        "rollout.batch=4", "learner.lora.rank=4", "model.dtype=bfloat16", "learner.max_tokens_per_batch=256"
    )
    found = remedies(config, lambda c: 1 if c.model.dtype == "4bit" else 9, 5)
    assert found == ["model.dtype = \"4bit\" (after pip install 'solostream[4bit]')"]


def test_the_plan_names_fewer_episodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = "".join(f'{{"prompt": "What is {i} plus 2?", "answer": "{i + 2}"}}\n' for i in range(40))
    (tmp_path / "problems.jsonl").write_text(rows)
    room(monkeypatch, 27 * GIB)
    config = own_data(
        f"data.path={tmp_path}/problems.jsonl", "learner.max_tokens_per_batch=1024", "learner.logits_chunk=256"
    )
    assert "engine.hf.concurrency = 24" in describe(config)


def test_adapters_are_named_where_a_phase_has_none() -> None:
    big = {"hidden_size": 1024, "layers": 12, "heads": 16, "kv_heads": 8, "head_dim": 64, "mlp_size": 4096}
    few = {"max_tokens_per_batch": 256, "gradient_checkpointing": True, "logits_chunk": 64}
    given = {"learner": {**few, "lora": {"rank": 16}}, "model": {"build": big}}
    cold = {"phases": [{"steps": 1, "mix": {"early": 1.0}}], "learner": few}
    config = validate({**given, "cold_start": cold})
    shape = shape_of(config)

    def need(c: Config) -> int:
        return sum(memory(c, shape, 4, 256, "cpu", 0).values())

    assert remedies(config, need, round(0.5 * need(config))) == [
        'cold_start.learner.lora = { rank = 16 } with model.dtype = "bfloat16"'
    ]


def test_what_would_make_a_run_fit() -> None:
    big = {"hidden_size": 1024, "layers": 12, "heads": 16, "kv_heads": 8, "head_dim": 64, "mlp_size": 4096}
    config = validate({"model": {"build": big}, "learner": {"max_tokens_per_batch": 4096}})
    shape = shape_of(config)

    def need(c: Config) -> int:
        return sum(memory(c, shape, 192, 320, "cpu", 0).values())

    whole, parts = need(config), memory(config, shape, 192, 320, "cpu", 0)
    assert remedies(config, need, whole - 1)[0] == "learner.max_tokens_per_batch = 1024"
    assert remedies(config, need, whole - 1)[3].startswith("learner.lora = { rank = 16 }")
    resting = sum(size for name, size in parts.items() if name not in ("activations", "logits"))
    small = remedies(config, need, round(0.6 * resting))
    assert len(small) == 1
    assert small[0].count(" and ") == 2
    assert remedies(config, need, parts["program"]) == []
