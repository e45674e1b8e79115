"""Are two answers the same? `equivalent` says whether, `grade` also by which rule; `agrade` waits without blocking.

Numbers and equal texts are decided at once, exactly; everything else by `compare` in child processes (`pool`), with a
deadline for each comparison: SymPy can hang where no exception reaches. Safe from any thread and any worker process.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

from solostream.envs.rewards.grading.literals import PLACES, close, number, same_number
from solostream.envs.rewards.grading.pool import DEADLINE, submit
from solostream.envs.rewards.grading.rules import Rules, Verdict
from solostream.envs.rewards.grading.text import MAX_LENGTH, clean

__all__ = ["Rules", "Verdict", "agrade", "equivalent", "grade", "quick"]

EXACT = Rules()
_KEPT = 65_536  # verdicts
_verdicts: OrderedDict[tuple[str, str, Rules], Verdict] = OrderedDict()
_lock = threading.Lock()


def equivalent(gold: str | Sequence[str], answer: str, rules: Rules = EXACT) -> bool:
    """Whether `answer` is `gold`, or one of the accepted answers in it. See `grade`."""
    return grade(gold, answer, rules).equal


def grade(gold: str | Sequence[str], answer: str, rules: Rules = EXACT) -> Verdict:
    """The verdict on `answer`; `gold` is one answer or several of which any is right. May take seconds.

    Raises UserError without math-verify, SandboxError when the child processes fail: neither is a wrong answer.
    """
    return _first(_wait(one, answer, rules) for one in _several(gold))


async def agrade(gold: str | Sequence[str], answer: str, rules: Rules = EXACT) -> Verdict:
    """`grade` for an event loop."""
    verdicts = []
    for one in _several(gold):
        found = _known(one, answer, rules)
        verdicts.append(found or _keep(one, answer, rules, await asyncio.wrap_future(_ask(one, answer, rules))))
        if verdicts[-1].equal:
            break
    return _first(verdicts)


def quick(gold: str, answer: str, rules: Rules = EXACT) -> Verdict | None:
    """Microseconds: the verdict on plain numbers and equal texts; None where it takes more."""
    if len(answer) > MAX_LENGTH:
        return Verdict(False, f"an answer of more than {MAX_LENGTH} characters")
    gold, answer = clean(gold), clean(answer)
    if not answer:
        return Verdict(False, "an empty answer")
    if gold == answer:
        return Verdict(True, "the same text")
    one, other = number(gold), number(answer)
    if one is None or other is None:
        return None
    if rule := same_number(one, other):
        return Verdict(True, rule)
    if rules.tolerance and close(one.value, other.value, rules.tolerance):
        return Verdict(True, f"within the tolerance of {rules.tolerance:g}")
    return Verdict(False, "other numbers") if max(one.places, other.places) < PLACES else None


def _several(gold: str | Sequence[str]) -> Iterable[str]:
    return (gold,) if isinstance(gold, str) else gold


def _first(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of the first accepted answer that it is, else the last one's."""
    last = Verdict(False, "there is no accepted answer")
    for last in verdicts:
        if last.equal:
            break
    return last


def _wait(gold: str, answer: str, rules: Rules) -> Verdict:
    return _known(gold, answer, rules) or _keep(gold, answer, rules, _ask(gold, answer, rules).result())


def _ask(gold: str, answer: str, rules: Rules) -> Future[Verdict]:
    return submit(gold, answer, rules)


def _known(gold: str, answer: str, rules: Rules) -> Verdict | None:
    with _lock:
        if (found := _verdicts.get((gold, answer, rules))) is not None:
            _verdicts.move_to_end((gold, answer, rules))
            return found
    found = quick(gold, answer, rules)
    return found and _keep(gold, answer, rules, found)


def _keep(gold: str, answer: str, rules: Rules, verdict: Verdict) -> Verdict:
    """Remember it, unless only the load of the machine decided."""
    if verdict.rule != DEADLINE:
        with _lock:
            _verdicts[gold, answer, rules] = verdict
            if len(_verdicts) > _KEPT:
                _verdicts.popitem(last=False)
    return verdict
