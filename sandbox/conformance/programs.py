"""Small innocent programs and what a notebook's user sees of each: the same with every backend.

They stand in programs.txt: a name, the calls of one session, what is seen of the last (the rest of it must be empty),
and, where it is more than `state`, the claim that a backend needs for it; the calls before the last must be `ok`. Each
is a case of its own. What backends may answer differently is in none of them; docs/sandbox.md lists it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from solostream.sandbox.conformance.case import Arena, case, expect
from solostream.sandbox.types import Claim, Execution, Session


class Program(NamedTuple):
    """`stdout` and `result` of the last call, and the name of its error."""

    name: str
    calls: tuple[str, ...]
    stdout: str = ""
    result: str | None = None
    error: str | None = None
    needs: frozenset[Claim] = frozenset({"state"})


def _read() -> Iterator[Program]:
    text = files(__package__ or "").joinpath("programs.txt").read_text("utf-8")
    for block in text.split("\n## ")[1:]:
        name, _, rest = block.partition("\n")
        code, _, seen = rest.partition("\n==")
        wanted = dict(line.split(": ", 1) for line in seen.splitlines() if ": " in line and not line.startswith("# "))
        stdout = ast.literal_eval(wanted.get("stdout", "''"))
        needs = frozenset[Claim]({"state", *wanted.get("needs", "state").split(", ")})  # type: ignore[arg-type]
        yield Program(name, tuple(code.split("\n--\n")), stdout, wanted.get("result"), wanted.get("error"), needs)


PROGRAMS = tuple(_read())


async def judge(session: Session, wanted: Program) -> None:
    """Run it. Raises AssertionError."""
    seen = Execution()
    for number, code in enumerate(wanted.calls, 1):
        seen = await session.run(code)
        if number < len(wanted.calls):
            expect(seen.ok, f"call {number} is ok", seen)
    status = "ok" if wanted.error is None else "error"
    expect(seen.status == status and seen.state_kept, f"status is {status}, the state is kept", seen)
    expect(seen.stdout == wanted.stdout, f"stdout is {wanted.stdout!r}", seen)
    expect(seen.result == wanted.result, f"the result is {wanted.result!r}", seen)
    expect((seen.error and seen.error.name) == wanted.error, f"the error is {wanted.error}", seen)


def _register(wanted: Program) -> None:
    async def check(arena: Arena) -> None:
        await judge(await arena.open(), wanted)

    check.__module__ = __name__
    case(f"program: {wanted.name}", *wanted.needs)(check)


for _program in PROGRAMS:
    _register(_program)
