"""Too much output, or the wrong bytes: it is cut on the way, and the host neither grows nor chokes."""

from __future__ import annotations

from solostream.sandbox.conformance.case import Arena, case, expect
from solostream.sandbox.types import Execution

HOST_MB = 150  # the most that this process may grow while one case floods it


def bounded(arena: Arena, seen: Execution) -> None:
    """Assert that no stream of `seen` is longer than the limit and its note of what was cut."""
    limit = arena.limits.output_bytes + 200
    for name in ("stdout", "stderr", "result"):
        size = len((getattr(seen, name) or "").encode(errors="replace"))
        expect(size <= limit, f"{name} has at most {limit} bytes, not {size}")
    expect(arena.host_grew_mb() < HOST_MB, f"the host grew by {arena.host_grew_mb():.0f} MB")


@case("endless print", alone=True)
async def endless_print(arena: Arena) -> None:
    seen = await arena.run("while True:\n    print('spam' * 20)", timeout=1.5)
    expect(seen.status in ("timeout", "killed", "memory"), "the call is ended", seen)
    expect(seen.stdout.startswith("spamspam") and seen.stdout_truncated, "its beginning is kept and flagged", seen)
    bounded(arena, seen)


@case("endless os.write to descriptor 1", alone=True)
async def endless_write(arena: Arena) -> None:
    seen = await arena.run("import os\nblock = b'raw ' * 16384\nwhile True:\n    os.write(1, block)", timeout=1.5)
    expect(seen.status in ("timeout", "killed", "memory", "error"), "the call is ended", seen)
    bounded(arena, seen)


@case("one line of 5 MB", alone=True)
async def long_line(arena: Arena) -> None:
    seen = await arena.run("print('z' * 5_000_000)")
    expect(seen.status == "ok" and seen.stdout_truncated, "status is ok, stdout flagged", seen)
    expect(seen.stdout.startswith("zzzz"), "the beginning of the line is kept", seen)
    bounded(arena, seen)


@case("a repr of 50 MB", "state", alone=True)
async def long_repr(arena: Arena) -> None:
    session = await arena.open()
    seen = await session.run("'r' * 50_000_000")
    expect(seen.status in ("ok", "memory"), "status is ok (or memory)", seen)
    if seen.ok:
        expect(seen.result_truncated and (seen.result or "").startswith("'rrr"), "the result is cut and flagged", seen)
    bounded(arena, seen)


@case("an error message of 50 MB", alone=True)
async def long_error(arena: Arena) -> None:
    seen = await arena.run("raise ValueError('e' * 50_000_000)")
    expect(seen.error is not None and seen.error.name == "ValueError", "the error is reported", seen)
    assert seen.error is not None
    size = len(seen.error.message) + len(seen.error.traceback)
    expect(size <= 4 * arena.limits.output_bytes + 1000, f"message and traceback are cut, not {size} characters")
    bounded(arena, seen)


@case("daemon threads that go on printing")
async def printing_threads(arena: Arena) -> None:
    code = """
import threading, time
def spam():
    for _ in range(2000):
        print('noise')
        time.sleep(0.005)
for _ in range(4):
    threading.Thread(target=spam, daemon=True).start()
print('started')
"""
    session = await arena.open()
    seen = await session.run(code)
    expect(seen.ok and "started" in seen.stdout, "the call returns while the threads run", seen)
    after = await session.run("print('next')")
    expect(after.ok and "next\n" in after.stdout, "the next call works", after)
    bounded(arena, after)


@case("threads that print without a pause, from call to call")
async def racing_threads(arena: Arena) -> None:
    """Each call brings new streams; the old ones must outlive whoever prints to them."""
    session = await arena.open()
    code = """
import threading
going = True
def spam():
    while going:
        print('noise')
threads = [threading.Thread(target=spam, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
"""
    expect((await session.run(code)).ok, "the call returns while the threads run")
    for number in range(10):
        seen = await session.run(f"x = {number}")
        expect(seen.ok and seen.state_kept, "every later call works", seen)
    seen = await session.run("going = False\nfor thread in threads: thread.join()\nx")
    expect(seen.ok and seen.result == "9", "they end when they are told to", seen)


@case("invalid UTF-8 spoils only itself")
async def invalid_utf8(arena: Arena) -> None:
    code = "import os\nos.write(1, b'left \\xff\\xfe\\x80 right\\n')\nos.write(2, b'e\\xc3(\\n')\nprint('after')"
    seen = await arena.run(code)
    expect(seen.ok and "left " in seen.stdout and " right\n" in seen.stdout, "the text around it arrives", seen)
    expect("after\n" in seen.stdout and "e" in seen.stderr, "what follows arrives", seen)
    seen.stdout.encode(), seen.stderr.encode()  # and is text that can be sent on


@case("a character cut in two by the limit stays valid text")
async def cut_character(arena: Arena) -> None:
    for lead in ("", "a", "ab", "abc"):
        seen = await arena.run(f"print({lead!r} + '🙂' * {arena.limits.output_bytes})")
        expect(seen.stdout_truncated, "the flag is set", seen)
        expect("🙂🙂" in seen.stdout, "whole characters are kept", seen)
        seen.stdout.encode()


@case("lone surrogates in output and in code")
async def surrogates(arena: Arena) -> None:
    seen = await arena.run("print('a\\ud800b')\nprint('c')")
    seen.stdout.encode()
    expect(seen.status in ("ok", "error"), "printing one is replaced or an error", seen)
    seen = await arena.run("x = '\ud800'\nprint('ran')")
    expect(seen.status in ("ok", "error"), "code with one runs or is an error", seen)
    seen.stdout.encode()


@case("NUL in output and in code")
async def nul(arena: Arena) -> None:
    seen = await arena.run("print('a\\0b')")
    expect(seen.stdout == "a\0b\n", "stdout is 'a\\0b'", seen)
    seen = await arena.run("x = 1\0\nprint('ran')")
    expect(seen.status == "error" and seen.error is not None, "in code it is an error of the code", seen)


@case("a surrogate or NUL in an error or a result", "state")
async def odd_texts(arena: Arena) -> None:
    session = await arena.open()
    seen = await session.run("raise ValueError('x\\ud800\\0y')")
    expect(seen.error is not None and seen.error.name == "ValueError", "the error is reported", seen)
    assert seen.error is not None
    (seen.error.message + seen.error.traceback).encode()
    seen = await session.run("class Odd:\n    def __repr__(self): return 'r\\ud800s'\nOdd()")
    expect(seen.result is not None and seen.result[0] == "r", "the result is reported", seen)
    (seen.result or "").encode()
