"""What a policy with the tool can solve that one without cannot (ASPO's paper, arXiv 2508.19201, Sec. 4.2), and why.

Support: two policies of the quickstart's size and cold start, one that was only shown answers and answers at once, one
that the quickstart trained. Both play the same held-out problems k times at T = 1: pass@k at every k, and the flow of
support at the last. The kinds are those whose answers are short at level 1, so that a guess can be right.

Tokens: a loop of N steps costs a written calculation at least N tokens, a number for every step, and code the same
tokens whatever N is. N and the tokens of the reference solution, in the policy's tokenizer, are means over problems.

    python benchmarks/support.py TOOL_CHECKPOINT [-k 256] [--problems 48] [--out runs/support]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from solostream.envs.data.arithmetic import KINDS, LEVELS, Operands, generate
from solostream.evaluation.compare import compare, shares
from solostream.training.sft.demonstrations import fence

GUESSED = ("gcd", "primecount", "digitsum", "modmul")
STEPS: dict[str, Callable[[Operands], int]] = {  # of the loop that a solution by hand goes through
    "primesum": lambda o: o["n"] - 2,
    "primecount": lambda o: o["b"] - o["a"],
    "squares": lambda o: o["b"] - o["a"],
    "divisible": lambda o: o["n"],
    "recurrence": lambda o: o["n"],
}
SHOWN = 40  # problems a row of the table of tokens


def solostream(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "solostream", *words], check=True)


def evaluations(tool: Path, out: Path, k: int, problems: int) -> tuple[Path, Path]:
    """The folders of the evaluation without the tool, and with it."""
    data = out / "problems.jsonl"
    tasks = generate(problems, seed=0, split="test", kinds=GUESSED, levels=[1])
    data.write_text("".join(json.dumps({"prompt": t.prompt, "answer": t.answer}) + "\n" for t in tasks))
    phases = "cold_start.phases=[{steps=340, mix={guess=1.0}}]"
    if not (out / "text/checkpoints").exists():
        solostream("sft", "quickstart", "--name", "text", "--set", f'run.root="{out}"', "--set", phases)
    (text,) = (out / "text/checkpoints").glob("step-*")
    for model, name, more in ((text, "text-eval", ["--no-tools"]), (tool, "tool-eval", [])):
        free = ["--temperature", "1", "--top-p", "1", "--top-k", "0", "--concurrency", "128"]
        solostream("eval", str(model), "--data", str(data), "-k", str(k), *free, "--out", str(out / name), *more)
    return out / "text-eval", out / "tool-eval"


def support(text: Path, tool: Path) -> list[str]:
    found = compare(text, tool)
    shown = [2**i - 1 for i in range(found.k.bit_length())]  # places of k = 1, 2, 4, …
    lines = ["| | " + " | ".join(f"pass@{place + 1}" for place in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for name, curve in zip(("text", "tool"), found.curves, strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{curve[place]['mean']:.3f}" for place in shown) + " |")
    above = sum(with_tool["mean"] > without["mean"] for without, with_tool in zip(*found.curves, strict=True))
    flow = ", ".join(f"{name} {share:.1%}" for name, _, share in shares(found.flow))
    return [*lines, "", f"{len(found.rows)} problems; the tool's pass@k is above at {above} of {found.k} k; {flow}"]


def tokens(tool: Path) -> list[str]:
    tokenizer: Any = AutoTokenizer.from_pretrained(tool)
    lines = ["| kind | level | steps of the loop | tokens of the code | steps a token |", "|---|---|---|---|---|"]
    for kind, steps in STEPS.items():
        for level in LEVELS:
            rng = random.Random(f"{kind}/{level}")
            drawn = [KINDS[kind].draw(rng, level) for _ in range(SHOWN)]
            needed = fmean(steps(operands) for operands in drawn)
            code = [fence(KINDS[kind].code.format(**operands)) for operands in drawn]
            written = fmean(len(tokenizer.encode(text, add_special_tokens=False)) for text in code)
            lines.append(f"| {kind} | {level} | {needed:,.0f} | {written:.1f} | {needed / written:.1f} |")
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("tool", type=Path, help="a checkpoint of the quickstart")
    options.add_argument("-k", type=int, default=256)
    options.add_argument("--problems", type=int, default=48)
    options.add_argument("--out", type=Path, default=Path("runs/support"))
    a = options.parse_args()
    out = a.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    print(*tokens(a.tool), "", *support(*evaluations(a.tool.resolve(), out, a.k, a.problems)), sep="\n")


if __name__ == "__main__":
    main()
