"""The ipykernel application that `kernel_launcher` runs: sockets that the host made, and caps on all that is sent.

What is printed goes through pipes that the host reads, not through messages: so it outlives the kernel, and nothing is
late or piles up in here. The caps keep messages small; the host applies its own and trusts none of these.
"""

from __future__ import annotations

import sys
from typing import Any

import zmq
from ipykernel import kernelapp
from ipykernel.iostream import IOPubThread
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.formatters import PlainTextFormatter
from traitlets.config import Config

CHANNELS = ("shell", "iopub", "stdin", "control")  # the order of the listening sockets
_cap = 65_536  # bytes of each text, set by `build`


def build(fds: list[int], path: str, key: str, output_bytes: int) -> App:
    """An application, not yet initialized, that listens on `fds`: sockets bound to `path`-1 to `path`-4 elsewhere."""
    global _cap
    _cap = output_bytes + 1  # one more than the host keeps tells it that something was cut
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.xmode = "Plain"
    config.Application.log_level = "CRITICAL"
    config.IPKernelApp.outstream_class = None
    config.Session.key = key.encode()
    ports = {f"{name}_port": number for number, name in enumerate(CHANNELS, 1)}
    app = App(config=config, transport="ipc", ip=path, **ports)
    app.fds = fds
    return app


def _clip(text: str) -> str:
    return text[:_cap].encode(errors="replace").decode()


class Publisher(IOPubThread):
    """Without the TCP port that would collect what forks print: they print into the host's pipes, as all here do."""

    def __init__(self, socket: Any, pipe: bool = False, **options: Any) -> None:
        super().__init__(socket, pipe=False, **options)


kernelapp.IOPubThread = Publisher  # type: ignore[assignment, misc]


def mend_streams() -> None:
    """Standard streams that the code before has closed or lost come back."""
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name, None)
        if stream is None or getattr(stream, "closed", False):
            made = open(fd, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, made)
            setattr(sys, f"__{name}__", made)


class Shell(ZMQInteractiveShell):
    def ask_exit(self) -> None:
        """`exit()` ends the code, not the session."""

    def _showtraceback(self, etype: type, evalue: Any, stb: list[str]) -> None:
        stb = [_clip("\n".join(stb))]
        super()._showtraceback(etype, _clip(str(evalue)), stb)
        self._last_traceback = stb


class Kernel(IPythonKernel):
    shell_class = Shell

    async def do_execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        mend_streams()
        reply = await super().do_execute(*args, **kwargs)
        return reply | {"evalue": _clip(str(reply.get("evalue", "")))}


class Text(PlainTextFormatter):
    """The result is the repr, as with every backend; a notebook's pretty printer abbreviates."""

    def __call__(self, value: Any) -> str:
        try:
            return _clip(repr(value))
        except Exception as error:
            return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


class App(IPKernelApp):
    kernel_class = Kernel
    fds: list[int]
    shell: Any

    def _try_bind_socket(self, s: Any, port: int) -> int:
        s.setsockopt(zmq.USE_FD, self.fds[port - 1])
        s.bind(f"ipc://{self.ip}-{port}")
        return port

    def init_connection_file(self) -> None:
        """The launcher was told what such a file would say."""

    def write_connection_file(self, **kwargs: Any) -> None:
        """Nobody reads it."""

    def init_heartbeat(self) -> None:
        """The guard knows when the kernel dies."""

    def init_kernel(self) -> None:
        self.debug_shell_socket.close()  # it would try for ever to connect to a path that does not exist in here
        super().init_kernel()

    def init_shell(self) -> None:
        super().init_shell()
        formatter = self.shell.display_formatter
        formatter.formatters["text/plain"] = Text(parent=formatter)
