"""Sandboxes in containers. The `docker` library is imported when the first session opens, not with this package."""

from solostream.sandbox.docker.jupyter import DockerJupyterSandbox
from solostream.sandbox.docker.sandbox import DockerSandbox

__all__ = ["DockerJupyterSandbox", "DockerSandbox"]
