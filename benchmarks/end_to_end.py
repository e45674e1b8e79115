"""Reinforcement learning on the quickstart, solostream beside TRL's GRPOTrainer: what a step costs, what it teaches.

Both begin with the model of one cold start and see the same problems, the same sandbox, batches of 128 trajectories;
float32, AdamW at 5e-4 with a linear schedule, one update a batch, one thread a process. solostream is the recipe as it
is (SPO + ASPO, asynchronous), without the episodes that initialize the tracker; TRL is GRPO with groups of 8, DAPO's
loss, transformers' `generate` in rounds (`end_to_end_parts/trl_loop.py`; its vLLM modes need a GPU).

CPU s is of all processes (trainer, interpreters, their keeper): the median over steps without the first, and all of
them with their start, shared out among the steps (an asynchronous run plays ahead: its first step has paid for the
last ones). Accuracy is of the held-out problems, T = 1, under the weights after the last step: after equally many
trajectories.

    pip install trl
    python benchmarks/end_to_end.py [--steps 12] [--problems 400] [--sides solostream,trl] [--model FOLDER]
        [--out runs/end_to_end]

FOLDER: a model to begin with (default: the recipe's cold start, made once in --out). Bar: ≤ 2.0 CPU s a step.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: sandbox.py and envs.py in it are no packages

import torch  # noqa: E402

from benchmarks.engine_parts.clock import children_s  # noqa: E402
from solostream.agent.engines.hf import HFEngine  # noqa: E402
from solostream.agent.trajectory import Dispatch  # noqa: E402
from solostream.training import config as configuration  # noqa: E402
from solostream.training.rollouts.env_pool import Episodes  # noqa: E402
from solostream.training.run import checkpoint, setup  # noqa: E402
from solostream.training.run.progress import ProgressDisplay  # noqa: E402
from solostream.training.run.trainer import Trainer  # noqa: E402

ROOT = Path(__file__).parents[1]
SIDES, BATCH, BAR_S = ("solostream", "trl"), 128, 2.0


class Clock:
    """CPU seconds of this process and of all that it has started, at every step."""

    def __init__(self) -> None:
        self.cpu: list[float] = []  # at the start and after each step
        self.wall: list[float] = []
        self.rewards: list[float] = []  # means, one a step

    def on_start(self, step: int = 0) -> None:
        self.cpu.append(time.process_time() + children_s())
        self.wall.append(time.monotonic())

    def tell(self, step: int, reward: float) -> None:
        self.on_start(step)
        self.rewards.append(reward)
        print(f"step {step}  reward {reward:.3f}  {self.cpu[-1]:.1f} CPU s in all", file=sys.stderr, flush=True)

    def on_step(self, step: int, metrics: Any, batch: Any) -> None:
        self.tell(step, sum(t.reward for t in batch) / len(batch))

    def row(self) -> dict[str, Any]:
        took = [after - before for before, after in itertools.pairwise(self.cpu)]
        every = (self.cpu[-1] - self.cpu[0]) / len(took)
        wall = (self.wall[-1] - self.wall[0]) / len(took)
        return {"cpu_s": median(took[1:]), "all_s": every, "wall_s": wall, "rewards": self.rewards}


def settings(out: Path, model: Path | None, steps: int, problems: int) -> configuration.Config:
    given = [f"run.root={json.dumps(str(out))}", f"run.steps={steps}", f"data.test={problems}"]
    given += [f"rollout.batch={BATCH}", "eval.every=0", "eval.greedy=false"]
    if model is not None:
        given += [f"model.path={json.dumps(str(model))}", "cold_start.phases=[]", "algorithm.tracker.start_samples=0"]
    return configuration.load(ROOT / "configs/recipes/quickstart.toml", given)


def cold_start(out: Path) -> Path:
    """The folder of the model that both begin with."""
    folder = out / "cold-start"
    if not checkpoint.complete(folder / "checkpoints"):
        Trainer(settings(out, None, 1, 400), folder, ProgressDisplay(live=False), cold_start_only=True).run()
    return checkpoint.newest(folder / "checkpoints")[0]


def ours(config: configuration.Config, folder: Path, clock: Clock) -> Path:
    Trainer(config, folder, ProgressDisplay(live=False), callbacks=[clock]).run()
    return checkpoint.newest(folder / "checkpoints")[0]


def theirs(config: configuration.Config, folder: Path, clock: Clock) -> Path:
    from benchmarks.end_to_end_parts.trl_loop import learn

    train, test = setup.problems(config)
    learn(config, setup.build(config, train, test, []), config.run.steps, BATCH, clock, folder)
    return folder


async def accuracy(config: configuration.Config) -> float:
    """Of the model of `config` on the held-out problems, one episode each."""
    train, test = setup.problems(config)
    parts = setup.build(config, train, test, [])
    engine = HFEngine(parts.model, parts.tokenizer, slots=128, max_len=parts.max_tokens)
    episodes = Episodes(config, parts, test)
    sampling, free = episodes.sampling(1.0), asyncio.Semaphore(128)

    async def play(i: int, task_id: str) -> float:
        async with free:
            return (await episodes.play(engine, task_id, sampling, Dispatch(), i)).reward

    try:
        rewards = await asyncio.gather(*(play(i, task.id) for i, task in enumerate(test)))
    finally:
        await episodes.close()
        await engine.close()
    return sum(r >= 0.5 for r in rewards) / len(rewards)


def one(side: str, model: Path, out: Path, steps: int, problems: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    clock, folder = Clock(), out / f"{side}-{steps}"
    made = {"solostream": ours, "trl": theirs}[side](settings(out, model, steps, problems), folder, clock)
    return {**clock.row(), "accuracy": asyncio.run(accuracy(settings(out, made, steps, problems)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="two or more")
    parser.add_argument("--problems", type=int, default=400, help="held out, of which accuracy is")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/end_to_end")
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)  # in this process
    a = parser.parse_args()
    if a.steps < 2:
        parser.error("--steps: the first one is left out, give 2 or more")
    model, out = a.model or cold_start(a.out), a.out.resolve()
    if a.one:
        print(json.dumps(one(a.one, model, out, a.steps, a.problems)))
        return
    print(
        f"{'':<12}{'CPU s a step':>14}{'with start':>12}{'wall s':>9}{'trajectories':>14}{'accuracy':>10}   rewards",
        flush=True,
    )
    for side in a.sides.split(","):
        command = [sys.executable, __file__, "--one", side, "--model", model, "--out", out]
        command += ["--steps", str(a.steps), "--problems", str(a.problems)]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)
        row = json.loads(done.stdout.splitlines()[-1])
        rewards = " ".join(f"{r:.2f}" for r in row["rewards"])
        cells = f"{row['cpu_s']:>14.2f}{row['all_s']:>12.2f}{row['wall_s']:>9.2f}"
        cells += f"{a.steps * BATCH:>14}{row['accuracy']:>10.1%}"
        print(f"{side:<12}{cells}   {rewards}", flush=True)
    print(f"bar: solostream at most {BAR_S} CPU s a step of {BATCH} trajectories")


if __name__ == "__main__":
    main()
