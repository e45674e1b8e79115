"""Does it install from the public index and work, on every Python we claim? `check-install.py [VERSION …]`.

For each Python that is here (on the path, or one of pyenv's), without this machine's own settings: a dry run of pip
with every extra that needs no GPU; then the wheel without extras in an environment of its own, where `--version`,
`doctor` and a file in a sandbox must pass, and with transformers an evaluation of a scripted policy. A Python that is
missing is said; with CI set it is a failure.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("dev",)  # it holds train, docker, jupyter and server; vllm brings a torch of its own, and needs a GPU
# Has Python add the numbers of the problem; then says what came back.
POLICY = r"""
import re

def add(text):
    if "<|im_start|>tool" in text:
        shown = text.rpartition("<|im_start|>tool")[2]
        return "The answer is \\boxed{%s}." % re.search(r"-?\d+", shown)[0]
    asked = text.rpartition("<|im_start|>user")[2]
    return "```python\nprint(%s)\n```" % " + ".join(re.findall(r"\d+", asked))
"""


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    claimed = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_") or name == "PIP_CERT"}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        resolver = _new_pip(Path(place) / "pip", env)
        dry = ("-q", "--dry-run", "--no-cache-dir", "--use-feature=fast-deps")
        for version in sys.argv[1:] or claimed:
            python = _interpreter(version)
            if python is None:
                print(f"Python {version}: not here", flush=True)
                failed += bool(os.environ.get("CI"))
                continue
            for extras in EXTRAS:
                wanted = ["--ignore-installed", "-c", "constraints.txt", "-e", f".[{extras}]"]
                done = _run([*resolver, "--python", python, "install", *dry, *wanted], ROOT, env)
                failed += not _told(f"Python {version}, [{extras}]", "resolves", done)
            failed += not _works(python, version, Path(place) / version, env)
    return 1 if failed else 0


def _new_pip(folder: Path, env: dict[str, str]) -> list[str]:
    """A pip that resolves from what wheels say of themselves: an older one downloads CUDA's torch, 4 GB, to read it."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, env=env)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-cache-dir", "pip>=25.3"], check=True, env=env)
    return [python, "-m", "pip"]


def _works(python: str, version: str, folder: Path, env: dict[str, str]) -> bool:
    """The wheel without extras, in an environment of its own, does what needs none; then an evaluation."""
    folder.mkdir()
    (folder / "adder.py").write_text(POLICY)
    (folder / "six.py").write_text("print(6 * 7)\n")
    rows = [{"question": f"What is {a} plus {b}?", "answer": str(a + b)} for a, b in ((2, 31), (17, 5), (40, 9))]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = folder / "venv" / "bin"
    steps: list[tuple[list[str | Path], str]] = [
        ([python, "-m", "venv", folder / "venv"], ""),
        ([own / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", ROOT], ""),
        ([own / "solostream", "--version"], "solostream "),
        ([own / "solostream", "doctor"], f"Python {version}"),
        ([own / "solostream", "sandbox", "run", "fork", "six.py"], "42"),
        ([own / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "transformers", "jinja2"], ""),
        ([own / "solostream", "eval", "scripted:adder:add", "--data", "sums.jsonl", "-k", "2"], "100.0 %"),
    ]
    for command, expected in steps:
        done = _run(command, folder, env)
        if done.returncode or expected not in done.stdout:
            return _told(f"Python {version}, {Path(command[0]).name} {command[1]}", "", done, held=False)
    print(f"Python {version}, the wheel: --version, doctor, sandbox run and eval work", flush=True)
    return True


def _told(what: str, good: str, done: subprocess.CompletedProcess[str], held: bool | None = None) -> bool:
    """Print how a command went; whether it went well."""
    held = done.returncode == 0 if held is None else held
    print(f"{what}: {good if held else 'failed'}", flush=True)
    if not held:
        print(done.stdout[-3000:])
    return held


def _run(command: list, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _interpreter(version: str) -> str | None:
    """A Python of that version with pip; pyenv's own `python3.12` may be a mere sign."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for python in (shutil.which(f"python{version}"), *sorted(root.glob(f"versions/{version}.*/bin/python"))):
        if python and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
            return str(python)
    return None


if __name__ == "__main__":
    sys.exit(main())
