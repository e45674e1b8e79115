"""The protocol on a small model: the quickstart's, trained from one cold start a seed by every method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from reproduction import is_done, work

import solostream
from solostream.envs.rewards.builtin import correct
from solostream.envs.rewards.episode import Episode, Score
from solostream.training import config
from solostream.training.run import checkpoint, metric_logger

from .cells import Cells
from .methods import METHODS, PROTOCOL, SPO, ours
from .statistics import area
from .table_run import no_signal
from .tuning import best_rate

ROOT = Path(__file__).parents[2]
EVERY = 1024  # trajectories between evaluations
PASS = 8  # samples of a held-out problem, for pass@k
ASPO = ('algorithm.stages=["aspo"]', "algorithm.aspo.delta=-2.0", "algorithm.aspo.k=0.7")
SHAPING = "algorithm.advantage=evidence_parts.shaping:PaperShaping"
# what the quickstart learnt with before this protocol spoke
SHIPPED = (*SPO, "algorithm.tracker.start_samples=1", 'algorithm.spo.measure="token"')
MODEL_METHODS: dict[str, Sequence[str]] = {
    **{name: method.settings for name, method in METHODS.items()},
    "quickstart": SHIPPED,
    "ours + ASPO": (*ours(), *ASPO),
    "GRPO + ASPO": (*METHODS["grpo"].settings, *ASPO, "algorithm.aspo.compare=group"),
    "GRPO + reward shaping": (SHAPING, "algorithm.group_size=8"),
}
# what is run unless others are named: not what is taken away from ours, nor what the table shows well enough
DEFAULT = (
    *("none", "batch", "rloo", "grpo", "dr_grpo", "opo", "opo_groups", "spo", "spo_pp", "quickstart"),
    *("ours", "ours_negative", "ours_negative_uniform", "ours_tokens", "batch_negative"),
    *("ours + ASPO", "GRPO + ASPO", "GRPO + reward shaping"),
)
# what differs from the quickstart: of the cold start, and of what follows
POPULATIONS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "equal": ((), ()),
    "mixed": (
        ('data.kinds=["gcd", "modpow", "lcm", "digitsum", "muladd", "divisible"]',),
        ("data.kinds=[]", "data.levels=[1, 2, 3]", 'env.options.reward="evidence_parts.model:pays"'),
    ),
}


async def pays(episode: Episode) -> Score:
    """Correctness, except for 15 % of the tasks, which never pay."""
    digest = hashlib.sha256(episode.task.id.encode()).digest()
    return Score(0.0, "impossible") if digest[0] < 0.15 * 256 else await correct(episode)


@dataclass(frozen=True, slots=True)
class ModelRuns:
    """Runs of one output folder, in batches of `batch` trajectories; `settings`: what a smaller size of the protocol
    changes in all of them.
    """

    out: Path
    settings: Sequence[str]
    batch: int

    def configure(self, seed: int, settings: Sequence[str]) -> config.Config:
        """The quickstart's recipe, set back to the published settings, with `settings` on top."""
        where = (f"run.root={json.dumps(str(self.out))}", f"run.seed={seed}", f"eval.every={EVERY // self.batch}")
        given = (*PROTOCOL, "eval.greedy=true", f"rollout.batch={self.batch}", *self.settings, *where, *settings)
        return config.load(ROOT / "configs/recipes/quickstart.toml", [s for s in given if s])

    def cold_start(self, population: str, seed: int) -> Path:
        """The folder that every run of this population and seed starts from."""
        folder = self.out / f"cold-{population}-{seed}"
        wanted = self.configure(seed, POPULATIONS[population][0])
        if not is_done(folder, wanted, "before"):
            work(folder, wanted, cold_start_only=True)
        return checkpoint.newest(folder / "checkpoints")[0]

    def start(self, method: str) -> int:
        """How many trajectories `method` plays before its first update."""
        made = self.configure(0, MODEL_METHODS[method])
        return made.data.train * made.algorithm.tracker.start_samples if made.algorithm.uses_tracker else 0

    def run(self, population: str, method: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
        """One run of as many trajectories as `steps` batches hold, the start's counted.

        Raises ValueError where the start leaves none.
        """
        begin = ("cold_start={}", f"model.path={json.dumps(str(self.cold_start(population, seed)))}")
        starts = self.start(method)
        left = steps - -(-starts // self.batch)
        if left < 1:
            raise ValueError(f"{method}: its start of {starts} trajectories is the whole budget: a smaller data.train")
        looks = f"eval.every={min(EVERY // self.batch, -(-left // 2))}" if starts else ""
        chosen = (*begin, *POPULATIONS[population][1], *MODEL_METHODS[method], f"learner.lr={rate}", looks)
        wanted = self.configure(seed, (*chosen, f"run.steps={left}"))
        folder = self.folder(population, method, rate, seed, steps)
        if not is_done(folder, wanted, "summary"):
            work(folder, wanted)
        return _curve(folder, starts, self.batch)

    def folder(self, population: str, method: str, rate: float, seed: int, steps: int) -> Path:
        """Where that run is."""
        return self.out / f"{population}-{method.replace(' + ', '-').replace(' ', '-')}-{rate:g}-{seed}-{steps}"

    def passes(self, population: str, method: str, rate: float, seed: int, steps: int) -> dict[int, float]:
        """k -> pass@k, k ≤ 8, of the last checkpoint of a finished run on its held-out problems."""
        folder = self.folder(population, method, rate, seed, steps)
        last = checkpoint.newest(folder / "checkpoints")[0]
        found = solostream.evaluate(str(last), k=PASS, seed=seed, out=folder / "passes")
        return {one["k"]: one["mean"] for one in found.summary["metrics"]["pass"]}


def _curve(folder: Path, starts: int, batch: int) -> dict[str, Any]:
    rows = metric_logger.read(folder / "metrics.jsonl")
    looks = [row for row in rows if row["phase"] == "eval"]
    learnt = [row for row in rows if row["phase"] == "rl"]
    last: Mapping[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    flat = looks[:1] if starts else []  # while the start is played nothing is learnt
    spent = list(accumulate((row["length/action_tokens"] for row in learnt), initial=0.0))
    of_start = starts * spent[1] / batch  # as long as those of the first update
    return {
        "episodes": [0] * len(flat) + [starts + row["step"] * batch for row in looks],
        "tokens": [0.0] * len(flat) + [of_start + spent[row["step"]] for row in looks],
        "sampled": [row["accuracy"] for row in flat + looks],
        "greedy": [row["accuracy_greedy"] for row in flat + looks],
        "entropy": [row["learner/entropy"] for row in learnt],
        "no_signal": [share for row in learnt for share in no_signal(row)],
        "calibration": [row["tracker/calibration_error"] for row in learnt if "tracker/calibration_error" in row],
        "first_call": last["after"]["first_call_token"],
        "wall_s": last["wall_s"],
    }


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of the model stage is done."""

    out: Path
    populations: Sequence[str]
    methods: Sequence[str]
    rates: Sequence[float]
    tuning_seeds: Sequence[int]
    seeds: int
    steps: int
    settings: Sequence[str]
    batch: int

    @property
    def model_runs(self) -> ModelRuns:
        """Where they are, and what all of them share."""
        return ModelRuns(self.out / "runs", self.settings, self.batch)


def tune_and_run(plan: Plan, processes: int) -> None:
    """All cells; seed by seed at the end, so that what an interruption leaves are whole comparisons."""
    chosen = [(population, method) for population in plan.populations for method in plan.methods]
    seeds = (*plan.tuning_seeds, *range(plan.seeds))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:

        def every(work: Callable[..., Any], cells: Iterable[Sequence[Any]]) -> list[Any]:
            return [done.result() for done in [pool.submit(work, plan, *cell) for cell in cells]]

        every(_cold_start, [(population, seed) for seed in seeds for population in plan.populations])
        rates = every(_tuned, chosen)
        best = list(zip(chosen, rates, strict=True))
        every(_found, [(*cell, rate, seed) for seed in range(plan.seeds) for cell, rate in best])


def pass_at_k(plan: Plan, processes: int) -> None:
    """Of every method on every seed, at its best rate."""
    chosen = [(population, method) for population in plan.populations for method in plan.methods]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        cells = [(*one, seed) for seed in range(plan.seeds) for one in chosen]
        for done in [pool.submit(_passes, plan, *cell) for cell in cells]:
            done.result()


def _passes(plan: Plan, population: str, method: str, seed: int) -> dict[str, float]:
    rate = _tuned(plan, population, method)
    _found(plan, population, method, rate, seed)
    key = ("model passes", population, method, rate, seed, plan.steps)
    return Cells(plan.out).get(key, lambda: plan.model_runs.passes(population, method, rate, seed, plan.steps))


def _cold_start(plan: Plan, population: str, seed: int) -> None:
    plan.model_runs.cold_start(population, seed)


def _found(plan: Plan, population: str, method: str, rate: float, seed: int, steps: int = 0) -> dict[str, Any]:
    steps = steps or plan.steps
    runs = plan.model_runs
    key = ("model", population, method, rate, seed, steps)
    return Cells(plan.out).get(key, lambda: runs.run(population, method, rate, seed, steps))


def _tuned(plan: Plan, population: str, method: str) -> float:
    def score(rate: float, seed: int, share: float) -> float:
        start = -(-plan.model_runs.start(method) // plan.batch)  # of what is left: a start alone teaches nothing
        one = _found(plan, population, method, rate, seed, start + max(round((plan.steps - start) * share), 1))
        return area(list(zip(one["episodes"], one["sampled"], strict=True)), one["episodes"][-1])

    key = ("model rate", population, method, list(plan.rates), plan.steps)
    return Cells(plan.out).get(key, lambda: best_rate(score, plan.rates, plan.tuning_seeds))
