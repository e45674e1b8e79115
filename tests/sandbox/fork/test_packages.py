"""Which installed packages a session sees, in a virtual environment whose .pth file adds folders from elsewhere."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.sandbox.fork.conftest import need

PROGRAM = """
import asyncio, json, sys
from solostream.sandbox.fork import ForkSandbox

async def main():
    seen = []
    for _ in range(2):
        sandbox = ForkSandbox(preimport=("planted", "notes", "nowhere", "json"), isolation="namespaces")
        session = await sandbox.open()
        for name in ("planted", "notes"):
            ran = await session.run(f"import {name}\\n{name}.__file__")
            seen.append(eval(ran.result) if ran.result else ran.error.name)
        written = await session.run("open(planted.__file__, 'a').write('x')")
        seen.append(written.error.name)
        seen.append((await session.run(f"open({sys.argv[1]!r}).read()")).error.name)
        seen.append(list(sandbox.unseen))
        await session.close()
        await sandbox.close()
    print(json.dumps(seen))

asyncio.run(main())
"""


def environment(place: Path) -> Path:
    """Its Python; `planted` comes from another environment's packages, `notes` from a folder with secrets beside it."""
    packages = place / "other" / "lib" / "python3" / "site-packages"
    project = place / "project"
    packages.mkdir(parents=True)
    project.mkdir()
    (packages / "planted.py").write_text("here = 17\n")
    (project / "notes.py").write_text("here = 23\n")
    (project / "answers.txt").write_text("41\n")
    venv.create(place / "mine", symlinks=True)
    python = place / "mine" / "bin" / "python"
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place / "mine")}))
    (own / "others.pth").write_text(f"{packages}\n{project}\n")
    return python


def run(python: Path, secret: Path) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[3]
    paths = {"PYTHONPATH": f"{root}:{sysconfig.get_path('purelib')}", "PATH": "/usr/bin:/bin"}
    # What a worktree's environment brings by .pth files of its own is not on PYTHONPATH.
    paths["PYTHONPATH"] += "".join(f":{path}" for path in sys.path if path.endswith("site-packages"))
    command = [python, "-c", PROGRAM, str(secret)]
    return subprocess.run(command, capture_output=True, text=True, env=paths, timeout=120)


def test_packages_that_a_pth_file_adds_are_seen_and_a_project_is_not(tmp_path: Path) -> None:
    need("namespaces")
    python = environment(tmp_path)
    done = run(python, tmp_path / "project" / "answers.txt")
    assert done.returncode == 0, done.stderr
    planted = str(tmp_path / "other" / "lib" / "python3" / "site-packages" / "planted.py")
    seen = json.loads(done.stdout)
    assert seen[:2] == [planted, "ModuleNotFoundError"]
    assert seen[2] in ("OSError", "PermissionError")
    assert seen[3] in ("FileNotFoundError", "PermissionError")
    assert seen[4] == ["notes"]
    assert seen[5:] == seen[:5]
    told = [line for line in done.stderr.splitlines() if "cannot import" in line]
    assert len(told) == 1, done.stderr  # of two sandboxes
    assert "cannot import notes, although" in told[0]
    assert f"{python} -I -m pip install notes" in told[0]
    assert "nowhere" not in done.stderr  # what nobody has is no fault of the sandbox
