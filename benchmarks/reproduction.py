"""SPO against GRPO (G = 8) and against its own ablations; ASPO against SPO and against reward shaping. Over seeds.

For each seed there is one cold start, and every run starts from its model and sees the same number of trajectories a
step, in the synchronous mode: a run is a function of its seed, however busy the machine is. A finished run in the
output folder is read instead of repeated; an interrupted one goes on from its last checkpoint.

    python benchmarks/reproduction.py [--quick] [--seeds 0 1 2 3 4] [--variants spo grpo ...] [--steps N] [--out FOLDER]
        [--set KEY=VALUE ...]

AUC is the area under the held-out (sampled) accuracy curve divided by its width. "start counted" puts the episodes that
initialize SPO's tracker on the axis too, and every curve ends at the trajectories of `steps` batches.

Bounded shaping is ASPO's clipped term with the reward in place of the advantage, r' = r + clip(δ·(p − mean p)/mean L,
−k·r, +k·r), then A = r' − v₋₁, standardized; the tracker sees r, not r'. It is not the paper's control, which is
unbounded and normalised within groups (`evidence_parts/shaping.py`): under a batch's normalisation correctness stays.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from evidence_parts.statistics import area, interval, said

from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.errors import UserError
from solostream.training import config
from solostream.training.advantages.base import Advantages, per_token, shape_early_calls, standardize
from solostream.training.advantages.spo import SPO, Measure
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.run import checkpoint, metric_logger
from solostream.training.run.interrupt import Interrupted
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.trainer import Trainer

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Variant:
    """`settings` on top of plain SPO."""

    title: str
    settings: tuple[str, ...] = ()


PRIORITIZED = "algorithm.sampler=prioritized"  # the recipe draws uniformly
ASPO = (PRIORITIZED, 'algorithm.stages=["aspo"]', 'algorithm.aspo.eligible="code"', 'algorithm.aspo.compare="batch"')
VARIANTS = {
    "spo": Variant("SPO", (PRIORITIZED,)),
    "grpo": Variant("GRPO, G = 8", ("algorithm.advantage=grpo", "algorithm.group_size=8")),
    "batch-mean": Variant("batch mean (SPO's v = 0)", ("algorithm.advantage=reinforce_pp",)),
    "no-baseline": Variant("no baseline (A = r)", ("algorithm.advantage=none",)),
    "no-start": Variant("SPO, no offline start", (PRIORITIZED, "algorithm.tracker.start_samples=0")),
    "uniform": Variant("SPO, uniform sampling", ("algorithm.sampler=uniform",)),
    "constant-rho": Variant(
        "SPO, constant ρ = 0.9", (PRIORITIZED, "algorithm.tracker.rho_min=0.9", "algorithm.tracker.rho_max=0.9")
    ),
    "trajectory": Variant("SPO, trajectory measure", (PRIORITIZED, "algorithm.spo.measure=trajectory")),
    "aspo": Variant("SPO + ASPO (−2, 0.7)", (*ASPO, "algorithm.aspo.delta=-2.0", "algorithm.aspo.k=0.7")),
    "aspo-aggressive": Variant("SPO + ASPO (−2.5, 0.9)", (*ASPO, "algorithm.aspo.delta=-2.5", "algorithm.aspo.k=0.9")),
    "reward-shaping": Variant(
        "SPO + bounded shaping (−2, 0.7)", (PRIORITIZED, "algorithm.advantage=reproduction:RewardShaping")
    ),
}
# Whose batches show the sign of correct answers, under which (δ, k).
SIGNS = {"spo": (-2.0, 0.7), "aspo": (-2.0, 0.7), "aspo-aggressive": (-2.5, 0.9), "reward-shaping": (-2.0, 0.7)}
PANELS = {
    "SPO and GRPO": ("accuracy", ("spo", "grpo", "no-baseline")),
    "Ablations of SPO": ("accuracy", ("spo", "no-start", "uniform", "constant-rho", "trajectory")),
    "ASPO and reward shaping: accuracy": ("accuracy", ("spo", "aspo", "aspo-aggressive", "reward-shaping")),
    "ASPO and reward shaping: first call": ("first_call_token", ("spo", "aspo", "aspo-aggressive", "reward-shaping")),
}
COLOURS = ("#22303c", "#c2571a", "#2563a6", "#3a8f5c", "#a0479c")
COLUMNS: Mapping[str, tuple[str, str]] = {  # measure -> (heading, format)
    "auc": ("AUC", ".3f"),
    "auc_start": ("AUC, start counted", ".3f"),
    "accuracy": ("final accuracy", ".3f"),
    "first_call_token": ("first call (token)", ".1f"),
    "code_rounds": ("rounds", ".2f"),
    "code_ratio": ("code ratio", ".2f"),
}
QUICK = (
    "cold_start.phases=[{steps=80, mix={early=0.7, late=0.3}}]",
    "cold_start.batch=16",
    'data.kinds=["gcd"]',
    "data.levels=[1]",
    "data.train=32",
    "data.test=32",
    "rollout.batch=16",
)
PINNED = (
    'rollout.mode="sync"',
    "algorithm.advantage=spo",
    "algorithm.group_size=1",
    'algorithm.spo={measure = "token", divergence = "drift"}',
    "algorithm.tracker={start_samples = 1}",
    "algorithm.stages=[]",
    "algorithm.aspo.signal=first_call",
    "rollout.batch=128",
    "eval.greedy=false",
)


class RewardShaping:
    """SPO on shaped rewards: what ASPO's authors advise against. A component like any of a stranger's."""

    def __init__(self, tracker: ValueTracker, measure: Measure = "token", delta: float = -2.0, k: float = 0.7) -> None:
        self.inner, self.delta, self.k = SPO(tracker, measure), delta, k

    def __call__(self, batch: Sequence[Trajectory]) -> Advantages:
        metrics = self.inner(batch).metrics  # the tracker's evidence is what was really earned
        return Advantages(per_token(by_reward(batch, self.inner.measure, self.delta, self.k), batch), metrics)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


def shape(values: list[float], batch: Sequence[Trajectory], delta: float, k: float) -> list[float]:
    first, length = [t.first_call_token for t in batch], [t.response_length for t in batch]
    return shape_early_calls(values, first, length, [t.reward >= 0.5 for t in batch], delta, k)


def centred(batch: Sequence[Trajectory], r: Sequence[float], measure: Measure) -> list[float]:
    """SPO's advantage of the rewards `r`, with the baselines frozen at dispatch."""
    raw = [x - t.dispatch.value for x, t in zip(r, batch, strict=True)]  # type: ignore[operator]
    return standardize(raw, [t.n_action_tokens for t in batch] if measure == "token" else None)


def by_reward(batch: Sequence[Trajectory], measure: Measure, delta: float, k: float) -> list[float]:
    return centred(batch, shape([t.reward for t in batch], batch, delta, k), measure)


class Reproduction:
    """The runs of one output folder."""

    def __init__(self, out: Path, steps: int | None, every: int, extra: Sequence[str]) -> None:
        self.out, self.every = out, every
        given = () if steps is None else (f"run.steps={steps}",)
        self.settings = (*PINNED, f"eval.every={every}", *extra, *given)

    def configure(self, seed: int, settings: Iterable[str] = ()) -> config.Config:
        where = (f"run.root={json.dumps(str(self.out))}", f"run.seed={seed}")
        return config.load(ROOT / "configs/recipes/quickstart.toml", (*self.settings, *where, *settings))

    def cold_start(self, seed: int) -> Path:
        """The Hugging Face folder that every run of this seed starts from."""
        folder, wanted = self.out / f"cold-start-{seed}", self.configure(seed)
        if not wanted.cold_start.phases:
            raise UserError("the recipe quickstart has no cold start to begin from: give it [cold_start] phases")
        if not is_done(folder, wanted, "before"):
            work(folder, wanted, cold_start_only=True)
        return checkpoint.newest(folder / "checkpoints")[0]

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """UpdateMetrics of one finished run, `curve` included: (step, accuracy, first call) of every evaluation."""
        variant, folder = VARIANTS[name], self.out / f"{name}-{seed}"
        start = ("cold_start={}", f"model.path={json.dumps(str(self.cold_start(seed)))}")
        wanted = self.configure(seed, (*start, *variant.settings))
        if not is_done(folder, wanted, "summary"):
            print(f"— {variant.title}, seed {seed}", flush=True)
            work(folder, wanted)
        found = {**json.loads((folder / "summary.json").read_text(encoding="utf-8"))["after"], "config": wanted}
        curve = [row for row in metric_logger.read(folder / "metrics.jsonl") if row["phase"] == "eval"]
        found["curve"] = [(row["step"], row["accuracy"], row["first_call_token"]) for row in curve]
        a, batch = wanted.algorithm, wanted.rollout.batch
        starts = wanted.data.train * a.tracker.start_samples / batch if a.uses_tracker else 0.0
        points = [(step, accuracy) for step, accuracy, _ in found["curve"]]
        found["auc"] = area(points, wanted.run.steps)
        found["auc_start"] = area([points[0], *((x + starts, y) for x, y in points)], wanted.run.steps)
        if name in SIGNS:
            found["signs"] = _signs(folder, a.options.get("spo", {}).get("measure", "token"), *SIGNS[name])
        return found


def is_done(folder: Path, wanted: config.Config, what: str) -> bool:
    """Whether the folder has the finished run. Raises UserError when it was made with other settings."""
    if not (folder / "config.toml").exists():
        return False
    made, wanted = config.load(folder / "config.toml"), wanted.completed()  # a folder keeps what is in force
    if (made.resume_fingerprint(), made.run.steps, made.eval) != (
        wanted.resume_fingerprint(),
        wanted.run.steps,
        wanted.eval,
    ):
        raise UserError(f"{folder} was made with other settings: choose another --out, or remove that folder")
    if what == "summary":
        return (folder / "summary.json").exists()
    root = folder / "checkpoints"
    return bool(checkpoint.complete(root)) and checkpoint.newest(root)[1].plain[what] is not None


def work(folder: Path, wanted: config.Config, *, cold_start_only: bool = False) -> None:
    root = folder / "checkpoints"
    source = checkpoint.newest(root)[0] if checkpoint.complete(root) else None
    try:
        Trainer(wanted, folder, ProgressDisplay(live=False), source, cold_start_only=cold_start_only).run()
    except Interrupted:
        raise KeyboardInterrupt from None


def _signs(folder: Path, measure: Measure, delta: float, k: float) -> dict[str, float]:
    """Of the correct answers that the run trained on: shares with a negative advantage under each estimator."""
    place = folder / "signs.json"
    if not place.exists():
        batches: dict[int, list[Trajectory]] = defaultdict(list)
        for line in read_lines(folder / "trajectories.jsonl"):
            if line.trajectory is not None:
                batches[line.trajectory.dispatch.version].append(line.trajectory)  # synchronous: a version is a batch
        place.write_text(json.dumps(count_signs(batches.values(), measure, delta, k)))
    return json.loads(place.read_text(encoding="utf-8"))


def count_signs(batches: Iterable[Sequence[Trajectory]], measure: Measure, delta: float, k: float) -> dict[str, float]:
    correct, counts = 0, dict.fromkeys(("plain", "aspo", "reward", "aspo_turned", "reward_turned"), 0)
    for batch in batches:
        plain = centred(batch, [t.reward for t in batch], measure)
        shaped = {"aspo": shape(plain, batch, delta, k), "reward": by_reward(batch, measure, delta, k)}
        for i, trajectory in enumerate(batch):
            if trajectory.reward >= 0.5:
                correct += 1
                counts["plain"] += plain[i] < 0
                for name, values in shaped.items():
                    counts[name] += values[i] < 0
                    counts[f"{name}_turned"] += plain[i] > 0 > values[i]
    return {name: n / max(correct, 1) for name, n in counts.items()}


Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # variant -> one a seed


def difference(runs: Runs, one: str, other: str, key: str) -> list[float]:
    """Seed by seed, where both have a number."""
    pairs = ((a[key], b[key]) for a, b in zip(runs[one], runs[other], strict=True))
    return [a - b for a, b in pairs if a is not None and b is not None]


def report(runs: Runs, seeds: Sequence[int]) -> str:
    first: config.Config = next(iter(runs.values()))[0]["config"]
    steps, batch = first.run.steps, first.rollout.batch
    lines = [
        f"{len(seeds)} seeds, {steps} steps of {batch} trajectories, {first.data.test} held-out problems every "
        f"{first.eval.every} steps; mean ± half of the 95 % t interval over seeds.",
        "",
        *_header(["run", *(heading for heading, _ in COLUMNS.values())]),
    ]
    for name, group in runs.items():
        cells = [said([r[key] for r in group], form) for key, (_, form) in COLUMNS.items()]
        lines.append(_row([VARIANTS[name].title, *cells]))
    if "spo" in runs and len(runs) > 1:
        lines += ["", "Paired differences from SPO, seed by seed:", ""]
        lines += _header(["run − SPO", *(heading for heading, _ in COLUMNS.values())])
        for name in runs:
            if name != "spo":
                cells = [said(difference(runs, name, "spo", key), form, "+") for key, (_, form) in COLUMNS.items()]
                lines.append(_row([VARIANTS[name].title, *cells]))
    if {"spo", "grpo"} <= set(runs):
        auc, counted = (said(difference(runs, "spo", "grpo", key), ".3f", "+") for key in ("auc", "auc_start"))
        lines += ["", f"SPO − GRPO in AUC, paired: {auc}; with SPO's start counted: {counted}."]
    if shown := [name for name in SIGNS if name in runs]:
        lines += [
            "",
            "Correct answers with a negative advantage, each estimator on the same batches (those of the run):",
        ]
        lines += ["", *_header(["batches of", "SPO", "ASPO", "reward shaping", "turned by ASPO", "turned by shaping"])]
        for name in shown:
            keys = ("plain", "aspo", "reward", "aspo_turned", "reward_turned")
            lines.append(
                _row([VARIANTS[name].title, *(said([r["signs"][k] for r in runs[name]], ".3f") for k in keys)])
            )
        lines += ["", "Turned: positive under SPO, negative once shaped."]
    return "\n".join(lines) + "\n"


def _header(titles: Sequence[str]) -> list[str]:
    return [_row(titles), "|" + "---|" * len(titles)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(runs: Runs, path: Path) -> None:
    """Means over seeds with their 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    panels = {title: (key, [n for n in names if n in runs]) for title, (key, names) in PANELS.items()}
    figure = Figure(figsize=(12, 8), dpi=130, layout="constrained")
    for axes, (title, (key, names)) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            _curve(axes, runs[name], 1 if key == "accuracy" else 2, colour, VARIANTS[name].title)
        axes.set_title(title, size=11, weight="bold")
        axes.set_xlabel("reinforcement-learning step")
        axes.set_ylabel("held-out accuracy" if key == "accuracy" else "token of the response")
        axes.set_ylim(bottom=0)
        axes.grid(color="#d9dee3", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if names:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _curve(axes: Any, group: Sequence[Mapping[str, Any]], column: int, colour: str, label: str) -> None:
    at: Callable[[int], list[float]] = lambda i: [v for r in group if (v := r["curve"][i][column]) is not None]
    places = [i for i in range(len(group[0]["curve"])) if at(i)]
    x = [group[0]["curve"][i][0] for i in places]
    mean, half = zip(*(interval(at(i)) for i in places), strict=True) if places else ((), ())
    axes.plot(x, mean, color=colour, label=label, linewidth=1.8, marker="o", markersize=3.5)
    low, high = ([m + side * h for m, h in zip(mean, half, strict=True)] for side in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="two seeds, a tiny job: shows that it runs, no more")
    options.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2 3 4")
    options.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    options.add_argument("--steps", type=int, help="of reinforcement learning; default: the quickstart's")
    options.add_argument("--every", type=int, help="steps between evaluations; default: 5")
    options.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run")
    options.add_argument("--out", type=Path, default=ROOT / "runs/reproduction")
    a = options.parse_args()
    out = a.out.resolve() / "quick" if a.quick else a.out.resolve()
    seeds = list(dict.fromkeys(a.seeds or ((0, 1) if a.quick else range(5))))
    steps = 4 if a.quick and a.steps is None else a.steps
    every = (2 if a.quick else 5) if a.every is None else a.every
    work = Reproduction(out, steps, every, (*(QUICK if a.quick else ()), *a.set))
    try:
        # Seed by seed: an interrupted benchmark has whole comparisons.
        found = {(name, seed): work.run(name, seed) for seed in seeds for name in dict.fromkeys(a.variants)}
    except UserError as error:
        print(f"reproduction: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    runs = {name: [found[name, seed] for seed in seeds] for name in dict.fromkeys(a.variants)}
    text = report(runs, seeds)
    (out / "reproduction.md").write_text(text, encoding="utf-8")
    plot(runs, out / "reproduction.png")
    print(f"\n{text}\n{out}/reproduction.md, reproduction.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
