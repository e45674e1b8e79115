"""Sandboxes in containers. The `docker` library is imported when the first session opens, not with this package."""

from sandbox.docker.jupyter import DockerJupyterSandbox
from sandbox.docker.sandbox import DockerSandbox

__all__ = ["DockerJupyterSandbox", "DockerSandbox"]
