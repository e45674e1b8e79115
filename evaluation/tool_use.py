"""How one trajectory used its tool: when, how often, how well, and whether the code did anything for the answer."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from solostream.agent.trajectory import Trajectory
from solostream.envs.types import ToolCall
from solostream.sandbox.types import Execution

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORD = re.compile(r"[A-Za-z]\w*")
# Calls that show or convert a value that is already there.
_SHOWING = {"print", "display", "str", "repr", "int", "float", "bool"}
_VERDICTS = {"True", "False"}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Counts of one trajectory. Lengths and positions are in tokens, `code_lines` has one entry an executed call.

    action_tokens: what the policy wrote, also where its endpoint told no probabilities (and the mask is empty).
    late_calls: calls executed after an earlier output had already shown the final answer.
    trivial: there was code, and no call both computed something and had its outcome used (see `trivial_code`).
    """

    response_length: int
    action_tokens: int
    first_call: int | None
    calls: int
    passed: int
    code_lines: tuple[int, ...]
    errors: tuple[str, ...]
    late_calls: int
    trivial: bool
    void: bool
    sandbox_s: float


class _Call(NamedTuple):
    call: ToolCall
    execution: Execution | None
    after: str  # what the policy wrote after this call, later code included


class _Anatomy(NamedTuple):
    computes: bool
    bound: frozenset[str]
    read: frozenset[str]


def observe(trajectory: Trajectory) -> ToolUse:
    """Everything that `ToolUse` counts, from the record alone."""
    calls = list(_calls(trajectory))
    done = [(c.call, c.execution) for c in calls if c.execution is not None]
    return ToolUse(
        response_length=trajectory.response_length,
        action_tokens=sum(turn.end - turn.start for turn in trajectory.turns if turn.role == "assistant"),
        first_call=trajectory.first_call_token,
        calls=len(done),
        passed=sum(execution.ok for _, execution in done),
        code_lines=tuple(sum(bool(line.strip()) for line in call.code.splitlines()) for call, _ in done),
        errors=tuple(name for c in calls if (name := error_name(c.call, c.execution)) is not None),
        late_calls=_late_calls(trajectory.answer, [execution for _, execution in done]),
        trivial=trivial_code(trajectory),
        void=trajectory.void,
        sandbox_s=sum(execution.duration_s for _, execution in done),
    )


def error_name(call: ToolCall, execution: Execution | None) -> str | None:
    """The class in the error taxonomy, None for a call that went well.

    An exception's name, `timeout | memory | killed`, `unclosed | malformed`, or `not run` (over a budget).
    """
    if execution is None:
        return call.status if call.status != "ok" else "not run"
    if execution.status == "error":
        return execution.error.name if execution.error else "error"
    return None if execution.ok else execution.status


def computes(code: str) -> bool:
    """Does the code do more than name, convert or print constants? Code that does not parse computes nothing."""
    return _anatomy(code).computes


def trivial_code(trajectory: Trajectory) -> bool:
    """True when there were executed calls and none did anything for the answer: a guard against reward hacking.

    A call is useful when it `computes` and its outcome is used: a number that it printed (a word, when it printed no
    number) recurs in what the policy wrote later or in the answer, it returned a verdict (True or False), or a useful
    later call reads a name that it bound. A heuristic: it can be fooled, and it names suspects rather than culprits.
    """
    calls = [c for c in _calls(trajectory) if c.execution is not None]
    needed: set[str] = set()
    useful = False
    for call, execution, after in reversed(calls):
        assert execution is not None
        computing, bound, read = _anatomy(call.code)
        shown = f"{execution.stdout}\n{execution.result or ''}"
        if computing and (bound & needed or _used(shown, f"{after}\n{trajectory.answer or ''}")):
            useful = True
            needed |= read
        elif bound & needed:
            needed |= read
    return bool(calls) and not useful


def _calls(trajectory: Trajectory) -> Iterator[_Call]:
    spoken = [turn for turn in trajectory.turns if turn.role == "assistant"]
    for i, turn in enumerate(spoken):
        later = "\n".join(t.text for t in spoken[i + 1 :])
        for call, execution in zip(turn.calls, turn.executions, strict=True):
            yield _Call(call, execution, f"{turn.text[call.span[1] :]}\n{later}")


def _late_calls(answer: str | None, executions: list[Execution]) -> int:
    if not answer or not answer.strip():
        return 0
    whole = re.compile(rf"(?<![\w.]){re.escape(answer.strip())}(?![\w]|\.\d)")
    for i, execution in enumerate(executions):
        if whole.search(execution.stdout) or whole.search(execution.result or ""):
            return len(executions) - i - 1
    return 0


def _works(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return not (isinstance(node.func, ast.Name) and node.func.id in _SHOWING)
    if isinstance(node, ast.BinOp):
        text = any(
            isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        )
        return not text and not _identity(node)
    return isinstance(node, (ast.Compare, ast.For, ast.While, ast.comprehension, ast.AugAssign))


def _identity(node: ast.BinOp) -> bool:
    """`x + 0`, `x - 0`, `x * 1`, `x / 1`, `x ** 1`: arithmetic that changes nothing."""
    neutral = 0 if isinstance(node.op, (ast.Add, ast.Sub)) else 1
    identity_ops = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Pow)
    return isinstance(node.op, identity_ops) and isinstance(node.right, ast.Constant) and node.right.value == neutral


@lru_cache(maxsize=4096)  # policies repeat themselves
def _anatomy(code: str) -> _Anatomy:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about what a policy wrote: nobody's business here
            nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Anatomy(False, frozenset(), frozenset())
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return _Anatomy(any(map(_works, nodes)), frozenset(bound), frozenset(read))


def _used(shown: str, later: str) -> bool:
    words = set(_WORD.findall(shown))
    if words & _VERDICTS:
        return True
    numbers = set(_NUMBER.findall(shown))
    return bool(numbers & set(_NUMBER.findall(later))) if numbers else bool(words & set(_WORD.findall(later)))
