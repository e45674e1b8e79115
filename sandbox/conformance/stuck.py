"""Code that will not end: the call ends anyway, near its time-out, and says so."""

from __future__ import annotations

from solostream.sandbox.conformance.case import Arena, case, expect
from solostream.sandbox.types import Execution

GRACE_S = 20  # of wall time beyond the time-out, for a machine that other cases are loading


async def ends(arena: Arena, code: str, *statuses: str) -> Execution:
    """One call of `code` under a time-out of 1 s must end as one of `statuses`, and the session must go on."""
    session = await arena.open()
    seen = await session.run(code, timeout=1)
    expect(seen.status in statuses, f"status is one of {statuses}", seen)
    expect(seen.duration_s < 1 + GRACE_S, f"the call ends near its time-out, not after {seen.duration_s:.1f} s")
    after = await session.run("print('on')")
    expect(after.stdout == "on\n", "the session goes on", after)
    return seen


@case("10**10**9: one endless C call")
async def power(arena: Arena) -> None:
    await ends(arena, "x = 10**10**9", "timeout", "memory")


@case("catastrophic regular expression")
async def regex(arena: Arena) -> None:
    await ends(arena, "import re\nre.match('(a+)+$', 'a' * 60 + 'b')", "timeout")


@case("sleep past the limit")
async def sleep(arena: Arena) -> None:
    await ends(arena, "import time\ntime.sleep(10**6)", "timeout")


@case("code that ignores every signal")
async def ignores_signals(arena: Arena) -> None:
    code = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
try:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)))
except ValueError:
    pass
while True:
    pass
"""
    seen = await ends(arena, code, "timeout")
    expect("state" not in arena.sandbox.claims or not seen.state_kept, "only a kill can have ended it", seen)


@case("except BaseException in a loop")
async def swallows(arena: Arena) -> None:
    code = "import time\nwhile True:\n    try:\n        time.sleep(0.01)\n    except BaseException:\n        pass"
    await ends(arena, code, "timeout")


@case("replaced signal handlers")
async def handlers(arena: Arena) -> None:
    code = """
import signal, time
def again(*_):
    while True:
        time.sleep(0.01)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
    signal.signal(number, again)
again()
"""
    await ends(arena, code, "timeout")


@case("a handler left behind does not disturb the next call", "state")
async def handler_left(arena: Arena) -> None:
    session = await arena.open()
    await session.run("import signal\nsignal.signal(signal.SIGINT, lambda *_: print('caught'))")
    seen = await session.run("while True:\n    pass", timeout=1)
    expect(seen.status == "timeout", "the next call still times out", seen)


@case("a repr that never returns", "state")
async def hanging_repr(arena: Arena) -> None:
    code = "class Hang:\n    def __repr__(self):\n        while True: pass\nHang()"
    await ends(arena, code, "timeout")


@case("a repr that raises, lies or ends the process", "state")
async def bad_repr(arena: Arena) -> None:
    session = await arena.open()
    for body in ("raise ValueError('no')", "return 5", "raise SystemExit", "raise KeyboardInterrupt"):
        seen = await session.run(f"class Bad:\n    def __repr__(self):\n        {body}\nBad()")
        expect(seen.status != "timeout", f"__repr__ with {body!r} is answered at once", seen)
        expect((await session.run("6 * 7")).result == "42", f"after {body!r} the session works")


@case("input() does not wait for a terminal")
async def waits_for_input(arena: Arena) -> None:
    seen = await arena.run("input('name? ')", timeout=10)
    expect(seen.status == "error" and seen.error is not None, "status is error, at once", seen)
    seen = await arena.run("import sys\nprint(repr(sys.stdin.read()))", timeout=10)
    expect(seen.status in ("ok", "error"), "reading standard input ends at once", seen)


@case("an atexit function that hangs does not hold up close")
async def atexit(arena: Arena) -> None:
    session = await arena.open()
    code = "import atexit, time\natexit.register(time.sleep, 1000)\nprint('registered')"
    seen = await session.run(code)
    expect(seen.stdout == "registered\n", "registering works", seen)
    await session.close()  # bounded by the case's own time-out; that no process is left is looked at after every case


@case("sys.exit ends the code, not the session", "state")
async def sys_exit(arena: Arena) -> None:
    session = await arena.open()
    await session.run("x = 1")
    for code in ("import sys\nsys.exit(3)", "raise SystemExit('bye')", "exit()"):
        seen = await session.run(code)
        expect(seen.status in ("ok", "error") and seen.state_kept, f"{code!r} keeps the session", seen)
        expect((await session.run("x")).result == "1", f"after {code!r} x is still there")
