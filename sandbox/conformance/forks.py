"""Live copies of a session: `session.fork()`, for backends that claim "fork"."""

from __future__ import annotations

import asyncio
from typing import cast

from solostream.errors import SandboxError
from solostream.sandbox.conformance.case import Arena, case, expect
from solostream.sandbox.types import Forkable, Session


async def copy(arena: Arena, session: Session) -> Session:
    """Closed after the case."""
    made = await cast(Forkable, session).fork()
    arena.sessions.append(made)
    return made


@case("a copy has every variable, and both go on by themselves", "fork", "state")
async def variables(arena: Arena) -> None:
    session = await arena.open()
    code = """
import random
class Point:
    x = 3
p, kept = Point(), [1]
def f(n):
    return n + len(kept)
random.seed(5)
"""
    await session.run(code)
    other = await copy(arena, session)
    await other.run("kept.append(2); p.x = 7")
    theirs, ours = await other.run("f(10), kept, p.x"), await session.run("f(10), kept, p.x")
    expect(theirs.result == "(12, [1, 2], 7)", "the copy has the variables and changes its own", theirs)
    expect(ours.result == "(11, [1], 3)", "the original's stay", ours)
    drawn = [(await each.run("random.random()")).result for each in (session, other)]
    expect(drawn[0] == drawn[1] is not None, f"generators are copied like all else, not {drawn}")


@case("the output of a copy is its own", "fork", "state")
async def output(arena: Arena) -> None:
    session = await arena.open()
    await session.run("import subprocess, sys\nprint('before')")
    other = await copy(arena, session)
    chatter = "print({0!r})\nprint({0!r}, file=sys.stderr)\nsubprocess.run(['echo', {0!r}])\nNone"
    seen = await asyncio.gather(session.run(chatter.format("one")), other.run(chatter.format("two")))
    for word, its in zip(("one", "two"), seen, strict=True):
        expect(its.stdout.split() == [word, word], f"stdout holds {word!r} twice", its)
        expect(its.stderr == word + "\n", f"stderr holds {word!r}", its)


@case("copies of copies, called at the same time", "fork", "state")
async def tree(arena: Arena) -> None:
    level = [await arena.open()]
    await level[0].run("path = []")
    for depth in range(2):
        level += await asyncio.gather(*(copy(arena, session) for session in level))
        for number, session in enumerate(level):
            await session.run(f"path.append(({depth}, {number}))")
    paths = [seen.result for seen in await asyncio.gather(*(session.run("path") for session in level))]
    wanted = [repr([(0, number % 2), (1, number)]) for number in range(4)]
    expect(paths == wanted, f"each keeps its own path, not {paths}")


@case("a copy outlives its original, and the original its copy", "fork", "state")
async def lifetimes(arena: Arena) -> None:
    session = await arena.open()
    await session.run("x = 40")
    first, second = await copy(arena, session), await copy(arena, session)
    await first.close()
    seen = await session.run("x + 2")
    expect(seen.result == "42", "the original goes on when a copy is closed", seen)
    await session.close()
    seen = await second.run("x + 3")
    expect(seen.result == "43", "a copy goes on when its original is closed", seen)
    seen = await (await copy(arena, second)).run("x + 4")
    expect(seen.result == "44", "and can be copied", seen)
    try:
        await copy(arena, session)
    except SandboxError:
        return
    raise AssertionError("a closed session cannot be copied")


@case("what ends a copy leaves the original alone, and the other way round", "fork", "state")
async def deaths(arena: Arena) -> None:
    for code, status in (
        ("import os\nos._exit(3)", "killed"),
        ("import ctypes\nctypes.string_at(0)", "killed"),
        ("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {2})\nwhile True: pass", "timeout"),
    ):
        session = await arena.open()
        await session.run("x = 6")
        first, second = await copy(arena, session), await copy(arena, session)
        for dying, living in ((first, session), (session, second)):
            seen = await dying.run(code, timeout=2)
            expect(seen.status == status and not seen.state_kept, f"status is {status}", seen)
            after = await dying.run("print('x' in globals())")
            expect(after.stdout == "False\n", "whoever died goes on afresh", after)
            seen = await living.run("x * 7")
            expect(seen.result == "42", "the other has noticed nothing", seen)


@case("what copies started is gone when all are closed", "fork", "orphans", "state")
async def children(arena: Arena) -> None:
    session = await arena.open()
    start = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(120)\n    os._exit(0)\nprint('started')"
    )
    for each in (session, await copy(arena, session)):
        seen = await each.run(start)
        expect(seen.stdout == "started\n", "a daemon starts", seen)
    # that none is left is looked at after every case


@case("copies stop at the session's limit on processes", "fork", "processes", "state", alone=True)
async def many(arena: Arena) -> None:
    session = await arena.open()
    await session.run("x = 6")
    made = 0
    try:
        while made < 2 * arena.limits.processes:
            await copy(arena, session)
            made += 1
    except SandboxError:
        pass
    expect(1 < made <= arena.limits.processes, f"at most {arena.limits.processes} copies, not {made}")
    seen = await session.run("x * 7")
    expect(seen.result == "42", "the original goes on", seen)


@case("a session that forges its copy", "fork", "state")
async def forged(arena: Arena) -> None:
    code = """
import os, threading
def answer():
    while True:
        for fd in range(4, 12):
            try:
                os.write(fd, b'R')
            except OSError:
                pass
for _ in range(2):
    threading.Thread(target=answer, daemon=True).start()
os.fork = None
os.dup2 = lambda *_, **__: None
"""
    session = await arena.open()
    await session.run(code)
    try:
        other = await asyncio.wait_for(copy(arena, session), 40)
        await other.run("1", timeout=2)
    except SandboxError:
        pass  # it cannot be copied; that all of it can be closed is looked at after every case
