"""Is a real small model ever rewarded? SmolLM2-135M-Instruct on 100 arithmetic problems, under several prompts.

`python benchmarks/first_hour_parts/small_model.py [--model FOLDER] [--variants NAME …] [--out FOLDER]` prints a row
of a table for each: episodes with a proper call, with an answer that can be read, rewarded; the last two also under
`answer = "auto"`, read from the same transcripts (its system message is the one of `boxed`). Interrupted, the same
command with the same --out goes on. Needs `reasoning-gym` and `gguf`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
KINDS = ("chain_sum", "basic_arithmetic", "products", "gcd")
SEED = 7
VARIANTS: dict[str, dict[str, Any]] = {
    "instructions only": {},
    "few_shot = 1": {"few_shot": 1},
    "few_shot = 2": {"few_shot": 2},  # as `solostream init` writes it
    "few_shot = 4": {"few_shot": 4},
}


def problems(path: Path, count: int) -> Path:
    """A file of `count` problems, as many of each kind."""
    import reasoning_gym

    each = count // len(KINDS)
    sets = {kind: reasoning_gym.create_dataset(kind, size=each, seed=SEED) for kind in KINDS}
    rows = [
        {"id": f"{kind}/{number}", "question": entry["question"], "answer": str(entry["answer"])}
        for kind, entries in sets.items()
        for number, entry in enumerate(entries)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def shares(samples: Path, data: Path) -> dict[str, float]:
    """Of the episodes in an evaluation's samples.jsonl."""
    from solostream.agent.trajectory_file import read_lines
    from solostream.envs.rewards.grading import equivalent

    right = {row["id"]: row["answer"] for row in map(json.loads, data.read_text(encoding="utf-8").splitlines())}
    counts = dict.fromkeys(("call", "answer", "rewarded", "auto: answer", "auto: rewarded"), 0)
    played = [line.trajectory for line in read_lines(samples) if line.trajectory]
    for one in played:
        found = _auto([turn.text for turn in one.turns if turn.role == "assistant"])
        counts["call"] += any(call.status == "ok" for turn in one.turns for call in turn.calls)
        counts["answer"] += one.answer is not None
        counts["rewarded"] += one.reward > 0
        counts["auto: answer"] += found is not None
        counts["auto: rewarded"] += found is not None and equivalent(found, right[one.task_id])
    return {"episodes": len(played), **{name: count / len(played) for name, count in counts.items()}}


def _auto(turns: list[str]) -> str | None:
    """The first answer that ends an episode under `auto`."""
    from solostream.envs.text.answers import find_answer
    from solostream.envs.text.parse import parse

    found = (find_answer(text, parse(text, ("fence",)), "auto") for text in turns)
    return next((one.answer for one in found if one), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder that scripts/smollm2.py made; default: made on the spot")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    from solostream.evaluation.evaluate import evaluate
    from solostream.evaluation.options import EvalOptions

    with tempfile.TemporaryDirectory() as place:
        folder = options.out or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        if options.model is None:
            import smollm2

            options.model = smollm2.build(folder / "model")
        data = problems(folder / "problems.jsonl", options.count)
        for name in options.variants:
            out = folder / name.replace(" ", "")
            common: dict[str, Any] = {"data": str(data), "turn_tokens": 64, "max_tokens": 640, "concurrency": 100}
            asyncio.run(
                evaluate(EvalOptions(str(options.model), out=out, env_options=json.dumps(VARIANTS[name]), **common))
            )
            found = shares(out / "samples.jsonl", data)
            cells = (f"{value:.0%}" for key, value in found.items() if key != "episodes")
            print(f"| {name} | {found['episodes']} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
