"""Do our extras install from the public index, on every Python we claim? `python scripts/check-install.py [VERSION …]`.

A dry run of pip, without this machine's own settings, with each Python that is here (on the path, or one of pyenv's).
A Python that is missing is said; with CI set it is a failure.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = ("dev",)  # it holds train, docker, jupyter and server; vllm brings a torch of its own, and needs a GPU


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    claimed = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_") or name == "PIP_CERT"}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    failed = 0
    for version in sys.argv[1:] or claimed:
        python = _interpreter(version)
        if python is None:
            print(f"Python {version}: not here", flush=True)
            failed += bool(os.environ.get("CI"))
            continue
        for extras in EXTRAS:
            wanted = ["--ignore-installed", "-c", "constraints.txt", "-e", f".[{extras}]"]
            done = subprocess.run(
                [python, "-m", "pip", "install", "-q", "--dry-run", *wanted], env=env, cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            failed += bool(done.returncode)
            print(f"Python {version}, [{extras}]: {'failed' if done.returncode else 'resolves'}", flush=True)
            if done.returncode:
                print(done.stdout[-3000:])
    return 1 if failed else 0


def _interpreter(version: str) -> str | None:
    """A Python of that version with pip; pyenv's own `python3.12` may be a mere sign."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for python in (shutil.which(f"python{version}"), *sorted(root.glob(f"versions/{version}.*/bin/python"))):
        if python and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
            return str(python)
    return None


if __name__ == "__main__":
    sys.exit(main())
