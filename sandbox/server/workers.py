"""One port, one or several worker processes.

The supervisor binds the port, so that a port in use is told at once, and starts the workers, which inherit the
listening socket and get their settings (with the token) as one line on standard input. That pipe stays open: when it
closes the supervisor is gone, killed or not, and the worker shuts down. A worker that dies is started again; calls for
its lost sessions get 404.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from solostream import registry
from solostream.errors import SandboxError, UserError
from solostream.sandbox.server.app import create_app
from solostream.sandbox.server.connection import TimedConnection
from solostream.sandbox.server.peers import Peers
from solostream.sandbox.server.settings import Settings
from solostream.sandbox.spec import find, open_sandbox


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code.

    Raises UserError when the port is taken, or there is no such sandbox.
    """
    registry.load("sandbox", find(settings.sandbox))  # said before it claims to serve
    listener = bind(settings.host, settings.port)
    with listener:
        host, port, *_ = listener.getsockname()
        where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        open_to = "everyone" if not settings.token else "holders of the token"
        print(f"solostream: {settings.sandbox} sandbox at {where}, open to {open_to}", file=sys.stderr, flush=True)
        if settings.workers == 1:
            return _work(settings, listener, Peers("0"), None)
        return _supervise(settings, listener)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}; choose another --port or --host") from error
    return listener


def _work(settings: Settings, listener: socket.socket, peers: Peers, own: str | None) -> int:
    """One worker, until it is told to stop."""
    sandbox = open_sandbox(settings.sandbox, limits=settings.limits)  # a bad spec is told before anything starts
    grace = int(settings.grace_s)
    config = uvicorn.Config(
        _no_app, http=TimedConnection, log_level="warning", timeout_graceful_shutdown=grace, server_header=False
    )
    server = uvicorn.Server(config)
    app = config.app = create_app(settings, lambda: sandbox, peers, server)
    sockets = [listener]
    if own is not None:
        local = socket.socket(socket.AF_UNIX)
        local.bind(own)
        local.listen(2048)
        sockets.append(local)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again once it has shut down
        signal.signal(number, lambda *_: None)
    server.run(sockets=sockets)
    if app.state.failure is not None:
        raise app.state.failure
    return 0


@dataclass(slots=True)
class _Worker:
    """One child process, and how to start it again."""

    settings: Settings
    listener: socket.socket
    name: str
    folder: str
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        own = Path(self.folder, self.name)
        own.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "solostream.sandbox.server.workers"],
            stdin=subprocess.PIPE,
            pass_fds=[self.listener.fileno()],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": f"{self.folder}/metrics"},
            start_new_session=True,  # ctrl-c reaches the supervisor only, which tells the workers
        )
        others = {str(n): f"{self.folder}/{n}" for n in range(self.settings.workers) if str(n) != self.name}
        job = {"settings": self.settings.to_dict(), "fd": self.listener.fileno(), "name": self.name}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**job, "own": str(own), "others": others}).encode() + b"\n")
        self.process.stdin.flush()

    def watch(self) -> None:
        """Start it again if something killed it. Raises SandboxError when it gave up by itself."""
        if self.process.poll() is None:
            return
        for gauge in Path(self.folder, "metrics").glob(f"gauge_live*_{self.process.pid}.db"):
            gauge.unlink()  # its counters still count
        if self.process.returncode >= 0:
            raise SandboxError(f"worker {self.name} ended with exit code {self.process.returncode}; it said why above")
        print(f"solostream: worker {self.name} ended and is started again", file=sys.stderr, flush=True)
        self.start()

    def end(self, deadline: float) -> None:
        try:
            self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


async def _no_app(*_: object) -> None:
    """Stands in while the server and its application, which know each other, are made."""


def _supervise(settings: Settings, listener: socket.socket) -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="solostream-") as folder:
        Path(folder, "metrics").mkdir()
        workers = [_Worker(settings, listener, str(n), folder) for n in range(settings.workers)]
        started = []
        try:
            for worker in workers:
                worker.start()
                started.append(worker)
            while not stop.wait(0.2):
                for worker in workers:
                    worker.watch()
        finally:
            for worker in started:
                worker.process.terminate()
            deadline = time.monotonic() + settings.grace_s + 10
            for worker in started:
                worker.end(deadline)
    return 0


def _stop_with_supervisor() -> None:
    # Not by `sys.stdin`, whose lock this thread would hold when the interpreter ends.
    while os.read(0, 1024):  # returns nothing when the supervisor's end of the pipe is closed
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """A worker of `_supervise`."""
    job = json.loads(sys.stdin.buffer.readline())
    settings = Settings.from_dict(job["settings"])
    threading.Thread(target=_stop_with_supervisor, daemon=True).start()
    try:
        with socket.socket(fileno=job["fd"]) as listener:
            return _work(settings, listener, Peers(job["name"], job["others"], settings.token), job["own"])
    except (UserError, SandboxError) as error:
        print(f"solostream: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
