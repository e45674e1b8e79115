"""Ranks on Ray: a run that loses one goes on alone and ends where one process ends; what a group does with failures."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import model
from transformers import Qwen3Config

from solostream.errors import UserError
from solostream.training.cluster import ranks as module
from solostream.training.cluster.rank_sharding import refuse_unshardable
from solostream.training.cluster.rank_worker import RankLost
from solostream.training.cluster.ranks import Ranks, refuse_too_many
from solostream.training.config import Config, parse
from solostream.training.learner.guards import NotFinite
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.train import newest
from solostream.training.run.trainer import Trainer

TINY = Path(__file__).parents[1] / "run" / "tiny.toml"


def config(root: Path, *more: str) -> Config:
    settings = (f"run.root='{root}'", "model.device='cpu'", "eval.greedy=false", "learner.num_mini_batches=2", *more)
    return parse.load(TINY, settings)


class Kill:
    """A callback: after step 2 a player's process is gone, after step 3 a rank's, after step 4 a replica's."""

    VICTIMS: ClassVar = {2: "the player 0", 3: "the rank 1", 4: "the replica 1"}

    def __init__(self) -> None:
        self.trainer: Any = None
        self.steps: list[int] = []

    def on_step(self, step: int, metrics: dict[str, Any], batch: Any) -> None:
        import ray

        self.steps.append(step)
        for actor in self.trainer.placement._actors:
            if actor.who == self.VICTIMS.get(step) and self.steps.count(step) == 1:
                ray.kill(actor.handle, no_restart=False)


@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(600)
def test_a_run_that_loses_a_rank_ends_where_one_process_ends(ray_cluster: Any, tmp_path: Path) -> None:
    """The whole job on 2 ranks, 2 replicas and 2 players, one of each of which dies.

    A rank does after step 3: again from the checkpoint of step 2. In the end one process goes on to step 7.
    """
    Trainer(config(tmp_path, "run.steps=7"), tmp_path / "one", ProgressDisplay()).run()
    said: list[str] = []
    view = ProgressDisplay()
    view.say = said.append  # type: ignore[method-assign]
    kill = Kill()
    small = config(tmp_path, "cluster.learners=2", "cluster.replicas=2", "cluster.players=2")
    kill.trainer = Trainer(small, tmp_path / "two", view, callbacks=[kill])
    kill.trainer.run()
    assert kill.steps == [1, 2, 3, 3, 4, 5, 6]
    assert any("the ranks are started again" in line for line in said)
    shards = tmp_path / "two" / "checkpoints" / "step-000006" / "learner"
    assert len(list(shards.glob("*.distcp"))) == 2

    last = newest(tmp_path / "two")
    Trainer(config(tmp_path, "run.steps=7"), tmp_path / "two", ProgressDisplay(), last).run()
    one, two = (rows(tmp_path / name) for name in ("one", "two"))
    assert [row["step"] for row in two] == [row["step"] for row in one] == list(range(1, 8))
    for a, b in zip(one, two, strict=True):
        for key in ("learner/grad_norm", "learner/loss", "reward/mean", "kl/k3", "learner/drift"):
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-6)
    ends = [load_file(tmp_path / n / "checkpoints" / "step-000007" / "model.safetensors") for n in ("one", "two")]
    assert max(float((ends[0][name] - ends[1][name]).abs().max()) for name in ends[0]) < 1e-4
    logged = [json.loads(line) for line in (tmp_path / "two" / "trajectories.jsonl").read_text().splitlines()]
    events = [line["dispatch"]["event"] for line in logged if "dispatch" in line]
    assert len(events) == len(set(events))


def rows(run: Path) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in every if row["phase"] == "rl"]


class Answers:
    """Stands for an actor: what its rank returns, raises, or (None) never says."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.killed = answer, False

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize(
    ("answers", "raised"),
    [
        ([{"loss": 1.5}, {"loss": 1.5}], None),
        ([RankLost("rank 0 waited"), NotFinite("tasks t3")], NotFinite),  # what a rank says of its work, first
        ([None, UserError("out of memory")], UserError),  # and nobody waits long for one that hangs
        ([None, RankLost("rank 1 waited")], RankLost),
    ],
)
def test_what_the_ranks_answer_together(
    answers: list[Any], raised: type[Exception] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    actors: list[Any] = [Answers(answer) for answer in answers]
    together = Ranks(lambda: actors, tmp_path, torch.float32)
    together._actors = actors
    if raised is None:
        assert together._every("update") == {"loss": 1.5}
    else:
        with pytest.raises(raised):
            together._every("update")
    together.close()
    assert all(actor.killed for actor in actors)


HANGS = """
import datetime, os, sys, time, torch
from solostream.training.cluster.rank_group import join, meet, reach
from solostream.training.cluster.rank_worker import LOST
read, write = os.pipe()
child = os.fork()
if child == 0:
    group = join(1, 2, reach("127.0.0.1", int(os.read(read, 9)), 60), torch.device("cpu"), 2)
    group.gather("here")
    time.sleep(3600)
store = meet("127.0.0.1")
os.write(write, str(store.port).encode())
group = join(0, 2, store, torch.device("cpu"), 2)
assert group.gather("here") == ["here", "here"]
try:
    group.sums({"loss": 1.0})
except RuntimeError as error:
    found = [word for word in LOST if word in str(error).lower()]
    print("lost" if found else error, flush=True)
os.kill(child, 9)
os._exit(0)
"""


def test_a_rank_that_hangs_is_given_up_after_the_time_that_is_set() -> None:
    """2 s are set; torch's own half an hour would end the test first."""
    run = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=250)
    assert run.stdout == "lost\n", run.stderr


@pytest.mark.parametrize(
    ("settings", "cpus", "gpus", "message"),
    [
        (["cluster.learners=3", "model.device='cuda'"], 8, 2, "cluster.learners = 3, one a GPU, and there are 2 GPUs"),
        (["cluster.learners=3", "model.device='auto'"], 8, 2, "there are 2 GPUs: set cluster.learners lower"),
        (["cluster.learners=3"], 2, 0, "cluster.learners = 3, one a processor, and there are 2"),
        (["cluster.learners=2", "model.device='cuda:1'"], 8, 2, "is one GPU, and there are 2 learners"),
        (["cluster.learners=2", "cold_start.learner.lora={}"], 8, 0, "cold_start.learner.lora needs"),
    ],
)
def test_ranks_that_cannot_be_are_refused(
    settings: list[str], cpus: int, gpus: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        refuse_too_many(config(tmp_path, *settings), cpus, gpus)


def test_models_that_fsdp_cannot_share_out_are_refused() -> None:
    refuse_unshardable(model())
    odd = model()
    odd.model.scale = torch.nn.Parameter(torch.tensor(2.0))
    with pytest.raises(UserError, match=r"model\.scale of Qwen3ForCausalLM is a single number.*learners = 1"):
        refuse_unshardable(odd)
    quantized = model()
    assert isinstance(quantized.config, Qwen3Config)
    quantized.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(UserError, match=r"is quantized, which cannot be sharded: set cluster\.learners = 1"):
        refuse_unshardable(quantized)
    flat = model()
    flat.model.layers = torch.nn.Sequential(*flat.model.layers)
    with pytest.raises(UserError, match="has no list of layers to share out"):
        refuse_unshardable(flat)
