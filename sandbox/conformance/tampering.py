"""Code that turns against the interpreter it runs in: the reply is honest or the call is reported as ended."""

from __future__ import annotations

from solostream.sandbox.conformance.case import Arena, case, expect
from solostream.sandbox.types import Execution


async def tampers(arena: Arena, code: str, *, survives: bool = False) -> Execution:
    """`code` must be answered, and the calls after it as well: with the truth, or afresh.

    With `survives` the session must keep its state, because a careful backend can.
    """
    session = await arena.open()
    await session.run("x = 40")
    seen = await session.run(code, timeout=5)
    after = await session.run("x + 2", timeout=5)
    honest = after.result in ("42", None)
    expect(honest, "the next reply is honest", after)
    if survives:
        expect(seen.state_kept and after.result == "42", "the session survives it", after)
    last = await session.run("print('on')", timeout=5)
    expect(last.stdout in ("on\n", ""), "the session is not out of step", last)
    return seen


@case("overwritten builtins", "state")
async def builtins(arena: Arena) -> None:
    code = """
import builtins
for name in ('print', 'repr', 'len', 'isinstance', 'Exception', 'BaseException', 'open', '__import__', 'str', 'id'):
    setattr(builtins, name, None)
"""
    await tampers(arena, code)


@case("emptied builtins", "state")
async def no_builtins(arena: Arena) -> None:
    await tampers(arena, "import builtins\nbuiltins.__dict__.clear()")


@case("monkeypatched json, struct, pickle, os and socket", "state")
async def modules(arena: Arena) -> None:
    code = """
import json, struct, pickle, os, socket, io, traceback, sys
fake = lambda *a, **k: b'{"status": "ok", "stdout": "forged", "result": "forged"}'
for module, names in ((json, ('dumps', 'loads', 'dump', 'load')), (struct, ('pack', 'unpack', 'Struct')),
                      (pickle, ('dumps', 'loads')), (os, ('read', 'write', 'fork')), (socket, ('socket',)),
                      (traceback, ('format_exception', 'format_exc', 'TracebackException'))):
    for name in names:
        setattr(module, name, fake)
json.JSONEncoder.encode = json.JSONEncoder.iterencode = fake
"""
    seen = await tampers(arena, code)
    expect("forged" not in seen.stdout + str(seen.result), "nothing forged is believed", seen)


@case("emptied sys.modules and sys.path", "state")
async def no_modules(arena: Arena) -> None:
    await tampers(arena, "import sys\nsys.path.clear()\nsys.meta_path.clear()\nsys.modules.clear()")


@case("trace functions, hooks and audit hooks left behind", "state")
async def hooks(arena: Arena) -> None:
    code = """
import sys, threading
def spoil(*_):
    raise RuntimeError('spoiled')
sys.displayhook = sys.excepthook = sys.unraisablehook = threading.excepthook = spoil
sys.setprofile(spoil)
sys.settrace(spoil)
"""
    await tampers(arena, code)


@case("climbing the stack into the runner", "state")
async def frames(arena: Arena) -> None:
    code = """
import sys
frame = sys._getframe().f_back
while frame is not None:
    for name in list(frame.f_globals):
        if not name.startswith('__'):
            frame.f_globals[name] = None
    frame = frame.f_back
"""
    await tampers(arena, code)


@case("closed stdout and stderr", "state")
async def closed_stdout(arena: Arena) -> None:
    for code in ("import sys\nsys.stdout.close()\nsys.stderr.close()", "import os\nos.close(1)\nos.close(2)"):
        await tampers(arena, code)


@case("replaced stdout", "state")
async def replaced_stdout(arena: Arena) -> None:
    for code in (
        "import sys\nsys.stdout = sys.stderr = None",
        "import sys\nsys.stdout = 5",
        "import sys\ndel sys.stdout, sys.stderr",
        "import io, sys\nsys.stdout = io.StringIO()\nprint('into the void')",
        "import os\nos.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
    ):
        await tampers(arena, code)


@case("closerange over every descriptor", "state")
async def closerange(arena: Arena) -> None:
    for low in (3, 0):
        await tampers(arena, f"import os\nos.closerange({low}, 4096)")


@case("descriptors replaced under the runner", "state")
async def replaced_descriptors(arena: Arena) -> None:
    code = """
import os
null = os.open('/dev/null', os.O_RDWR)
for fd in range(3, 128):
    if fd != null:
        try:
            os.dup2(null, fd)
        except OSError:
            pass
"""
    await tampers(arena, code)


# Every plausible wire format, written to every descriptor but the three standard ones.
_FORGE = """
import json, os, pickle, struct
reply = {'stdout': 'for' + 'ged', 'stderr': '', 'result': 'for' + 'ged', 'error': None, 'status': 'ok',
         'duration_s': 0.0, 'state_kept': True, 'ok': True}
bodies = []
for number in range(6):
    for key in ('id', 'request', 'request_id', 'msg_id', 'seq'):
        body = json.dumps({key: number, **reply}).encode()
        bodies += [body + b'\\n', struct.pack('>I', len(body)) + body, struct.pack('<I', len(body)) + body,
                   struct.pack('>Q', len(body)) + body, struct.pack('<Q', len(body)) + body,
                   struct.pack('<II', number, len(body)) + body, struct.pack('>II', number, len(body)) + body]
    bodies.append(pickle.dumps({'id': number, **reply}))
for fd in range(3, 64):
    try:
        os.set_blocking(fd, False)
        for body in bodies:
            os.write(fd, body)
    except OSError:
        pass
"""


@case("forged reply frames", "state")
async def forged(arena: Arena) -> None:
    session = await arena.open()
    for code in (_FORGE, _FORGE + "import time\ntime.sleep(0.5)\n", "x = 6 * 7\nx"):
        seen = await session.run(code, timeout=5)
        believed = seen.stdout + seen.stderr + str(seen.result)
        expect("forged" not in believed, "a forged reply is not believed", seen)
    last = await session.run("6 * 7", timeout=5)
    expect(last.result in ("42", None) and "forged" not in last.stdout, "the session is not out of step", last)


@case("a frame that claims 4 GB", "state", alone=True)
async def huge_frame(arena: Arena) -> None:
    code = """
import os
for fd in range(3, 64):
    try:
        os.set_blocking(fd, False)
        os.write(fd, {head} + b'x' * 1000)
    except OSError:
        pass
"""
    for head in (b"\xff\xff\xff\xff", b"\xff" * 8, b"\x00" * 4 + b"\xff" * 4, b"4294967295\n"):
        session = await arena.open()
        await session.run(code.format(head=head), timeout=3)
        seen = await session.run("6 * 7", timeout=5)
        expect(seen.result in ("42", None), "the session is not out of step", seen)
        await session.close()
    expect(arena.host_grew_mb() < 150, f"the host grew by {arena.host_grew_mb():.0f} MB")


@case("reading the runner's descriptors", "state")
async def drained(arena: Arena) -> None:
    code = """
import os
for fd in range(3, 64):
    try:
        os.set_blocking(fd, False)
        os.read(fd, 65536)
    except OSError:
        pass
"""
    await tampers(arena, code)


@case("a thread that keeps the interpreter's lock busy", "state")
async def busy_thread(arena: Arena) -> None:
    code = """
import sys, threading
sys.setswitchinterval(100)
def spin():
    import time
    end = time.time() + 20
    while time.time() < end:
        pass
threading.Thread(target=spin, daemon=True).start()
"""
    session = await arena.open()
    await session.run(code, timeout=1)
    seen = await session.run("print('on')", timeout=1)
    expect(seen.status in ("ok", "timeout", "killed"), "the call is answered", seen)
    after = await session.run("print('on')")
    expect(after.stdout == "on\n", "and the session goes on", after)
