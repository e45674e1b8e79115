"""The `jupyter` backend: one Jupyter kernel a session on this machine, without Docker.

For notebook semantics and rich output (`Execution.display`). A kernel goes through the same confinement as a session of
the `fork` backend, in the strongest tier that the machine grants (docs/sandbox.md says what each protects from), and
answers to a guard that ends it with its host. It starts in about a second, so one waits warm.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from importlib.util import find_spec

from solostream.errors import UserError
from solostream.sandbox.fork import ForkSandbox, cgroup
from solostream.sandbox.fork.server import probe
from solostream.sandbox.jupyter.kernel import Kernel, Kernels, KernelSession, start_kernel
from solostream.sandbox.types import Claim, Limits

_TIERS = ("auto", "namespaces", "landlock")
_STARTING_MB = 1024  # address space that a kernel maps while it starts; then the launcher sets the limit exactly
_END_S = 10.0  # for the guard to reap what its kernel started


class KernelProcess:
    """The home of one kernel: its guard, in a memory cgroup where this process may make some."""

    def __init__(self) -> None:
        self._groups = cgroup.make(os.geteuid())
        self._guard: asyncio.subprocess.Process | None = None

    async def start(self) -> socket.socket:
        """Start the launcher as a child; the host's end of the socket to it. Raises SandboxError."""
        ours, theirs = socket.socketpair()
        groups = -1 if self._groups is None else os.open(self._groups, os.O_PATH | os.O_DIRECTORY)
        passed = [fd for fd in (theirs.fileno(), groups) if fd >= 0]
        try:
            self._guard = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-X", "utf8", "-m", "solostream.sandbox.jupyter.launcher", *map(str, passed)),
                env=_environment(),
                cwd="/",
                pass_fds=passed,
                start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        finally:
            theirs.close()
            if groups >= 0:
                os.close(groups)
        return ours

    async def end(self) -> None:
        """The guard ends by itself once its connection is closed."""
        guard, self._guard = self._guard, None
        if guard is not None:
            try:
                await asyncio.wait_for(guard.wait(), _END_S)
            except TimeoutError:
                guard.kill()
                await guard.wait()
        if self._groups is not None:
            cgroup.remove(self._groups)


class JupyterSandbox:
    """A local kernel for each session.

    Args:
        limits: of each session. RLIMIT_DATA and, where this process may make cgroups, a memory cgroup bound its memory.
        isolation: "namespaces", "landlock", or "auto" for the stronger one that this machine grants.

    Raises (on the first `open`): UserError when jupyter_client or ipykernel is missing, or when this machine grants
    neither tier; SandboxError when no kernel starts.
    """

    def __init__(self, *, limits: Limits | None = None, isolation: str = "auto") -> None:
        if isolation not in _TIERS:
            raise UserError(f"isolation='{isolation}' is unknown; one of {', '.join(_TIERS)}")
        self.limits = limits or Limits()
        self._asked = isolation
        self._kernels = Kernels(self._start)

    @property
    def tier(self) -> str:
        """Either "namespaces" or "landlock". Raises UserError."""
        tier, _ = probe(self._asked)
        if tier == "rlimits":
            raise UserError("this machine grants neither namespaces nor Landlock; use the 'docker-jupyter' sandbox")
        return tier

    @property
    def isolation(self) -> str:
        """The tier that this machine grants, in words. Raises SandboxError, UserError."""
        return probe(self._asked)[1]

    @property
    def claims(self) -> frozenset[Claim]:
        """Those of `fork` without `fork`; without `memory` where no memory groups can be had."""
        held = ForkSandbox(limits=self.limits, isolation=self._asked).claims - {"fork"}
        return held if "cgroup" in self.isolation else held - {"memory"}  # nobody adds up a kernel's processes

    async def open(self) -> KernelSession:
        """A session on a kernel of its own. Raises SandboxError, UserError."""
        return KernelSession(self._kernels, await self._kernels.take(), self.limits)

    async def close(self) -> None:
        """End the kernels."""
        await self._kernels.close()

    async def _start(self) -> Kernel:
        if find_spec("ipykernel") is None:
            raise UserError("the jupyter sandbox needs ipykernel: pip install 'solostream[jupyter]'")
        tier = await asyncio.to_thread(lambda: self.tier)
        confinement = {
            "isolation": tier,
            "memory_mb": self.limits.memory_mb + _STARTING_MB,
            "processes": self.limits.processes,
            "disk_mb": self.limits.disk_mb,
            "open_files": self.limits.open_files,
            "output_bytes": self.limits.output_bytes,
            "folder": "",
            "epoll": True,  # ZeroMQ's
        }
        kernel = await start_kernel(KernelProcess(), confinement, self.limits)
        kernel.isolation += "+cgroup" if cgroup.parent(os.getpid()) else ""
        return kernel


def _environment() -> dict[str, str]:
    """All that a session will find in os.environ: nothing of the host's but where Python finds its modules."""
    return {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin"]),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "LANG": "C.UTF-8",
        "HOME": "/tmp",
        "MALLOC_ARENA_MAX": "2",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
