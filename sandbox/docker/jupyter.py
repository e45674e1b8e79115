"""The `docker-jupyter` backend: one Jupyter kernel a session, each in a container of its own.

For notebook semantics and rich output (`Execution.display`). The container is the boundary (see `hardening`); Landlock,
seccomp and rlimits hold inside it. A kernel starts in about a second, so one waits warm.
"""

from __future__ import annotations

import asyncio
import socket

from solostream.sandbox.docker.connection import connect
from solostream.sandbox.docker.daemon import Daemon
from solostream.sandbox.docker.hardening import IMAGE, Container
from solostream.sandbox.jupyter.kernel import Kernel, Kernels, KernelSession, start_kernel
from solostream.sandbox.types import Claim, Limits

_OWN_MB = 160  # what kernel, guard and container need besides what the session may use
_OWN_PROCESSES = 7  # an init, the guard, the kernel's own threads


class KernelContainer:
    """The home of one kernel."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._name: str | None = None

    async def start(self) -> socket.socket:
        """Start the container with the launcher; the connection to it. Raises SandboxError."""
        self._name, connection = await connect(self._daemon, "solostream.sandbox.jupyter.launcher")
        return connection

    async def end(self) -> None:
        """Remove the container. May be called twice."""
        name, self._name = self._name, None
        if name is not None:
            await asyncio.to_thread(self._daemon.remove, name)


class DockerJupyterSandbox:
    """A kernel in a container for each session.

    Args:
        limits: of each session; memory, processes and disk are also the container's.
        image: the image of the containers.
        runtime: Docker's runtime; None is the daemon's default. gVisor cannot run kernels: it passes no sockets in.
        cpus: of each container; None is all of the machine's.

    Raises (on the first `open`): UserError when Docker, the image or jupyter_client is missing, SandboxError when no
    kernel starts.
    """

    claims: frozenset[Claim] = frozenset(
        {"state", "filesystem", "network", "sessions", "host", "memory", "processes", "disk", "environment", "orphans"}
    )

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        image: str = IMAGE,
        runtime: str | None = None,
        cpus: float | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.isolation = "container+seccomp+landlock+rlimits"
        self._container = Container(
            image=image,
            runtime=runtime,
            cpus=cpus,
            memory_mb=self.limits.memory_mb + self.limits.disk_mb + _OWN_MB,
            processes=self.limits.processes + _OWN_PROCESSES,
            disk_mb=self.limits.disk_mb,
        )
        self._daemon: Daemon | None = None
        self._connecting = asyncio.Lock()
        self._kernels = Kernels(self._start)

    async def open(self) -> KernelSession:
        """A session on a kernel of its own, in a container of its own. Raises SandboxError, UserError."""
        kernel = await self._kernels.take()
        self.isolation = kernel.isolation
        return KernelSession(self._kernels, kernel, self.limits)

    async def close(self) -> None:
        """End the kernels, then leave the daemon."""
        await self._kernels.close()
        if self._daemon is not None:
            daemon, self._daemon = self._daemon, None
            await asyncio.to_thread(daemon.close)

    async def _start(self) -> Kernel:
        async with self._connecting:
            if self._daemon is None:
                self._daemon = await asyncio.to_thread(Daemon, self._container)
        confinement = {
            "isolation": "landlock",
            "memory_mb": self.limits.memory_mb + 1024,  # until the kernel runs; then the launcher sets it exactly
            "processes": self.limits.processes,
            "disk_mb": self.limits.disk_mb,
            "open_files": self.limits.open_files,
            "output_bytes": self.limits.output_bytes,
            "folder": "/tmp",
            # The end of the container is the end of all that is in it: leaving the process group is allowed.
            "contained": True,
            "epoll": True,  # ZeroMQ's
        }
        kernel = await start_kernel(KernelContainer(self._daemon), confinement, self.limits)
        kernel.isolation = "container+" + kernel.isolation
        return kernel
