"""Problems whose outputs do not fit the context: what a fold and a window are worth to policies that see only a prompt.

    python benchmarks/context.py

Each problem has files of 400 letters with one number in each; the answer is the sum. A context of 6,000 tokens (bytes:
the tokenizer of scripts) holds ten of them. The policies are functions of the text that they are shown, and of nothing
else:

- reads: reads one file after the other, and adds up the numbers that it sees at the end;
- notes: the same, and writes the sum so far beside each call;
- folds: reads; when what it sees is more than 60 % of the context, it folds, with the sum so far as the summary.

`reads` is played with all turns in sight, `reads` and `notes` with the window, `folds` with the tool.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from solostream.agent.chat_template import Chat
from solostream.agent.context.window import window
from solostream.agent.engine import Sampling
from solostream.agent.engines.scripted import ScriptedEngine
from solostream.agent.rollout import rollout
from solostream.agent.trajectory import Trajectory
from solostream.envs import Task, ToolEnv

CONTEXT = 6000
PARTS = (4, 8, 16, 32)
TASKS = 6


@dataclass(frozen=True)
class Method:
    policy: Callable[[str], str]
    play: Any
    tools: tuple[str, ...] = ("bash",)


def problem(parts: int, seed: int) -> Task:
    rng = random.Random(f"{parts}/{seed}")
    numbers = [rng.randint(10, 99) for _ in range(parts)]
    files = {}
    for place, number in enumerate(numbers):
        letters = "".join(rng.choices("abcdefgh ", k=400))
        files[f"work/{place}.txt"] = f"{letters[:200]}\nnumber {place}: {number}\n{letters[200:]}\n"
    prompt = f"There are {parts} files, 0.txt to {parts - 1}.txt, with one number in each. What do the numbers sum to?"
    return Task(f"sum-{parts}-{seed}", prompt, str(sum(numbers)), meta={"files": files})


def _call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def _seen(text: str) -> tuple[int, dict[int, int], int, int]:
    """(files in all, numbers that are in sight by file, files behind the last note, its sum)."""
    parts = int(re.search(r"There are (\d+) files", text)[1])
    notes = re.findall(r"sum of the first (\d+): (\d+)", text)
    numbers = {int(place): int(number) for place, number in re.findall(r"number (\d+): (\d+)", text)}
    return parts, numbers, *map(int, notes[-1] if notes else (0, 0))


def reads(text: str) -> str:
    parts, numbers, _, _ = _seen(text)
    following = max(numbers, default=-1) + 1
    if following < parts:
        return _call("bash", command=f"cat {following}.txt")
    return f"\\boxed{{{sum(numbers.values())}}}"


def notes(text: str) -> str:
    parts, numbers, done, total = _seen(text)
    total += sum(number for place, number in numbers.items() if place >= done)
    done = max([done, *(place + 1 for place in numbers)])
    if done < parts:
        return f"The sum of the first {done}: {total}. " + _call("bash", command=f"cat {done}.txt")
    return f"\\boxed{{{total}}}"


def folds(text: str) -> str:
    parts, numbers, done, total = _seen(text)
    total += sum(number for place, number in numbers.items() if place >= done)
    done = max([done, *(place + 1 for place in numbers)])
    if done == parts:
        return f"\\boxed{{{total}}}"
    if len(text) > 0.6 * CONTEXT:
        return _call("fold", summary=f"The sum of the first {done}: {total}.", keep=0)
    return _call("bash", command=f"cat {done}.txt")


METHODS = {
    "reads, all in sight": Method(reads, rollout),
    "reads, window": Method(reads, window),
    "notes, window": Method(notes, window),
    "notes, window of 2": Method(notes, partial(window, turns=2)),
    "folds": Method(folds, rollout, ("bash", "fold")),
}


async def played(method: Method, parts: int, tasks: int) -> list[Trajectory]:
    problems = [problem(parts, seed) for seed in range(tasks)]
    env = ToolEnv(problems, tools=method.tools, syntax="hermes", system_prompt="", max_turns=3 * parts)
    engine = ScriptedEngine(method.policy)
    given = {"sampling": Sampling(600), "max_tokens": CONTEXT, "seed": 0}
    try:
        return [await method.play(env, engine, Chat(engine.tokenizer), task_id=one.id, **given) for one in problems]
    finally:
        await env.aclose()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tasks", type=int, default=TASKS)
    tasks = options.parse_args().tasks
    print("| policy | files | right | ended by the token limit | turns | segments | longest | ledger, tokens |")
    print("|---|---|---|---|---|---|---|---|")
    for name, method in METHODS.items():
        for parts in PARTS:
            found = asyncio.run(played(method, parts, tasks))
            longest = max(end - start for one in found for start, end in one.segments)
            said = fmean(sum(turn.role == "assistant" for turn in one.turns) for one in found)
            segments, size = fmean(len(one.segments) for one in found), fmean(map(len, found))
            right, cut = fmean(one.reward for one in found), fmean(one.ending == "token_limit" for one in found)
            row = f"{right:.0%} | {cut:.0%} | {said:.1f} | {segments:.1f} | {longest:,} | {size:,.0f}"
            print(f"| {name} | {parts} | {row} |")


if __name__ == "__main__":
    main()
