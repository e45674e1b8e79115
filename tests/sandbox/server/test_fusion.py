"""SandboxFusion's wire format, as verl and ReTool users send it, and each of the original's faults."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

RUN_KEYS = {"status", "message", "compile_result", "run_result", "executor_pod_name", "files"}
RESULT_KEYS = {"status", "execution_time", "return_code", "stdout", "stderr"}


def run_code(url: str, code: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/run_code", json={"code": code, **body}, timeout=60).raise_for_status().json()
    assert set(answer) == RUN_KEYS
    assert set(answer["run_result"]) == RESULT_KEYS
    return answer


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_as_verls_client_calls_it(server: str) -> None:
    """No language (its tutorial omits it), memory in MB; stdout + stderr must concatenate."""
    body = {"compile_timeout": 10, "run_timeout": 10, "stdin": "2 3\n", "memory_limit_MB": 1024, "files": {}}
    seen = run_code(server, "a, b = map(int, input().split())\nprint(a + b)", **body)
    result = seen["run_result"]
    assert (seen["status"], result["status"], result["return_code"]) == ("Success", "Finished", 0)
    assert result["stdout"] + result["stderr"] == "5\n"


@pytest.mark.parametrize(
    ("code", "status", "return_code"),
    [
        ("import sys\nsys.exit()", "Success", 0),
        ("import sys\nsys.exit(3)", "Failed", 3),
        ("raise SystemExit('bye')", "Failed", 1),
        ("1 / 0", "Failed", 1),
        ("def f(:", "Failed", 1),
        ("import os\nos._exit(0)", "Success", 0),
        ("import os\nos._exit(4)", "Failed", 4),
        ("import ctypes\nctypes.string_at(0)", "Failed", -11),
        ("import os\nos.abort()", "Failed", -6),
        ("x = 'x' * (300 << 20)", "Failed", 1),
    ],
)
def test_return_codes(server: str, code: str, status: str, return_code: int) -> None:
    seen = run_code(server, "print('before', flush=True)\n" + code, memory_limit_MB=128)
    result = seen["run_result"]
    assert (seen["status"], result["status"], result["return_code"]) == (status, "Finished", return_code)
    assert result["stdout"] == ("before\n" if "f(:" not in code else "")
    assert isinstance(result["stderr"], str)


def test_a_script_is_main_and_its_traceback_is_its_own(server: str) -> None:
    code = """
import sys, atexit, threading, time
atexit.register(print, 'last')
threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()
if __name__ == '__main__':
    print(sys.argv, sys.modules['__main__'].__dict__ is globals())
def f():
    raise KeyError('lost')
f()
"""
    result = run_code(server, code)["run_result"]
    assert result["stdout"] == "['main.py'] True\nthread\nlast\n"
    lines = result["stderr"].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == '  File "main.py", line 9, in <module>'
    assert lines[-1] == "KeyError: 'lost'"
    assert "<cell" not in result["stderr"]


def test_a_time_out_has_no_return_code_and_keeps_the_output(server: str) -> None:
    seen = run_code(server, "import time\nprint('before', flush=True)\ntime.sleep(60)", run_timeout=1)
    result = seen["run_result"]
    assert (seen["status"], result["status"], result["return_code"]) == ("Failed", "TimeLimitExceeded", None)
    assert result["stdout"] == "before\n"
    assert isinstance(result["stderr"], str)


def test_half_a_megabyte_of_output_arrives(server: str) -> None:
    seen = run_code(server, "import sys\nprint('o' * 500_000)\nprint('e' * 500_000, file=sys.stderr)")
    result = seen["run_result"]
    assert result["stdout"] == "o" * 500_000 + "\n"
    assert result["stderr"] == "e" * 500_000 + "\n"
    assert seen["message"] == ""


def test_output_over_the_limit_is_cut_and_the_message_says_so(server: str) -> None:
    seen = run_code(server, "print('o' * 3_000_000)")
    assert (seen["status"], seen["message"]) == ("Success", "stdout cut at the sandbox's limit")
    assert seen["run_result"]["stdout"].startswith("ooo")


def test_one_invalid_byte_spoils_one_character(server: str) -> None:
    result = run_code(server, "import os\nos.write(1, b'left \\xff right\\n')\nprint('after')")["run_result"]
    assert result["stdout"] == "left � right\nafter\n"


def test_lone_surrogates_travel(server: str) -> None:
    content = b'{"code": "print(len(\'\\\\ud800\\ud800\'))", "stdin": "\\ud800"}'
    answer = httpx.post(f"{server}/run_code", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["status"] in ("Success", "Failed")


def test_stdin_reaches_children_and_is_empty_by_default(server: str) -> None:
    code = "import subprocess, sys\nprint(subprocess.run(['cat'], capture_output=True, text=True).stdout)"
    assert run_code(server, code, stdin="héllo\n" * 30_000)["run_result"]["stdout"] == "héllo\n" * 30_000 + "\n"
    result = run_code(server, "input()")["run_result"]
    assert result["stderr"].endswith("EOFError: EOF when reading a line\n")


def test_files_go_in_and_come_out(server: str) -> None:
    big = "data " * 400_000  # 2 MB: more than one result can hold
    code = "text = open('in/deep/a.txt').read()\nopen('out.txt', 'w').write(text.upper())\nprint(len(text))"
    fetched = ["out.txt", "in/deep/a.txt", "missing", "in"]
    seen = run_code(server, code, files={"in/deep/a.txt": b64(big), "empty": None}, fetch_files=fetched)
    assert seen["run_result"]["stdout"] == f"{len(big)}\n"
    assert set(seen["files"]) == {"out.txt", "in/deep/a.txt"}
    assert base64.b64decode(seen["files"]["out.txt"]).decode() == big.upper()


def test_files_are_fetched_after_a_failure(server: str) -> None:
    seen = run_code(server, "open('log', 'w').write('so far')\n1 / 0", fetch_files=["log"])
    assert seen["files"] == {"log": b64("so far")}


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a\0b"])
def test_paths_stay_in_the_sessions_folder(server: str, path: str) -> None:
    for body in ({"fetch_files": [path]}, {"files": {path: b64("x")}}):
        answer = httpx.post(f"{server}/run_code", json={"code": "1", **body})
        assert answer.status_code == 422
        assert "not a path inside the session's folder" in answer.json()["detail"]


def test_a_symlink_does_not_lead_a_fetch_out(server: str) -> None:
    code = "import os\nos.symlink('/etc/passwd', 'link')\nos.symlink('/', 'root')\nopen('real', 'w').write('r')"
    seen = run_code(server, code, fetch_files=["link", "root/etc/passwd", "real"])
    assert seen["files"] == {"real": b64("r")}


def test_what_hostile_code_says_of_its_files_is_only_text(server: str) -> None:
    code = "import base64, builtins\nbase64.b64encode = lambda data: b'not base64!'\nopen('f', 'w').write('x')"
    assert run_code(server, code, fetch_files=["f"])["files"] == {}


def test_the_servers_environment_stays_outside(server: str) -> None:
    result = run_code(server, "import os\nprint(*sorted(os.environ))")["run_result"]
    assert "PATH" in result["stdout"]
    assert "PYTEST_CURRENT_TEST" not in result["stdout"]


def test_bad_base64_and_other_languages_are_told(server: str) -> None:
    answer = httpx.post(f"{server}/run_code", json={"code": "1", "files": {"a": "%%%"}})
    assert answer.status_code == 422
    assert "not base64" in answer.json()["detail"]
    other = httpx.post(f"{server}/run_code", json={"code": "1", "language": "cpp"}).json()
    assert other["status"] == "SandboxError"
    assert "'cpp'" in other["message"]
    assert other["run_result"] is None


def test_runs_share_nothing(server: str) -> None:
    run_code(server, "open('left', 'w').write('x')\nimport builtins\nbuiltins.left = 1")
    result = run_code(server, "import os, builtins\nprint('left' in os.listdir('.'), hasattr(builtins, 'left'))")[
        "run_result"
    ]
    assert result["stdout"] == "False False\n"


def jupyter(url: str, *cells: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/run_jupyter", json={"cells": cells, **body}, timeout=60).raise_for_status().json()
    assert set(answer) == {"status", "message", "driver", "cells", "executor_pod_name", "files"}
    assert set(answer["driver"]) == RESULT_KEYS
    return answer


def test_cells_share_state_and_report_apart(server: str) -> None:
    cells = [
        "a = 123",
        "a",
        "import sys\nprint(a)\nsys.stderr.write('e')\nNone",
        "raise RuntimeError('r')",
        "print('on')",
    ]
    seen = jupyter(server, *cells, files={"f": b64("x")}, fetch_files=["f"])
    assert seen["status"] == "Success"
    assert seen["cells"][0] == {"stdout": "", "stderr": "", "display": [], "error": []}
    assert seen["cells"][1]["display"] == [{"text/plain": "123"}]
    assert (seen["cells"][2]["stdout"], seen["cells"][2]["stderr"]) == ("123\n", "e")
    (error,) = seen["cells"][3]["error"]
    assert (error["ename"], error["evalue"]) == ("RuntimeError", "r")
    assert error["traceback"][-1] == "RuntimeError: r"
    assert seen["cells"][4]["stdout"] == "on\n"
    assert seen["files"] == {"f": b64("x")}


def test_cell_timeout_total_timeout_and_memory_hold(server: str) -> None:
    seen = jupyter(server, "import time\nprint('p')\ntime.sleep(30)", "print('next')", cell_timeout=1)
    assert (seen["status"], seen["driver"]["status"]) == ("Failed", "TimeLimitExceeded")
    assert seen["driver"]["return_code"] is None
    assert seen["cells"][0]["stdout"] == "p\n"
    assert seen["cells"][0]["error"][0]["ename"] == "TimeoutError"
    assert seen["cells"][1]["stdout"] == "next\n"
    seen = jupyter(server, "import time\ntime.sleep(30)", "print('never')", total_timeout=1)
    assert (seen["status"], len(seen["cells"])) == ("Failed", 1)
    seen = jupyter(server, "x = 'x' * (300 << 20)", memory_limit_MB=100)
    assert seen["cells"][0]["error"][0]["ename"] == "MemoryError"


def test_a_reply_gathers_no_more_from_cells_than_a_body_holds(server: str) -> None:
    """4 MB, of cells that say 1 MB each in different ways; the one that passes the limit is the last."""
    ways = ["print('o' * 1_000_000)", "'r' * 1_000_000", "raise ValueError('e' * 400_000)", "display('d' * 900_000)"]
    body = {"cells": [*ways, "print('fifth' * 200_000)", "print('sixth' * 200_000)", "7"]}
    answer = httpx.post(f"{server}/run_jupyter", json=body, timeout=60).json()
    assert answer["status"] == "Failed"
    assert answer["message"] == f"the cells say more than a body may hold: {7 - len(answer['cells'])} are left out"
    assert 4 <= len(answer["cells"]) <= 6
    said = "".join(cell["stdout"] for cell in answer["cells"])
    assert said.startswith("o" * 1_000_000)


def test_an_uploaded_file_may_have_any_name(server: str) -> None:
    code = "print(open('.stdin').read(), input(), open('main.py').read())"
    seen = run_code(server, code, stdin="typed", files={".stdin": b64("a file"), "main.py": b64("mine")})
    assert seen["run_result"]["stdout"] == "a file typed mine\n", seen
