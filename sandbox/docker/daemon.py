"""The little of Docker's API that the backends use. Blocking: call it through `asyncio.to_thread`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from solostream.errors import SandboxError, UserError
from solostream.sandbox.docker import hardening
from solostream.sandbox.docker.hardening import Container

if TYPE_CHECKING:
    import docker

_HEADER = struct.Struct(">BxxxI")  # stream number and length, before each piece of an attached container's output


class Daemon:
    """A connection to Docker's daemon. Opening it removes what dead owners left behind.

    Raises: UserError when the library, the daemon or the image is missing, with the command that provides it.
    """

    def __init__(self, container: Container) -> None:
        try:
            import docker
            from docker.errors import APIError, DockerException, ImageNotFound
        except ImportError:
            raise UserError("the docker backends need the docker library: pip install 'solostream[docker]'") from None
        self.container = container
        self._gone = APIError
        try:
            self.client: docker.APIClient = docker.APIClient(
                **docker.utils.kwargs_from_env(), version="auto", timeout=60
            )
        except DockerException as error:
            raise UserError(f"no Docker daemon answers; start one: scripts/start-dockerd.sh ({error})") from None
        self._podman = any("Podman" in part["Name"] for part in self.client.version().get("Components", ()))
        try:
            self.client.inspect_image(container.image)
        except ImageNotFound:
            raise UserError(
                f"the Docker image '{container.image}' is missing; build it: scripts/build-image-offline.sh"
                " or docker build -t solostream-sandbox -f sandbox/image/Dockerfile ."
            ) from None
        self._reap()

    def create(self, command: list[str], *, binds: list[str], stdin: bool = False, **host: Any) -> str:
        """A container that has not started yet: its id. `host` is added to the hardened host configuration."""
        extra = {name: host.pop(name) for name in list(host) if name[0].isupper()}
        config = self.client.create_host_config(**hardening.host_config(self.container) | host, binds=binds)
        with self._spelt(config):
            made = self.client.create_container(
                self.container.image,
                command,
                labels=hardening.owner_labels(),
                host_config=config | extra,
                stdin_open=stdin,
                user="65534:65534",
                working_dir="/tmp",
            )
        return str(made["Id"])

    @contextlib.contextmanager
    def _spelt(self, config: dict[str, Any]) -> Iterator[None]:
        """Podman's service reads a seccomp profile from a file, and knows no limit on inodes."""
        if not self._podman:
            yield
            return
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
            for number, option in enumerate(config["SecurityOpt"]):
                if option.startswith("seccomp="):
                    file.write(option.removeprefix("seccomp="))
                    file.flush()
                    config["SecurityOpt"][number] = f"seccomp={file.name}"
            tmpfs = config["Tmpfs"]
            config["Tmpfs"] = {path: options.partition(",nr_inodes")[0] for path, options in tmpfs.items()}
            yield

    def start(self, name: str, *, stdin: bool = False) -> socket.socket:
        """Start a created container. The socket carries its output and ends when it does; with `stdin` it feeds it, and
        the container's input ends when this process does.
        """
        params = {"stdin": int(stdin), "stdout": 1, "stderr": 1, "stream": 1}
        attached = self.client.attach_socket(name, params=params)
        # A copy: the library's own is closed only when a cycle of its objects happens to be collected.
        library: socket.socket = attached._sock
        stream = library.dup()
        attached._response.close()
        library.close()
        try:
            self.client.start(name)
        except self._gone as error:
            stream.close()
            self.remove(name)
            raise SandboxError(f"the container does not start: {error.explanation}") from None
        stream.setblocking(False)
        return stream

    def interrupt(self, name: str) -> None:
        """Send SIGINT to a container; one that has ended meanwhile is passed over."""
        with contextlib.suppress(self._gone):  # it has ended meanwhile
            self.client.kill(name, "SIGINT")

    def remove(self, name: str) -> None:
        """Kill and remove. A container that is gone or going is as good."""
        with contextlib.suppress(self._gone):
            self.client.remove_container(name, force=True, v=True)

    def close(self) -> None:
        """Give the connections to the daemon back."""
        self.client.close()

    def _reap(self) -> None:
        for found in self.client.containers(all=True, filters={"label": hardening.LABEL}):
            if hardening.owner_is_dead(found["Labels"]):
                self.remove(found["Id"])


async def log_tail(stream: socket.socket, size: int = 2000) -> str:
    """Wait until the container ends; the end of what it wrote. Closes the stream."""
    loop = asyncio.get_running_loop()
    heard = b""
    with stream, contextlib.suppress(OSError):
        while piece := await loop.sock_recv(stream, 65536):
            heard = (heard + piece)[-size - 4096 :]
    return _plain(heard)[-size:].strip()


def _plain(heard: bytes) -> str:
    """Without the headers; a beginning that was cut off in the middle of a piece is kept as it is."""
    text = b""
    while len(heard) >= _HEADER.size:
        stream, length = _HEADER.unpack_from(heard)
        if stream > 2:
            break
        text += heard[_HEADER.size : _HEADER.size + length]
        heard = heard[_HEADER.size + length :]
    return (text or heard).decode(errors="replace")
