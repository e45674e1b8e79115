"""What a session means: state, results, streams, errors, time-outs, truncation, closing, concurrency."""

from __future__ import annotations

import asyncio

from solostream.errors import SandboxError
from solostream.sandbox.conformance.case import CLAIMS, Arena, case, expect
from solostream.sandbox.types import Execution, Session


@case("declares its isolation, limits and claims")
async def declares(arena: Arena) -> None:
    session = await arena.open()
    expect(bool(arena.sandbox.isolation) and bool(session.isolation), "isolation is a non-empty text")
    expect(arena.sandbox.claims <= frozenset(CLAIMS), f"claims are known names, not {set(arena.sandbox.claims)}")
    expect(arena.limits.timeout_s > 0 and arena.limits.output_bytes > 0, "limits are positive")


@case("variables, functions and imports are kept between calls", "state")
async def state(arena: Arena) -> None:
    session = await arena.open()
    first = await session.run("import math\nx = 20\ndef double(n):\n    return 2 * n\n")
    expect(first.ok and first.state_kept, "definitions run", first)
    seen = await session.run("double(x) + math.floor(2.5)")
    expect(seen.result == "42", "the next call sees them: result is '42'", seen)


@case("the result is the repr of the last expression", "state")
async def last_expression(arena: Arena) -> None:
    session = await arena.open()
    for code, result in {
        "'a' + 'b'": "'ab'",
        "x = 1\nx + 1": "2",
        "x = 1": None,
        "None": None,
        "print('p')": None,
        "[1,\n 2]": "[1, 2]",
        "list(range(1200))": repr(list(range(1200))),  # a notebook's own printer abbreviates
        "if True:\n    5": None,
        "3;": None,
    }.items():
        seen = await session.run(code)
        wanted = {result, "3"} if code == "3;" else {result}  # a notebook hides it, plain Python does not
        expect(seen.ok and seen.result in wanted, f"{code!r} gives {result!r}", seen)


@case("the result is not printed", "state")
async def result_is_apart(arena: Arena) -> None:
    seen = await arena.run("print('shown')\n6 * 7")
    expect((seen.stdout, seen.stderr, seen.result) == ("shown\n", "", "42"), "stdout is 'shown', result '42'", seen)


@case("stdout and stderr are apart and in order")
async def streams(arena: Arena) -> None:
    seen = await arena.run(
        "import sys, os\nprint('a')\nprint('x', file=sys.stderr)\nprint('b', end='')\nsys.stderr.write('y')\nNone"
    )
    expect((seen.stdout, seen.stderr) == ("a\nb", "x\ny"), "stdout is 'a\\nb', stderr 'x\\ny'", seen)


@case("output of children and of raw descriptors is captured", "processes")
async def raw_output(arena: Arena) -> None:
    seen = await arena.run(
        "import os, sys, subprocess\nos.write(1, b'raw\\n')\nos.write(2, b'err\\n')\n"
        "subprocess.run([sys.executable, '-S', '-c', 'print(\"child\")'])\nNone"
    )
    expect("raw\n" in seen.stdout and "child\n" in seen.stdout and "err\n" in seen.stderr, "all three arrive", seen)


@case("unicode goes in and out unchanged")
async def unicode(arena: Arena) -> None:
    text = "naïve ∑ 你好 🙂 \u200f"
    seen = await arena.run(f"s = {text!r}\nprint(s, len(s))")
    expect(seen.stdout == f"{text} {len(text)}\n", "the same characters come back", seen)


@case("an exception has name, message, traceback, and what was printed before it")
async def exception(arena: Arena) -> None:
    seen = await arena.run("print('before')\ndef f():\n    return 1 / 0\nf()\nprint('after')")
    expect(seen.status == "error" and seen.stdout == "before\n", "status is error, stdout 'before'", seen)
    expect(seen.error is not None and seen.error.name == "ZeroDivisionError", "the name is ZeroDivisionError", seen)
    assert seen.error is not None
    expect("division by zero" in seen.error.message, "the message says division by zero", seen)
    expect("in f" in seen.error.traceback or "f()" in seen.error.traceback, "the traceback shows the call", seen)


@case("after an exception the state is kept", "state")
async def exception_keeps_state(arena: Arena) -> None:
    session = await arena.open()
    seen = await session.run("x = 5\nraise KeyError('k')")
    expect(seen.state_kept, "state_kept is true", seen)
    expect((await session.run("x")).result == "5", "x is still 5")


@case("bad syntax is an error of the code")
async def syntax(arena: Arena) -> None:
    for code, names in {"def f(:": {"SyntaxError"}, "if 1:\nx": {"IndentationError"}, "'open": {"SyntaxError"}}.items():
        seen = await arena.run(code)
        expect(seen.error is not None and seen.error.name in names, f"{code!r} is {names}", seen)


@case("empty code and comments run")
async def nothing(arena: Arena) -> None:
    for code in ("", "\n\n", "# only a comment", "   \n"):
        seen = await arena.run(code)
        expect(seen.ok and not seen.stdout and seen.result is None, f"{code!r} does nothing", seen)


@case("tabs, carriage returns, nested quotes and long programs arrive as they are")
async def verbatim(arena: Arena) -> None:
    quotes = "print('''a \"\"\" b ' \\\\ ''')\n"
    seen = await arena.run(quotes + "if True:\n\tprint('tab')\r\n" + "x = 1\n" * 5_000 + "print('end')")
    expect(seen.stdout == 'a """ b \' \\ \ntab\nend\n', "every line ran", seen)


@case("a time-out ends the call and keeps what was printed")
async def timeout(arena: Arena) -> None:
    seen = await arena.run("import time\nprint('before', flush=True)\ntime.sleep(60)\nprint('after')", timeout=1)
    expect(seen.status == "timeout" and seen.stdout == "before\n", "status is timeout, stdout 'before'", seen)
    expect(0.9 <= seen.duration_s < 15, f"duration_s is about 1 s, not {seen.duration_s}", seen)


@case("after a time-out state_kept tells the truth", "state")
async def timeout_state(arena: Arena) -> None:
    session = await arena.open()
    await session.run("x = 7")
    seen = await session.run("while True:\n    pass", timeout=1)
    expect(seen.status == "timeout", "status is timeout", seen)
    after = await session.run("x")
    if seen.state_kept:
        expect(after.result == "7", "state_kept was true: x is 7", after)
    else:
        expect(after.error is not None and after.error.name == "NameError", "state_kept was false: x is unknown", after)


@case("a call may be longer than another's time-out")
async def timeout_per_call(arena: Arena) -> None:
    session = await arena.open()
    first = await session.run("import time\ntime.sleep(30)", timeout=0.5)
    expect(first.status == "timeout", "the first times out", first)
    seen = await session.run("import time\ntime.sleep(1)\nprint('done')", timeout=15)
    expect(seen.ok and seen.stdout == "done\n", "the second has its own clock", seen)


@case("output over the limit is cut and flagged, below it is neither")
async def truncation(arena: Arena) -> None:
    limit = arena.limits.output_bytes
    code = "import sys\nsys.{0}.write('a' * {1})\nNone"
    for stream in ("stdout", "stderr"):
        for size, cut in ((limit // 2, False), (2 * limit, True)):
            seen = await arena.run(code.format(stream, size))
            text, flag = getattr(seen, stream), getattr(seen, stream + "_truncated")
            expect(seen.ok and flag is cut, f"{size} bytes of {stream}: truncated is {cut}, not {flag}")
            expect(len(text.encode()) <= limit + 200, f"{stream} is at most {limit} bytes, not {len(text)}")
            expect(cut or text == "a" * size, f"{size} bytes of {stream} arrive whole, not {len(text)}")


@case("a result over the limit is cut and flagged", "state")
async def truncated_result(arena: Arena) -> None:
    limit = arena.limits.output_bytes
    seen = await arena.run(f"'b' * {2 * limit}")
    expect(seen.result is not None and seen.result_truncated, f"result_truncated is {seen.result_truncated}")
    expect(len((seen.result or "").encode()) <= limit + 200, f"the result has at most {limit} bytes")
    whole = await arena.run(f"'b' * {limit // 2}")
    expect(not whole.result_truncated and whole.result == repr("b" * (limit // 2)), "half the limit arrives whole")


@case("close is idempotent, and a closed session says so")
async def closing(arena: Arena) -> None:
    session = await arena.open()
    await session.close()
    await session.close()
    try:
        seen = await session.run("1")
    except SandboxError as error:
        expect("\n" not in str(error) and bool(str(error)), "the message is one line")
    else:
        expect(False, "run after close raises SandboxError", seen)


@case("an open session can be closed while it runs")
async def close_while_running(arena: Arena) -> None:
    session = await arena.open()
    running = asyncio.create_task(session.run("import time\ntime.sleep(40)", timeout=50))
    await asyncio.sleep(0.3)
    await session.close()
    try:
        seen = await asyncio.wait_for(running, 15)
        expect(not seen.ok, "the interrupted call is not ok", seen)
    except SandboxError:
        pass  # as good: the session was taken away


@case("sessions run side by side")
async def side_by_side(arena: Arena) -> None:
    async def one(session: Session) -> tuple[float, float]:
        seen = await session.run(
            "import time\nstart = time.time()\ntime.sleep(1)\nprint(start, time.time())", timeout=20
        )
        start, end = map(float, seen.stdout.split())
        return start, end

    sessions = [await arena.open() for _ in range(4)]
    spans = await asyncio.gather(*map(one, sessions))
    expect(max(start for start, _ in spans) < min(end for _, end in spans), f"all four overlap, not {spans}")


@case("replies reach the caller that asked", "state")
async def routing(arena: Arena) -> None:
    async def one(number: int) -> None:
        session = await arena.open()
        await session.run(f"n = {number}")
        for step in range(10):
            seen = await session.run(f"n * 1000 + {step}")
            expect(seen.result == str(number * 1000 + step), f"session {number}, step {step}", seen)

    await asyncio.gather(*map(one, range(6)))


@case("calls to one session take turns", "state")
async def turns(arena: Arena) -> None:
    session = await arena.open()
    await session.run("seen = []")
    codes = [f"seen.append({n})\nimport time\ntime.sleep(0.01)\nseen.append({n})\nNone" for n in range(5)]
    done: list[Execution] = await asyncio.gather(*map(session.run, codes))
    expect(all(seen.ok for seen in done), "every call runs")
    final = await session.run("all(a == b for a, b in zip(seen[::2], seen[1::2])) and len(seen)")
    expect(final.result == "10", "no call ran inside another", final)


@case("a hundred short calls lose no reply", "state")
async def many_calls(arena: Arena) -> None:
    session = await arena.open()
    for number in range(100):
        seen = await session.run(f"print({number})\n{number}")
        expect((seen.stdout, seen.result) == (f"{number}\n", str(number)), f"call {number} has its own reply", seen)


@case("sessions draw different random numbers", "state")
async def random_numbers(arena: Arena) -> None:
    """Also those of libraries that keep a generator of their own."""
    code = (
        "import random, secrets, tempfile, uuid\nfound = [random.random(), random.Random().random(), "
        "secrets.token_hex(8), uuid.uuid4(), tempfile.mktemp()]\n"
        "try:\n    import numpy\n    found += [numpy.random.rand(), numpy.random.default_rng().random()]\n"
        "    import sympy\n    found += [sympy.randprime(1, 10**15), sympy.core.random.random()]\n"
        "except ImportError:\n    pass\nprint(*found, sep='|')"
    )
    first, second = [(await arena.run(code)).stdout.split("|") for _ in range(2)]
    expect(len(first) == len(second) >= 5, f"both sessions draw, not {first} and {second}")
    same = [one for one, other in zip(first, second, strict=True) if one == other]
    expect(not same, f"no two are equal, as {same}")


@case("a picture and a rich result are displayed", "state")
async def rich_output(arena: Arena) -> None:
    session = await arena.open()
    await session.run(
        "class Rich:\n    def __repr__(self): return 'r'\n    def _repr_html_(self): return '<b>r</b>'\n"
        "    def _repr_png_(self): return b'\\x89PNG'"
    )
    seen = await session.run("display(Rich(), 5)\nRich()")
    rich = {"text/html": "<b>r</b>", "image/png": "iVBORw=="}
    shown = [{mime: data.strip() for mime, data in bundle.items()} for bundle in seen.display]
    wanted = [{"text/plain": "r", **rich}, {"text/plain": "5"}, rich]
    expect(shown == wanted and seen.result == "r" and not seen.stdout, f"{wanted} are displayed, not {shown}", seen)


@case("a stream object has the room of each call it prints in", "state")
async def kept_stream(arena: Arena) -> None:
    session = await arena.open()
    size = arena.limits.output_bytes * 2 // 3
    await session.run("import sys\nkept = sys.stdout")
    for number in range(4):
        seen = await session.run(f"kept.write('{number}' * {size})\nNone")
        expect(seen.stdout == str(number) * size and not seen.stdout_truncated, f"call {number} prints {size} bytes")
    seen = await session.run(f"kept.write('a' * {size})\nprint('b' * {size})")
    expect(seen.stdout_truncated and "b" in seen.stdout, "two streams share the room of one call", seen)


@case("session N+1 sees nothing of session N", "sessions")
async def nothing_of_before(arena: Arena) -> None:
    word = arena.tag + "left"
    first = await arena.open()
    await first.run(
        f"import builtins, os, sys, math\nleft = builtins.left = math.left = '{word}'\nos.environ['LEFT'] = '{word}'\n"
        f"sys.path.insert(0, '{word}')\nopen('{word}', 'w').write('x')\nos.makedirs('/tmp/{word}', exist_ok=True)\n"
    )
    await first.close()
    seen = await arena.run(
        "import builtins, os, sys, math, glob\n"
        "found = [n for n in ('builtins', 'math') if hasattr(sys.modules[n], 'left')]\n"
        "found += [k for k in os.environ if k == 'LEFT'] + [p for p in sys.path if p.endswith('left')]\n"
        "found += ['global'] if 'left' in globals() else []\n"
        f"found += glob.glob('*{word}*') + glob.glob('/tmp/*{word}*') + glob.glob('/tmp/*/*{word}*')\n"
        f"found += glob.glob('/dev/shm/*{word}*') + glob.glob('/var/tmp/*{word}*')\nprint(found)"
    )
    expect(seen.stdout == "[]\n", "no variable, module attribute, environment, path or file is left", seen)


@case("two open sessions share no variables and no files", "sessions")
async def nothing_of_neighbours(arena: Arena) -> None:
    word = arena.tag + "mine"
    first, second = await arena.open(), await arena.open()
    shared_tmp = f"try:\n    open('/tmp/{word}', 'w').write('1')\nexcept OSError:\n    pass\n"  # some have no /tmp
    code = f"open('{word}', 'w').write('1')\n{shared_tmp}shared = 1\nprint('made')"
    made = await first.run(code)
    expect(made.stdout == "made\n", "a session may write to its folder", made)
    seen = await second.run(
        f"import os\nprint('shared' in dir(), os.path.exists('{word}'), os.path.exists('/tmp/{word}'))"
    )
    expect(seen.stdout == "False False False\n", "the neighbour sees none of it", seen)
