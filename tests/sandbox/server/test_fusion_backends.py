"""SandboxFusion's programs over plain sessions and over kernels: modules, pictures, processes, files of any size."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from collections.abc import Iterator

import pytest

from tests.sandbox.server.conftest import serving
from tests.sandbox.server.test_fusion import b64, jupyter, run_code


@pytest.fixture(scope="module", params=["fork", "jupyter"])
def over(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "jupyter" and importlib.util.find_spec("ipykernel") is None:
        pytest.skip("ipykernel is not installed")
    with serving("--sandbox", request.param, "--max-body-mb", "24", "--limits.output-bytes", "1000000") as (url, _):
        yield url


def test_print_and_the_last_expression(over: str) -> None:
    seen = run_code(over, "print(123)\n456")
    assert (seen["status"], seen["run_result"]["stdout"], seen["run_result"]["return_code"]) == ("Success", "123\n", 0)


def test_uploaded_modules_can_be_imported(over: str) -> None:
    files = {
        "helper.py": b64("VALUE = 5\n"),
        "package/__init__.py": b64(""),
        "package/deep.py": b64("def f(): return 7"),
    }
    code = "import helper\nfrom package.deep import f\nprint(helper.VALUE, f())"
    assert run_code(over, code, files=files)["run_result"]["stdout"] == "5 7\n"
    assert jupyter(over, "import helper", "helper.VALUE", files=files)["cells"][1]["display"] == [{"text/plain": "5"}]


def test_the_script_has_its_file_and_its_folder(over: str) -> None:
    code = (
        "import os, sys\nprint(open(__file__).readline(), sys.argv, sys.path[0] == os.getcwd(), "
        "os.path.dirname(__file__) == os.getcwd())\nimport inspect\ndef f():\n    return 3\nprint(inspect.getsource(f))"
    )
    out = run_code(over, code)["run_result"]["stdout"]
    assert out == "import os, sys\n ['main.py'] True True\ndef f():\n    return 3\n\n"
    taken = run_code(over, "print(open('main.py').read(), __file__[-11:])", files={"main.py": b64("theirs")})
    assert taken["run_result"]["stdout"] == "theirs __main__.py\n"


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_multiprocessing(over: str, method: str) -> None:
    code = (
        "import multiprocessing as mp\ndef square(n):\n    return n * n\nif __name__ == '__main__':\n"
        f"    with mp.get_context('{method}').Pool(2) as pool:\n        print(pool.map(square, range(4)))"
    )
    result = run_code(over, code, run_timeout=60)["run_result"]
    assert (result["stdout"], result["stderr"], result["return_code"]) == ("[0, 1, 4, 9]\n", "", 0)


def test_the_child_of_a_fork_is_not_the_script(over: str) -> None:
    code = (
        "import os, sys\npid = os.fork()\nif pid == 0:\n    print('child', flush=True)\n    sys.exit(3)\n"
        "print('parent', os.waitpid(pid, 0)[1] >> 8)\nsys.exit(5)"
    )
    result = run_code(over, code)["run_result"]
    assert (result["stdout"], result["return_code"]) == ("child\nparent 3\n", 5)


@pytest.mark.parametrize(
    ("code", "return_code"),
    [
        ("class Odd(int):\n    def __repr__(self): return '²'\nraise SystemExit(Odd(4))", 4),
        ("raise SystemExit(10**5000)", 0),
        ("raise SystemExit(-1)", 255),
        ("raise SystemExit(True)", 1),
        ("raise SystemExit([])", 1),
        ("raise SystemExit", 0),
        (
            "class Odd(int):\n    def __and__(self, n): return type('Text', (), {'__repr__': lambda s: '²'})()\n"
            "raise SystemExit(Odd(4))",
            1,
        ),
        ("class Odd(int):\n    def __and__(self, n): return 10**5000\nraise SystemExit(Odd(4))", 1),
    ],
)
def test_odd_exit_statuses(over: str, code: str, return_code: int) -> None:
    assert run_code(over, code)["run_result"]["return_code"] == return_code


def test_files_of_14_megabytes(over: str) -> None:
    big = bytes(range(256)) * (11 << 12)  # 11 MB
    files = {"big.bin": base64.b64encode(big).decode(), **{f"{n}.txt": b64("x" * (1 << 20)) for n in range(3)}}
    code = "import hashlib, os\nprint(hashlib.md5(open('big.bin', 'rb').read()).hexdigest(), os.path.getsize('2.txt'))"
    result = run_code(over, code, files=files)["run_result"]
    assert (result["stdout"], result["stderr"]) == (f"{hashlib.md5(big).hexdigest()} 1048576\n", "")


def test_pictures_arrive(over: str) -> None:
    cells = [
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
        "from IPython.display import HTML\nclass Rich:\n    def _repr_html_(self): return '<b>r</b>'\n"
        "    def __repr__(self): return 'r'\nRich()",
        "display(Rich())",
    ]
    seen = jupyter(over, *cells, total_timeout=120)
    (picture,) = seen["cells"][0]["display"]
    assert base64.b64decode(picture["image/png"])[:8] == b"\x89PNG\r\n\x1a\n"
    for cell in seen["cells"][1:]:
        assert cell["display"] == [{"text/html": "<b>r</b>", "text/plain": "r"}]
