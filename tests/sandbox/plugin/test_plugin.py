"""The example plug-in, installed as a user would install it and used in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "solostream-plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process that has the plug-in."""
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(EXAMPLE)]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"pip cannot fetch the build backend here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": str(target)}


def test_open_sandbox_finds_it_by_its_name_and_passes_options(installed, tmp_path):
    diary = tmp_path / "diary.jsonl"
    code = f"""
from solostream.sandbox import Interpreter
with Interpreter("diary", around="fork", path={str(diary)!r}, output_bytes=4) as py:
    print(py.run("x = 6 * 7\\nprint('written')").stdout)
    print(py.run("x").result)
"""
    done = subprocess.run([sys.executable, "-c", code], env=installed, capture_output=True, text=True)
    assert done.stdout == "writ\n42\n", done.stderr
    first, second = map(json.loads, diary.read_text().splitlines())
    assert (first["code"], first["stdout"], first["stdout_truncated"]) == ("x = 6 * 7\nprint('written')", "writ", True)
    assert (second["code"], second["result"]) == ("x", "42")


def test_the_command_judges_it(installed):
    check = [sys.executable, "-m", "solostream", "sandbox", "check", "diary", "--only", "protocol", "--json"]
    done = subprocess.run(check, env=installed, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["backend"] == "diary"
    assert [case["name"] for case in report["cases"] if case["status"] != "pass"] == []
    assert len(report["cases"]) > 20
