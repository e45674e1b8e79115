"""What counts as early, late, broken, trivial or void, on trajectories written by hand."""

from __future__ import annotations

import random

import pytest
from synthetic_runs import Writer, run_code, tokenizer

from solostream.agent.trajectory import Trajectory
from solostream.envs.types import Task, ToolCall
from solostream.evaluation.tool_use import computes, error_name, observe, trivial_code
from solostream.sandbox.types import CodeError

TASK = Task("t", "What is 6 * 7?", "42")
TOKENS = tokenizer()


def spoken(*parts: tuple, answer: str | None = "42", reward: float = 1.0) -> Trajectory:
    """parts: (text,) or (text, code, what it printed or an Execution)."""
    writer = Writer(TOKENS, random.Random(0))
    writer.hear("user", TASK.prompt)
    for text, *call in parts:
        if call:
            outcome = run_code(call[0], out=call[1]) if isinstance(call[1], str) else call[1]
            writer.say(text, call[0], outcome)
        else:
            writer.say(text)
    return writer.close(TASK, reward, answer=answer)


def test_counts_by_hand() -> None:
    error = run_code("x", error=CodeError("NameError", "m", "t"), status="error", s=0.25)
    one = spoken(("Hmm. ", "x", error), ("", "a = 6\n\nprint(a * 7)", "42"), ("\\boxed{42}",))
    seen = observe(one)
    assert seen.first_call == len(TOKENS.encode("Hmm. ").ids)
    assert (seen.calls, seen.passed) == (2, 1)
    assert seen.code_lines == (1, 2)
    assert seen.errors == ("NameError",)
    assert seen.sandbox_s == pytest.approx(0.26)
    assert seen.late_calls == 0
    assert not seen.trivial
    assert seen.response_length == len(one) - len(TOKENS.encode(TASK.prompt).ids)


def test_taxonomy() -> None:
    call = ToolCall("python", {"code": "1"}, (0, 1))
    assert error_name(call, run_code("1")) is None
    assert error_name(call, run_code("1", status="timeout")) == "timeout"
    assert error_name(call, run_code("1", status="memory")) == "memory"
    assert error_name(call, None) == "not run"
    assert error_name(ToolCall("python", {}, (0, 1), "unclosed"), None) == "unclosed"


@pytest.mark.parametrize(
    ("outputs", "late"),
    [
        (["42", "42", "0"], 2),
        (["142", "42", "1"], 1),
        (["42.5", "4.42", "x42"], 0),
        (["(42)", "1"], 1),
        (["-", "42"], 0),
    ],
)
def test_late_calls_follow_the_first_output_that_shows_the_answer(outputs: list[str], late: int) -> None:
    assert observe(spoken(*[("", "f(1)", out) for out in outputs])).late_calls == late


def test_late_calls_need_an_answer() -> None:
    assert observe(spoken(("", "f(1)", "42"), ("", "f(1)", "42"), answer=None)).late_calls == 0


@pytest.mark.parametrize(
    "code",
    ["6 * 7", "print(a % m)", "x += 1", "for i in y: pass", "sum([1, 2])", "[i for i in y]", "math.gcd(4, 6)", "3 < 4"],
)
def test_code_that_computes(code: str) -> None:
    assert computes(code)


@pytest.mark.parametrize(
    "code",
    ["42", "print(42)", "x = 42\nprint(x)", "import math", "# 6 * 7", "print('it is ' + str(42))", "42 + 0", "42 * 1",
     "print(f'{42}')", "def broken(", "x = -42", ""],
)  # fmt: skip
def test_code_that_computes_nothing(code: str) -> None:
    assert not computes(code)


def test_trivial_code_is_suspected() -> None:
    assert trivial_code(spoken(("It is 42. ", "print(42)", "42"), ("\\boxed{42}",)))
    assert trivial_code(spoken(("", "print(1 * 5)", "5"), ("\\boxed{42}",)))  # computed, never used
    assert not trivial_code(spoken(("", "print(6 * 7)", "42"), ("\\boxed{42}",)))
    assert not trivial_code(spoken(("\\boxed{42}",)))  # no code at all is not trivial code


def test_state_carried_to_a_later_call_is_use() -> None:
    assert not trivial_code(spoken(("", "a = 6 * 6", ""), ("", "print(a + 6)", "42"), ("\\boxed{42}",)))
    assert trivial_code(spoken(("", "a = 6 * 6", ""), ("", "print(42)", "42"), ("\\boxed{42}",)))


def test_a_verdict_is_use() -> None:
    assert not trivial_code(spoken(("I think 42. ", "6 * 7 == 42", "True"), ("\\boxed{42}",)))
