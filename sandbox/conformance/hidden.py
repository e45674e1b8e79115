"""Memory that no page of a process shows, and innocent code that seems to hold more than it does.

A limit that adds up what processes map is passed by what the kernel holds for them: shared memory that is mapped no
longer, tables that one call makes. Each case asks for twice the limit at most.
"""

from __future__ import annotations

from solostream.sandbox.conformance.case import Arena, case, expect

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
    await _not_held(arena, code, 50)


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
