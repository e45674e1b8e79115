"""Too much output, or the wrong bytes: it is cut on the way, and the host neither grows nor chokes.

And what swells unseen: memory that no page of a process shows. A limit that adds up what processes map is passed by
what the kernel holds for them: shared memory that is mapped no longer, tables that one call makes. Each case asks for
twice the limit at most.
"""

from __future__ import annotations

from solostream.sandbox.conformance.case import Arena, case, expect
from solostream.sandbox.types import Execution

HOST_MB = 150  # the most that this process may grow while one case floods it

_MMAP = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def shared(size, fd=-1):
    block = libc.mmap(None, size, 3, 0x21 if fd < 0 else 1, fd, 0)
    return block if block not in (None, 2**64 - 1) else None
"""


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


async def _not_held(arena: Arena, code: str, timeout: float = 20) -> None:
    """`code` says "holds" when it has more than the limit: then it is too late."""
    seen = await arena.run(_MMAP + code, timeout=timeout)
    expect("holds" not in seen.stdout, f"not more than {arena.limits.memory_mb} MB are given", seen)


@case("shared memory whose pages nobody maps", "memory", alone=True)
async def unmapped(arena: Arena) -> None:
    code = f"""
try:
    zero = os.open('/dev/zero', os.O_RDWR)
except OSError:
    zero = -1
size, taken = 16 << 20, 0
while taken < {2 * arena.limits.memory_mb}:
    block = shared(size) or shared(size, zero)
    if block is None:
        raise MemoryError('refused')
    libc.memset(block, 1, size)
    libc.madvise(block, size, 4)  # MADV_DONTNEED: the pages stay, in nobody's account
    taken += 16
time.sleep(3)
print('holds', taken)
"""
    await _not_held(arena, code)


@case("shared memory of which only a page stays mapped", "memory", alone=True)
async def one_page(arena: Arena) -> None:
    code = f"""
size = next((size for size in (1 << 20, 65_536, 16_384, 8_192) if shared(size)), None)
if size is None:
    raise MemoryError('refused')
for _ in range(({arena.limits.memory_mb * 5 // 4} << 20) // size):
    block = shared(size)
    if block is None:
        raise MemoryError('refused')
    libc.memset(block, 1, size)
    libc.munmap(block + 4096, size - 4096)
time.sleep(3)
print('holds', size)
"""
    await _not_held(arena, code, 40)


@case("a table of the kernel's that one call makes: PR_FUTEX_HASH", "memory", alone=True)
async def table(arena: Arena) -> None:
    slots = 1 << (2 * arena.limits.memory_mb * (1 << 20) // 64 - 1).bit_length()  # 64 bytes each
    await _not_held(arena, f"print('none' if libc.prctl(78, 1, ctypes.c_ulong({slots}), 0, 0) else 'holds')")


@case("pages of other memory that pipes hold: vmsplice", "memory", alone=True)
async def pipes(arena: Arena) -> None:
    """A pipe has room for 16 pages; each keeps the huge page of which it is a part."""
    code = f"""
number, huge, held = {{'x86_64': 278, 'aarch64': 75}}[os.uname().machine], 2 << 20, []
for _ in range({2 * arena.limits.memory_mb} // 2 // 16):
    held.append(os.pipe())
    os.set_blocking(held[-1][1], False)
    for _ in range(16):
        block = libc.mmap(None, 2 * huge, 3, 0x22, -1, 0)
        start = (block + huge - 1) & -huge
        libc.madvise(start, huge, 14)  # MADV_HUGEPAGE
        libc.memset(start, 1, huge)
        piece = (ctypes.c_size_t * 2)(start, 4096)
        if libc.syscall(number, held[-1][1], ctypes.byref(piece), ctypes.c_long(1), 0) < 0:
            raise MemoryError('refused')
        libc.munmap(block, 2 * huge)
time.sleep(1)
print('holds')
"""
    await _not_held(arena, code)


@case("a child between vfork and exec is not counted twice", "memory", alone=True)
async def vforks(arena: Arena) -> None:
    code = f"""
import subprocess
block = b'x' * ({arena.limits.memory_mb} * 6 // 10 << 20)
for _ in range(150):
    subprocess.run(['true'])
print('done')
"""
    seen = await arena.run(code, timeout=60)
    expect(seen.stdout == "done\n", "a session within its limit starts programs", seen)
