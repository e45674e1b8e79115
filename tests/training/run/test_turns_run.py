"""`rollout.colocate = "turns"` through real runs: what an engine that can sleep is asked, and when."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from solostream import registry
from solostream.agent.engine import EngineError, Generation, Sampling, Weights
from solostream.agent.engines.hf import HFEngine
from solostream.errors import UserError
from solostream.training.config import Config, assign, read, validate
from solostream.training.losses.tokens import Tokens
from solostream.training.run import setup
from solostream.training.run.trainer import Trainer

TINY = Path(__file__).parent / "tiny.toml"


class Sleepy(HFEngine):
    """The engine `hf`, which writes down what it is asked and cannot sample while it sleeps."""

    def __init__(self, calls: list[str], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls, self.asleep = calls, False

    async def generate(self, prompt_ids: Any, sampling: Sampling) -> Generation:
        if self.asleep:
            raise EngineError("it sleeps")
        self.calls.append("generate")
        return await super().generate(prompt_ids, sampling)

    async def sleep(self) -> None:
        self.calls.append("sleep")
        self.asleep = True

    async def load_weights(self, weights: Weights, version: int) -> None:
        self.calls.append(f"load {version}{' and wake' if self.asleep else ''}")
        self.asleep = False
        await super().load_weights(weights, version)

    async def close(self) -> None:
        self.calls.append("close asleep" if self.asleep else "close")
        await super().close()


def tiny(*settings: str) -> Config:
    return validate(assign(read(TINY), ("run.steps=2", "eval.every=1", "rollout.colocate=turns", *settings)))


def trainer(config: Config, folder: Path, calls: list[str], fails_at: int | None = None) -> Trainer:
    """A run whose loss is written down, too, and breaks in the update `fails_at`."""
    inner = registry.make("loss", config.learner.loss)

    def loss(tokens: Tokens) -> Any:
        calls.append("update")
        if calls.count("load 1 and wake") == 1 and fails_at == 1:
            raise RuntimeError("out of memory")
        return inner(tokens)

    def engine(slots: int) -> Sleepy:
        parts = made.parts
        return Sleepy(
            calls, setup.module_beside(config, parts.model), parts.tokenizer,
            slots=slots, max_len=parts.max_tokens, reproducible=True,
        )  # fmt: skip

    made = Trainer(config, folder, loss=loss, engine=engine)
    return made


def order(calls: list[str]) -> list[str]:
    return [call for call, _ in groupby(calls)]


def test_it_sleeps_while_the_learner_computes_and_samples_what_it_would_have_sampled(tmp_path: Path) -> None:
    calls: list[str] = []
    trainer(tiny(), tmp_path / "turns", calls).run()
    a_step = ["generate", "sleep", "update"]
    assert order(calls) == [
        "load 0", "sleep", "load 0 and wake",  # the cold start, its three steps in one sleep
        "generate",  # the evaluation before
        "load 0", *a_step,
        "load 1 and wake", *a_step,  # with the evaluation that eval.every asks for
        "load 2 and wake", "generate",
        "close",
    ]  # fmt: skip
    plain = tmp_path / "plain"
    trainer(tiny("rollout.colocate=no"), plain, []).run()
    logs = [(folder / "trajectories.jsonl").read_bytes() for folder in (plain, tmp_path / "turns")]
    assert logs[0] == logs[1]


def test_an_update_that_fails_leaves_it_awake_with_the_weights_that_there_are(tmp_path: Path) -> None:
    calls: list[str] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(tiny(), tmp_path / "run", calls, fails_at=1).run()
    assert order(calls)[-5:] == ["generate", "sleep", "update", "load 1 and wake", "close"]


def test_an_engine_that_cannot_sleep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a HFEngine cannot sleep .*: set run\.engine = \"vllm\", or") as caught:
        Trainer(tiny(), tmp_path / "run").run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [("rollout.colocate=turns",), ("rollout.colocate=beside", "rollout.mode=async")])
def test_vllm_on_a_cpu_is_refused_before_it_starts(tmp_path: Path, settings: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="is for a GPU, and this run is on a CPU: leave it out"):
        Trainer(tiny("run.engine=vllm", "model.device=cpu", *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
