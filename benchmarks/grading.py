"""What grading costs: `python benchmarks/grading.py`.

Pairs a second of the grader and of math-verify alone (its `parse` and `verify`, in process, without time-outs), on the
same pairs in one run; how many of them each gets wrong; and the rewards of a step whose 128 answers all hang, with a
cheap comparison beside them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import time
from collections import Counter
from pathlib import Path

from solostream.envs.rewards.grading import agrade, pool

CASES = Path(__file__).parents[1] / "tests" / "envs" / "rewards" / "cases"
HANGING = 128
TOWERS = ("9^{9^{9^{%d}}}", "9**9**9**%d", "factorial(10**%d)", r"\binom{10^{9}}{%d}", "(%d^9)!")


def main() -> None:
    cases = [
        json.loads(line)
        for path in sorted(CASES.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    cases = [case for case in cases if case["kind"] != "hanging"]
    print(f"{len(cases)} pairs, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    asyncio.run(_ours(cases))
    _math_verify(cases)
    print(f"\nA step of {HANGING} answers that hang, and a comparison asked 0.2 s after them:")
    slow = [rf"\prod_{{k=1}}^{{{9000 + n}}} (k^k + 1)" for n in range(HANGING)]
    asyncio.run(_step("products of millions of digits", slow))
    asyncio.run(_step("towers, factorials", [TOWERS[n % len(TOWERS)] % (n + 9) for n in range(HANGING)]))


async def _ours(cases: list[dict]) -> None:
    await agrade(r"\sqrt{3}+1", "1 + sqrt(3)")  # the server starts
    began = time.perf_counter()
    found = [await agrade(case["gold"], case["answer"]) for case in cases]
    alone = time.perf_counter() - began
    wrong = Counter(
        "accepted" if verdict.equal else "refused"
        for verdict, case in zip(found, cases, strict=True)
        if verdict.equal != case["equal"]
    )
    print(f"solostream, one after the other   {len(cases) / alone:7.0f} pairs/s   wrong: {_told(wrong)}")
    numbers = [case for case in cases if case["gold"].isdigit() and case["answer"].replace(".", "").isdigit()]
    began = time.perf_counter()
    for round_ in range(100):
        for case in numbers:  # numbers that were never compared before
            await agrade(f"{case['gold']}{round_}", f"{case['answer']}{round_ + 1}")
    print(f"  of them plain numbers           {100 * len(numbers) / (time.perf_counter() - began):7.0f} pairs/s")
    began = time.perf_counter()
    again = [(rf"{n}+\sqrt{{{n * n + 1}}}", f"sqrt({n * n + 1}) + {n}") for n in range(1000, 1400)]
    verdicts = await asyncio.gather(*(agrade(*pair) for pair in again))
    assert all(verdict.equal for verdict in verdicts)
    print(f"  400 of LaTeX and SymPy at once  {len(again) / (time.perf_counter() - began):7.0f} pairs/s")


def _math_verify(cases: list[dict]) -> None:
    from math_verify import parse, verify

    logging.disable(logging.WARNING)
    began = time.perf_counter()
    wrong: Counter[str] = Counter()
    for case in cases:
        gold, answer = (
            text if "$" in text or "\\boxed" in text else f"${text}$" for text in (case["gold"], case["answer"])
        )
        same = verify(parse(gold, parsing_timeout=None), parse(answer, parsing_timeout=None), timeout_seconds=None)
        if same != case["equal"]:
            wrong["accepted" if same else "refused"] += 1
    taken = time.perf_counter() - began
    print(f"math-verify alone                 {len(cases) / taken:7.0f} pairs/s   wrong: {_told(wrong)}")


def _told(wrong: Counter[str]) -> str:
    return f"{wrong['accepted']} accepted, {wrong['refused']} refused"


async def _step(what: str, answers: list[str]) -> None:
    began = time.perf_counter()
    tasks = [asyncio.create_task(agrade(r"\sqrt{2}", answer)) for answer in answers]
    await asyncio.sleep(0.2)
    asked = time.perf_counter()
    assert (await agrade(rf"{len(what)}q", f"q + {len(what) - 1}q")).equal
    beside = time.perf_counter() - asked
    rules = Counter(verdict.rule for verdict in await asyncio.gather(*tasks))
    took = time.perf_counter() - began
    before = _children()
    pool._pool.stop()
    cores = f"{_children() - before:.1f} s of processor time, the server's start included"
    print(f"  {what}: {took:.1f} s ({cores}); beside them {beside * 1000:.0f} ms")
    print("\n".join(f"    {count:3} {rule}" for rule, count in rules.most_common()))


def _children() -> float:
    """Seconds of processor time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
