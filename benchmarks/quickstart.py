"""The main job over ten seeds, with ASPO and without: every bar of the quickstart in one table, and a figure.

Each run is the command that a user types; a finished run in the output folder is read instead of repeated, so an
interrupted benchmark goes on where it stopped. Times are honest only when nothing else runs on the machine. The figure,
`aspo.png` in the folder, shows how the tool is used while it is learnt, as Fig. 5 and 6 of arXiv 2508.19201 do.

    python benchmarks/quickstart.py [--quick] [--seeds 0 1 2 …] [--engine hf|vllm] [--out runs/benchmark]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, median
from typing import Any

from solostream.training.run import metric_logger

ROOT = Path(__file__).parents[1]
VARIANTS = {"SPO + ASPO": '["negative_weight", "aspo"]', "SPO": '["negative_weight"]'}
PANELS = {
    "reward/mean": "mean reward",
    "code/first_call_token": "token of the first call",
    "code/rounds": "rounds of code",
    "code/lines": "lines of code",
    "code/pass_ratio": "share of calls that ran without an error",
    "length/response_mean": "tokens of the response",
}
SMOOTH = 4  # updates a point
Run = dict[str, Any]


def named(variant: str, engine: str, seed: int) -> str:
    return f"{variant.replace(' + ', '-').lower()}-{engine}-{seed}"


def run(variant: str, seed: int, out: Path, engine: str, extra: list[str]) -> Run:
    name = named(variant, engine, seed)
    summary = out / name / "summary.json"
    if not summary.exists():
        settings = [f"run.root={json.dumps(str(out))}", f"algorithm.stages={VARIANTS[variant]}", *extra]
        command = [sys.executable, "-m", "solostream", "train", str(ROOT / "configs/recipes/quickstart.toml")]
        command += ["--name", name, "--seed", str(seed), "--engine", engine]
        command += ["--resume"] if (out / name).exists() else []
        for setting in settings:
            command += ["--set", setting]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return json.loads(summary.read_text(encoding="utf-8"))


def row(variant: str, r: Run) -> str:
    b, a = r["before"], r["after"]
    change = lambda key, form: f"{b[key]:{form}} → {a[key]:{form}}"
    return (
        f"| {variant} | {r['seed']} | {change('accuracy', '.3f')} | {change('accuracy_greedy', '.3f')} "
        f"| {change('code_ratio', '.2f')} | {change('first_call_token', '.1f')} | {r['no_tool_accuracy']:.3f} "
        f"| {r['wall_s']:.0f} |"
    )


def bars(runs: dict[str, list[Run]]) -> list[tuple[str, str, bool]]:
    """(what, measured, met) for each bar."""
    shaped, plain = runs["SPO + ASPO"], runs["SPO"]
    after = lambda group, key: median(r["after"][key] for r in group)
    before = [r["before"]["accuracy"] for r in shaped]
    sampled = [r["after"]["accuracy"] for r in shaped]
    gap = round(after(shaped, "accuracy") - after(plain, "accuracy"), 6)  # 8 problems of 400 are 2 points
    early, late = after(shaped, "first_call_token"), after(plain, "first_call_token")
    worst = min(sampled)
    walls = [r["wall_s"] for r in shaped]
    no_tool = max(r["no_tool_accuracy"] for r in shaped + plain)
    return [
        (
            "sampled accuracy after the cold start in 15-60 %",
            ", ".join(f"{x:.1%}" for x in before),
            all(0.15 <= x <= 0.6 for x in before),
        ),
        ("sampled accuracy after, median >= 93 %", f"{median(sampled):.1%}", median(sampled) >= 0.93),
        ("sampled accuracy after, worst >= 89 %", f"{worst:.1%}", worst >= 0.89),
        (
            "greedy accuracy after, median >= 97 %",
            f"{after(shaped, 'accuracy_greedy'):.1%}",
            after(shaped, "accuracy_greedy") >= 0.97,
        ),
        (
            "first call with ASPO >= 5 tokens and >= 40 % earlier",
            f"token {early:.1f} against {late:.1f}",
            early <= min(0.6 * late, late - 5),
        ),
        ("at equal accuracy (± 2 points)", f"{100 * gap:+.1f} points", abs(gap) <= 0.02),
        ("without the tool < 10 %", f"{no_tool:.1%}", no_tool < 0.1),
        ("cold start + RL + evaluation <= 120 s", ", ".join(f"{x:.0f} s" for x in walls), max(walls) <= 120),
    ]


def plot(folders: dict[str, list[Path]], path: Path) -> None:
    """What the batches of the runs show, update by update: means over seeds, from the least to the greatest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), dpi=130, layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for (variant, group), colour in zip(folders.items(), ("#c2571a", "#2563a6"), strict=True):
            rows = [[r for r in metric_logger.read(f / "metrics.jsonl") if r["phase"] == "rl"] for f in group]
            steps = range(0, max(min(map(len, rows)) - SMOOTH, 0) + 1, SMOOTH)
            seeds = [[fmean(r[key] for r in one[i : i + SMOOTH] if key in r) for one in rows] for i in steps]
            x = [i + SMOOTH / 2 for i in steps]
            axes.plot(x, list(map(fmean, seeds)), color=colour, linewidth=1.8, label=variant)
            axes.fill_between(x, *(list(map(end, seeds)) for end in (min, max)), color=colour, alpha=0.15, linewidth=0)
        axes.set_title(title, size=11, weight="bold")
        axes.set_xlabel("update")
        axes.set_ylim(bottom=0)
        axes.grid(color="#d9dee3", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="one seed and few steps: shows that it runs, no more")
    options.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    options.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    options.add_argument("--out", type=Path, default=ROOT / "runs/benchmark")
    a = options.parse_args()
    seeds, out, extra = a.seeds, a.out.resolve(), []
    if a.quick:
        seeds, out, extra = seeds[:1], out / "quick", ["run.steps=3", "data.train=64", "data.test=32"]
    runs = {variant: [run(variant, seed, out, a.engine, extra) for seed in seeds] for variant in VARIANTS}
    folders = {variant: [out / named(variant, a.engine, seed) for seed in seeds] for variant in VARIANTS}
    plot(folders, out / "aspo.png")
    print("| run | seed | sampled | greedy | code ratio | first call | no tool | wall s |")
    print("|---|---|---|---|---|---|---|---|")
    for variant, group in runs.items():
        for r in group:
            print(row(variant, r))
    print()
    for what, measured, met in bars(runs):
        print(f"{'met   ' if met else 'MISSED'}  {what}: {measured}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
