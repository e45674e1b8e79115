"""Which single stream is the better one: the protocol of docs/evidence.md, on a table policy and on a small model.

    python benchmarks/evidence.py [--quick | --short] [--stage noise table probes steps early model passk clock report]
                                  [--populations …] [--methods NAME …] [--batch N] [--rates …] [--seeds N]
                                  [--processes N] [--out FOLDER]

Every cell is a line of FOLDER/cells.jsonl: a killed run goes on, and what is there is not computed again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from evidence_parts import early_calls, probes, report, several_steps
from evidence_parts.cells import Cells
from evidence_parts.methods import METHODS
from evidence_parts.statistics import area
from evidence_parts.table import POPULATIONS
from evidence_parts.table_run import noise, play, start_episodes
from evidence_parts.tuning import best_rate

ROOT = Path(__file__).parents[1]
STAGES = ("noise", "table", "probes", "steps", "early", "model", "passk", "clock", "report")
TUNING_SEEDS = (100, 101)
CHECKPOINTS = (0, 5, 10, 20)
NOISE_SEEDS = 5
RATES = (0.03, 0.1, 0.3, 1.0)  # of the table's logits


TINY = (
    "cold_start.phases=[{steps=60, mix={early=0.7, late=0.3}}]",
    "cold_start.batch=16",
    "data.train=16",
    "data.test=32",
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much of the protocol is done."""

    budget: int = 2560
    seeds: int = 10
    rates: tuple[float, ...] = RATES
    model_seeds: int = 5
    model_batch: int = 128
    model_trajectories: int = 24 * 128
    model_rates: tuple[float, ...] = (1.25e-4, 2.5e-4, 5e-4, 1e-3)
    model_tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    model_settings: tuple[str, ...] = ()
    clock_seeds: int = 3
    clock_steps: int = 40


SIZES = {
    # shows that it runs
    "quick": Size(
        budget=2560,
        seeds=4,
        rates=RATES[1:3],
        model_seeds=1,
        model_batch=32,
        model_trajectories=192,
        model_rates=(2.5e-4, 5e-4),
        model_tuning_seeds=TUNING_SEEDS[:1],
        model_settings=TINY,
        clock_seeds=1,
        clock_steps=3,
    ),
    # whole cold starts and runs, but three seeds, two rates on one seed, and a pool that is visited twelve times
    "short": Size(
        budget=2560,
        seeds=4,
        rates=RATES[1:3],
        model_seeds=3,
        model_rates=(5e-4, 1e-3),
        model_tuning_seeds=TUNING_SEEDS[:1],
        model_settings=("data.train=256", "data.test=200"),
    ),
    "full": Size(model_settings=("data.train=256",)),  # a pool that eight outcomes a problem leave something of
}


def tune_and_play(out: Path, population: str, method: str, size: Size) -> None:
    """All table cells of one method on one population."""
    cells = Cells(out)

    def curve(rate: float, seed: int, budget: int) -> dict:
        key = ("table", population, method, rate, seed, budget)
        return cells.get(key, lambda: asdict(play(population, method, rate, seed, budget)))

    start = start_episodes(method)

    def score(rate: float, seed: int, share: float) -> float:
        budget = start + round((size.budget - start) * share)  # of what is left: a start alone teaches nothing
        found = curve(rate, seed, budget)
        return area(list(zip(found["episodes"], found["sampled"], strict=True)), budget)

    rate = cells.get(
        ("table rate", population, method, list(size.rates), size.budget),
        lambda: best_rate(score, size.rates, TUNING_SEEDS),
    )
    for seed in range(size.seeds):
        curve(rate, seed, size.budget)


def table_noise(out: Path, population: str, names: list[str], seed: int) -> None:
    """The gradient noise of the methods `names`, all on one policy."""
    Cells(out).get(
        ("noise", population, seed, list(CHECKPOINTS), names),
        lambda: noise(population, names, seed, checkpoints=CHECKPOINTS),
    )


def _tables(out: Path, a: argparse.Namespace, size: Size) -> None:
    if {"table", "noise"} & set(a.stage):
        _known(a.methods, METHODS)
    with ProcessPoolExecutor(a.processes) as pool:
        work = []
        if "table" in a.stage:
            work += [pool.submit(tune_and_play, out, p, m, size) for m in a.methods or METHODS for p in a.populations]
        if "noise" in a.stage:
            names = list(dict.fromkeys(["batch", *(a.methods or METHODS)]))  # what the others are compared with
            work += [
                pool.submit(table_noise, out, p, names, seed) for seed in range(NOISE_SEEDS) for p in a.populations
            ]
        for done in work:
            done.result()


def _known(names: Sequence[str] | None, methods: Iterable[str]) -> None:
    if unknown := [name for name in names or () if name not in methods]:
        raise SystemExit(f"--methods: no {', '.join(unknown)} here; there are {', '.join(methods)}")


def _probes(out: Path, populations: Sequence[str]) -> None:
    for population in populations:
        print(f"\n### What a baseline can be worth, {population}\n", *probes.table(Cells(out), population), sep="\n")


def _steps(out: Path, populations: Sequence[str]) -> None:
    for population in populations:
        print(f"\n### Eight steps a batch, {population}\n", *several_steps.table(Cells(out), population), sep="\n")


def _early(out: Path) -> None:
    found = early_calls.curves(Cells(out))
    early_calls.plot(found, out / "early_calls.png")
    print("\n### ASPO where nearly all groups are right\n", *early_calls.table(found), sep="\n")


def _model(out: Path, a: argparse.Namespace, size: Size) -> None:
    from evidence_parts.model import DEFAULT, MODEL_METHODS, Plan, pass_at_k, tune_and_run

    _known(a.methods, MODEL_METHODS)
    plan = Plan(
        out,
        a.populations,
        a.methods or DEFAULT,
        a.rates or size.model_rates,
        size.model_tuning_seeds,
        a.seeds or size.model_seeds,
        size.model_trajectories // size.model_batch,
        size.model_settings,
        size.model_batch,
    )
    if "model" in a.stage:
        tune_and_run(plan, a.processes)
    if "passk" in a.stage:
        pass_at_k(plan, a.processes)


def _clock(out: Path, names: Sequence[str] | None, size: Size) -> None:
    """One run after the other: two would share the cores."""
    from evidence_parts import wall_clock
    from evidence_parts.model import ModelRuns

    runs = ModelRuns(out / "runs", size.model_settings, size.model_batch)
    found: dict[str, dict[int, dict]] = {}
    for seed in range(size.clock_seeds):
        for name in names or wall_clock.CONTESTANTS:
            key = ("clock", name, seed, size.clock_steps)
            cold = runs.cold_start("equal", seed)
            one = Cells(out).get(key, partial(wall_clock.run, runs, name, cold, seed, size.clock_steps))
            found.setdefault(name, {})[seed] = one
    print("", *wall_clock.table(found), sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = options.add_mutually_exclusive_group()
    for name, what in {"quick": "shows that it runs", "short": "fewer seeds and rates, smaller pool"}.items():
        sizes.add_argument(f"--{name}", dest="size", action="store_const", const=name, default="full", help=what)
    options.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    options.add_argument("--methods", nargs="+", metavar="NAME", help="default: all of a stage")
    options.add_argument("--populations", nargs="+", choices=POPULATIONS, default=list(POPULATIONS))
    options.add_argument("--rates", nargs="+", type=float, help="of the model; one is not tuned")
    options.add_argument("--seeds", type=int, help="of the model")
    options.add_argument("--batch", type=int, help="trajectories an update of the model, of as many in all")
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--out", type=Path, default=ROOT / "runs/evidence")
    a = options.parse_args(arguments)
    out, size = a.out.resolve() / a.size, SIZES[a.size]
    if a.batch:
        out, size = out.with_name(f"{a.size}-batch-{a.batch}"), replace(size, model_batch=a.batch)
    _tables(out, a, size)
    if "probes" in a.stage:
        _probes(out, a.populations)
    if "steps" in a.stage:
        _steps(out, a.populations)
    if "early" in a.stage:
        _early(out)
    if {"model", "passk"} & set(a.stage):
        _model(out, a, size)
    if "clock" in a.stage:
        _clock(out, a.methods, size)
    if "report" in a.stage:
        text = report.write(Cells(out))
        (out / "evidence.md").write_text(text, encoding="utf-8")
        print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
