"""What a notebook's user expects of a fork session: the innocent programs that once gave wrong answers."""

from __future__ import annotations

import asyncio
import re

import pytest

from solostream.errors import UserError
from solostream.sandbox.fork import ForkSandbox
from solostream.sandbox.fork.child import cell, wire
from solostream.sandbox.types import Limits
from tests.sandbox.fork.conftest import LIMITS, need


async def last(sandbox: ForkSandbox, *calls: str):
    session = await sandbox.open()
    for code in calls:
        seen = await session.run(code)
    return seen


async def test_the_child_of_a_fork_never_answers(sandbox: ForkSandbox) -> None:
    code = "import os, sys\nx = 1\npid = os.fork()\nif pid == 0:\n    x = 2\n    print('child')\n    {end}\n"
    for end, status, stderr in [
        ("sys.exit(3)", 3, ""),
        ("pass", 0, ""),
        ("sys.exit('bye')", 1, "bye\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ]:
        session = await sandbox.open()
        seen = await session.run(
            code.format(end=end) + "else:\n    status = os.waitpid(pid, 0)[1] >> 8\n    print('parent')"
        )
        assert (seen.status, seen.stdout) == ("ok", "child\nparent\n"), seen
        assert seen.stderr.endswith(stderr)
        assert ("Traceback" in seen.stderr) == (end == "1 / 0")
        assert [(await session.run("status, x")).result for _ in range(4)] == [f"({status}, 1)"] * 4


async def test_a_stream_object_may_outlive_its_call(sandbox: ForkSandbox) -> None:
    """The room (4,096 bytes here) is a call's, whichever object prints."""
    session = await sandbox.open()
    await session.run("import sys, logging\nkept = sys.stdout\nlogging.basicConfig()\nlog = logging.getLogger()")
    for _ in range(5):
        seen = await session.run("kept.write('k' * 3000)\nprint('p' * 1000)\nlog.warning('w' * 3000)")
        assert seen.stdout == "k" * 3000 + "p" * 1000 + "\n"
        assert seen.stderr == "WARNING:root:" + "w" * 3000 + "\n"
    seen = await session.run("kept.write('k' * 3000)\nprint('p' * 3000)")
    assert seen.stdout == "k" * 3000 + "p" * 1096
    assert seen.stdout_truncated


async def test_what_is_written_to_dev_stdout_comes_behind_what_was_printed(sandbox: ForkSandbox) -> None:
    code = (
        "import subprocess\nprint('one')\n"
        "subprocess.run('echo two > /dev/stdout; echo err | tee /dev/stderr', shell=True)"
        "\nwith open('/dev/stdout', 'w') as out:\n    out.write('three\\n')\nprint('four')"
    )
    seen = await last(sandbox, code)
    assert (seen.stdout, seen.stderr) == ("one\ntwo\nerr\nthree\nfour\n", "err\n")


async def test_a_flood_below_python_is_cut_and_does_not_block(sandbox: ForkSandbox) -> None:
    """8 MB through a pipe that holds 64 KB and a limit of 4 KB; then what a background child prints between calls."""
    session = await sandbox.open()
    seen = await session.run(
        "import subprocess\nsubprocess.run('yes | head -c 8000000; echo end >&2', shell=True)\nNone"
    )
    assert (seen.status, seen.stdout_truncated, seen.stderr) == ("ok", True, "end\n")
    assert seen.stdout == "y\n" * (LIMITS.output_bytes // 2)
    await session.run("child = subprocess.Popen('yes | head -c 300000; echo done > mark', shell=True)")
    assert (await session.run("x = 3")).ok  # whatever the child has printed
    seen = await session.run("child.wait()\nopen('mark').read()")
    assert seen.result == "'done\\n'"


async def test_modules_written_to_the_folder_can_be_imported(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    assert (await session.run("try:\n    import helper_a\nexcept ImportError:\n    print('not yet')")).ok
    await session.run("open('helper_a.py', 'w').write('VALUE = 5')")
    assert (await session.run("import helper_a\nhelper_a.VALUE")).result == "5"
    reload = "import importlib\nopen('helper_a.py', 'w').write('VALUE = 6')\nimportlib.reload(helper_a).VALUE"
    assert (await session.run(reload)).result == "6"
    seen = await session.run("import subprocess, sys, os\nos.mkdir('sub')\nos.chdir('sub')\nimport helper_a as again")
    assert seen.ok


async def test_the_recursion_limit_lasts_and_ours_is_our_own(sandbox: ForkSandbox) -> None:
    code = "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\nf({})"
    session = await sandbox.open()
    assert (await session.run("import sys\nsys.setrecursionlimit(5000)\nsys.getrecursionlimit()")).result == "5000"
    assert (await session.run(code.format(4000))).result == "4000"
    seen = await session.run(code.format(6000))
    assert seen.error is not None
    assert seen.error.name == "RecursionError"
    assert (await session.run("sys.setrecursionlimit(20)")).ok
    assert (await session.run("sys.getrecursionlimit()")).result == "100"  # with less nothing would run


async def test_the_last_result_is_underscore(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    assert [(await session.run(code)).result for code in ("6 * 7", "None", "_ + 1", "x = 5", "_")] == [
        *("42", None, "43", None, "43")
    ]


async def test_await_and_the_tasks_it_leaves(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    await session.run("import asyncio\nasync def f(n):\n    await asyncio.sleep(0.01)\n    return n")
    assert (await session.run("x = await f(3)\nawait f(x + 1)")).result == "4"
    assert (
        await session.run("async with asyncio.timeout(5):\n    y = [await f(n) for n in (1, 2)]\ny")
    ).result == "[1, 2]"
    await session.run("await asyncio.sleep(0)\ntask = asyncio.ensure_future(f(9))")
    assert (await session.run("await task")).result == "9"
    assert (await session.run("asyncio.run(f(5))")).result == "5"
    seen = await session.run("async def g():\n    raise KeyError('k')\nawait g()")
    assert seen.error is not None
    assert [line.strip() for line in seen.error.traceback.splitlines() if "File" in line] == [
        'File "<cell 7>", line 3, in <module>',
        'File "<cell 7>", line 2, in g',
    ]
    seen = await session.run("await asyncio.sleep(60)", timeout=0.3)
    assert seen.status == "timeout"
    if seen.state_kept:
        assert (await session.run("await f(7)")).result == "7"


async def test_sources_of_classes(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    await session.run("class A:\n    x = 1\n")
    await session.run("class A:\n    x = 2\n    class Inner(dict):\n        def f(self): return 3\n")
    assert (await session.run("import inspect\nprint(inspect.getsource(A.Inner))")).stdout == (
        "    class Inner(dict):\n        def f(self): return 3\n\n"
    )
    assert "x = 2" in (await session.run("print(inspect.getsource(A))")).stdout
    seen = await session.run("inspect.getsource(int)")
    assert seen.error is not None
    assert seen.error.name == "TypeError"


async def test_long_integers_here_and_in_children(sandbox: ForkSandbox) -> None:
    code = (
        "import subprocess, sys\nprint(len(str(2**20000)), int('7' * 5000) % 10)\n"
        "subprocess.run([sys.executable, '-c', 'print(len(str(3**10000)))'])"
    )
    assert (await last(sandbox, code)).stdout == "6021 7\n4772\n"


async def test_every_generator_differs_between_sessions() -> None:
    need("namespaces")
    box = ForkSandbox(limits=LIMITS, pool=1)
    code = (
        "import random, numpy, sympy, multiprocessing, uuid, tempfile\n"
        "print(random.random(), numpy.random.rand(), numpy.random.default_rng().random(), sympy.randprime(1, 10**15), "
        "sympy.core.random.rng.random(), multiprocessing.current_process().authkey.hex(), uuid.uuid4(), "
        "tempfile.mktemp(), sep='|')"
    )
    try:
        first, second = [await (await box.open()).run(code) for _ in range(2)]
    finally:
        await box.close()
    mine, yours = first.stdout.split("|"), second.stdout.split("|")
    assert len(mine) == 8
    assert [a == b for a, b in zip(mine, yours, strict=True)] == [False] * 8


async def test_rich_output(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    await session.run(
        "class Both:\n    def __repr__(self): return 'plain'\n    def _repr_html_(self): return '<b>rich</b>'\n"
        "    def _repr_png_(self): raise ValueError\n    def _repr_svg_(self): return b'\\xff'"
    )
    seen = await session.run("display(Both(), 5)\nBoth()")
    html = {"image/svg+xml": "/w==", "text/html": "<b>rich</b>"}
    assert [dict(bundle) for bundle in seen.display] == [{"text/plain": "plain", **html}, {"text/plain": "5"}, html]
    assert (seen.result, seen.stdout) == ("plain", "")
    assert (await session.run("1")).display == ()
    seen = await session.run(
        "class Huge:\n    def _repr_html_(self): return 'h' * (2 << 20)\ndisplay(Huge(), *range(100))"
    )
    assert len(seen.display) == wire.MAX_BUNDLES
    assert list(seen.display[0]) == ["text/plain"]


def test_bundles_travel_and_their_reader_is_bounded() -> None:
    bundles = [{b"text/plain": "é".encode(), b"image/png": b"x" * 70_000}, {}, {b"a": b""}]
    packed = wire.pack_bundles(bundles)
    assert wire.unpack_bundles(packed) == ({"text/plain": "é", "image/png": "x" * 70_000}, {}, {"a": ""})
    assert wire.unpack_bundles(b"\0" * 1_000_000) == ({},) * wire.MAX_BUNDLES
    for cut in range(1, 40):
        with pytest.raises(ValueError, match="breaks off"):
            wire.unpack_bundles(packed[:cut])


async def test_ipythons_display_is_ours() -> None:
    need("namespaces")
    box = ForkSandbox(limits=LIMITS, preimport=(), pool=1)
    try:
        session = await box.open()
        seen = await session.run("from IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))", timeout=60)
    finally:
        await box.close()
    if seen.error is not None:
        assert seen.error.name == "ModuleNotFoundError"
        pytest.skip("IPython is not where the sessions' Python finds its modules")
    assert [bundle["text/html"] for bundle in seen.display] == ["<b>x</b>"]
    assert seen.stdout == ""


async def test_matplotlib_shows_pictures() -> None:
    need("namespaces")
    box = ForkSandbox(limits=Limits(timeout_s=120), pool=1)
    try:
        session = await box.open()
        seen = await session.run(
            "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n"
            "plt.plot([3, 4])\nopen_figures = plt.get_fignums()"
        )
        assert seen.ok, seen
        assert [sorted(bundle) for bundle in seen.display] == [["image/png", "text/plain"]] * 2
        assert seen.display[0]["image/png"].startswith("iVBORw0KGgo")
        assert seen.display[0] != seen.display[1]
        assert (await session.run("open_figures, plt.get_fignums()")).result == "([1], [])"
        seen = await session.run("import matplotlib\nmatplotlib.use('Agg')\nplt.plot([1, 2])\nplt.savefig('a.png')")
        assert seen.ok
        assert seen.display == ()
    finally:
        await box.close()


@pytest.mark.parametrize(
    "limits",
    [
        *({"timeout_s": value} for value in (0, -1, float("nan"), float("inf"), True, "5")),
        *({name: 0} for name in ("memory_mb", "processes", "disk_mb", "open_files", "output_bytes")),
        *({"memory_mb": value} for value in (-5, 1.5, float("nan"), True, 1 << 40, None)),
    ],
)
def test_limits_are_positive_numbers(limits: dict) -> None:
    with pytest.raises(UserError, match=r"^(timeout|memory_mb|processes|disk_mb|open_files|output_bytes)=.*; give "):
        Limits(**limits)


async def test_a_call_has_a_finite_clock(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    for timeout in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="more than 0 and finite"):
            await asyncio.wait_for(session.run("import time\ntime.sleep(60)", timeout=timeout), 5)
    assert (await session.run("1")).result == "1"


ONE_LINE = """1 + 1 | x = 1 | (y := 4) | y := 4 |  1 | *[1], 2 | 1; | 1; 2 | 1 + | # 1 | 7 # it | print(3) | not | ſ
raise ValueError(2) | 1 / 0 | lambda: 0 0 | yield 1 | await asyncio.sleep(0, 5) | eval('1 +') | [i for i in range(3)]"""


@pytest.mark.parametrize(
    "code", [*re.split(r" \| |\n", ONE_LINE), "", "\t1", "1\r2", "1\r", "a\x00b", "(" * 300, "'\\d'"]
)
@pytest.mark.filterwarnings("ignore:invalid escape")
def test_one_line_means_what_it_means_with_its_end(code: str) -> None:
    shown = []
    for source in (code, code + "\n"):
        interpreter = cell.Interpreter({"asyncio": asyncio, "a": 1, "ſ": 9}, 1000)
        shown.append(interpreter.run(source.encode(), "<cell 1>"))
    cell.forget_rehearsal()  # `_` is this process's own
    assert shown[0] == shown[1]
