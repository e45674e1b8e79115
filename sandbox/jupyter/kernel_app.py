"""The ipykernel application that `kernel_launcher` runs: sockets that the host made, and caps on all that is sent.

What is printed goes through pipes that the host reads, not through messages: so it outlives the kernel, and nothing is
late or piles up in here. The caps keep messages small; the host applies its own and trusts none of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import subprocess
import sys
import warnings
from typing import Any

import zmq
from ipykernel import kernelapp
from ipykernel.iostream import IOPubThread
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.formatters import PlainTextFormatter
from IPython.utils.text import SList
from traitlets.config import Config
from zmq.utils import garbage

from solostream.sandbox.fork.child import cell

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
    app = App.instance(config=config, transport="ipc", ip=path, **ports)  # magics ask for the application by this
    app.fds = fds
    inspect.getfile = cell._file_of  # type: ignore[assignment]
    sys.set_int_max_str_digits(0)
    sys.dont_write_bytecode = True
    sys.path.insert(0, "")  # what lies in the working folder can be imported
    warnings.filterwarnings("ignore", "To exit: use")
    return app


def _clip(text: str) -> str:
    return text[:_cap].encode(errors="replace").decode()


class Publisher(IOPubThread):
    """Without the TCP port that would collect what forks print: they print into the host's pipes, as all here do."""

    def __init__(self, socket: Any, pipe: bool = False, **options: Any) -> None:
        super().__init__(socket, pipe=False, **options)
        self._home = os.getpid()

    def _really_send(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        if os.getpid() == self._home:  # a fork of the kernel has no sockets that work
            super()._really_send(msg, *args, **kwargs)


kernelapp.IOPubThread = Publisher  # type: ignore[assignment, attr-defined]  # what it imports, replaced


def repair_streams() -> None:
    """Standard streams that the code before has closed or lost come back."""
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name, None)
        if stream is None or getattr(stream, "closed", False):
            made = open(fd, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, made)
            setattr(sys, f"__{name}__", made)


class CellShell(ZMQInteractiveShell):
    """IPython's, with what makes a cell mean what it means with every backend."""

    home = os.getpid()
    left = False  # the code left by `sys.exit()`: no error
    _policy = asyncio.DefaultEventLoopPolicy()  # the code's own loop, not the one that the kernel runs on

    def ask_exit(self) -> None:
        """`exit()` ends the code, not the session."""

    def run_cell(self, *args: Any, **kwargs: Any) -> Any:
        """Without the kernel's running loop, so that `asyncio.run` works. The child of a fork ends with its cell."""
        self.home = os.getpid()
        with contextlib.suppress(OSError):  # a folder that is gone
            sys.path_importer_cache.pop(os.getcwd(), None)  # a module may have been written since it was listed
        loop, policy = asyncio._get_running_loop(), asyncio.get_event_loop_policy()
        asyncio._set_running_loop(None)
        asyncio.set_event_loop_policy(self._policy)
        try:
            result = super().run_cell(*args, **kwargs)
        finally:
            self._policy = asyncio.get_event_loop_policy()  # type: ignore[assignment]
            asyncio.set_event_loop_policy(policy)
            asyncio._set_running_loop(loop)
        if os.getpid() != self.home:
            sys.stdout.flush()
            os._exit(_exit_code(result.error_before_exec or result.error_in_exec))
        return result

    def system_piped(self, cmd: str) -> None:
        """`!command`: a session has no terminals, so it prints where the code prints."""
        sys.stdout.flush()
        self.user_ns["_exit_code"] = subprocess.call(self.var_expand(cmd, depth=1), shell=True)

    system = system_piped

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> Any:
        """`lines = !command`."""
        command = self.var_expand(cmd, depth=depth + 1)
        done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text = done.stdout.decode(errors="replace")
        return SList(text.splitlines()) if split else text

    def _showtraceback(self, etype: type, evalue: Any, stb: list[str]) -> None:
        self.left = etype is SystemExit and evalue.code in (None, 0)
        stb = [_clip("\n".join(stb))]
        if os.getpid() != self.home:  # the child of a fork has nobody to tell
            if etype is not SystemExit:
                print(stb[0], file=sys.stderr, flush=True)
            elif not isinstance(evalue.code, int | None):
                print(evalue.code, file=sys.stderr, flush=True)
            return
        super()._showtraceback(etype, _clip(str(evalue)), stb)
        self._last_traceback = stb


def _exit_code(error: BaseException | None) -> int:
    if isinstance(error, SystemExit):
        return error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)
    return int(error is not None)


class CellKernel(IPythonKernel):
    """IPython's, with `CellShell`, capped replies and no standard input."""

    shell_class = CellShell

    shell: Any

    async def do_execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """One request. `sys.exit()` is no error; an error's text is capped."""
        repair_streams()
        self.shell.left = False
        reply: dict[str, Any] = await super().do_execute(*args, **kwargs)
        if self.shell.left:
            return reply | {"status": "ok"}
        return reply | {"evalue": _clip(str(reply.get("evalue", "")))}

    def raw_input(self, prompt: str = "") -> str:
        """Standard input is at its end, as it is with every backend."""
        sys.stdout.write(str(prompt))
        sys.stdout.flush()
        raise EOFError("EOF when reading a line")

    def getpass(self, prompt: str = "", stream: Any = None, **_: Any) -> str:
        """As `raw_input`: there is nobody to ask."""
        return self.raw_input()


class Text(PlainTextFormatter):
    """The result is the repr, as with every backend; a notebook's pretty printer abbreviates."""

    def __call__(self, value: Any) -> str:
        """The repr, capped; what it raises instead where it raises."""
        try:
            return _clip(repr(value))
        except Exception as error:
            return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


def finish_contexts() -> None:
    """Have every ZeroMQ context that the kernel will need make its epolls now: later there are none to be had. The
    kernel's own has sockets by then; pyzmq's has one only once a large message is sent.
    """
    garbage.gc.context.socket(zmq.PAIR).close()


class App(IPKernelApp):
    """ipykernel's application on the host's sockets, without files, heartbeat and the debugger's socket."""

    kernel_class = CellKernel
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
        """Without the debugger's socket."""
        self.debug_shell_socket.close()  # it would try for ever to connect to a path that does not exist in here
        super().init_kernel()

    def init_shell(self) -> None:
        """With `Text` as the plain form of results."""
        super().init_shell()
        formatter = self.shell.display_formatter
        formatter.formatters["text/plain"] = Text(parent=formatter)
