"""Jupyter kernels that the host does not trust, driven with jupyter_client: what `jupyter` and `docker-jupyter` share.

The host makes the four ZeroMQ channels as Unix sockets in a private folder, hands the listening ends to the kernel's
launcher, connects, and removes the folder. From then on no path leads to either side, and a connection that ends is not
made again. What arrives is capped frame by frame (ZMQ_MAXMSGSIZE), message by message (`relay`), and again by what an
`Execution` keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from solostream.errors import SandboxError, UserError
from solostream.sandbox.jupyter.output import Collector, is_plain
from solostream.sandbox.jupyter.relay import relay
from solostream.sandbox.types import CodeError, Execution, Limits

START_S = 60.0
GRACE_S = 0.3  # between the interrupt and the kill
CHANNELS = ("shell", "iopub", "stdin", "control")  # as in `kernel_app`, which only the kernel's side can import
_PIPE_BYTES = 65_536  # what Linux keeps of a pipe
_QUEUE = 64  # messages that may wait on the host's side of a channel


class Home(Protocol):
    """The process or container around a kernel and its guard."""

    async def start(self) -> socket.socket:
        """Start it; the connection to its launcher. Raises SandboxError."""
        ...

    async def end(self) -> None:
        """Kill everything in it. Idempotent."""
        ...


class Kernel:
    """One running kernel."""

    def __init__(
        self, client: Any, home: Home, guard: _Connection, outputs: dict[str, int], isolation: str, limits: Limits
    ) -> None:
        self.isolation = isolation
        self.ended = guard.ended
        self._client = client
        self._home = home
        self._connection = guard
        self._outputs = outputs  # "stdout", "stderr" -> the pipe that it comes through
        self._limits = limits
        self._running: tuple[str, Collector] | None = None
        self._listener = asyncio.create_task(self._listen())
        for name, fd in outputs.items():
            asyncio.get_running_loop().add_reader(fd, self._read, name, fd)

    async def hear(self) -> None:
        """Wait until both channels are connected. Raises SandboxError."""
        for _ in range(round(START_S / 0.05)):
            probe = Collector(self._limits)
            message = self._client.session.msg("kernel_info_request")
            self._running = (message["header"]["msg_id"], probe)
            self._client.shell_channel.send(message)
            # The first subscriptions may miss messages; a later probe is heard.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reply(*self._running), 0.05)
                return
            if self.ended.done():
                break
        raise SandboxError("the kernel does not answer")

    async def run(self, code: str, timeout: float) -> Execution:
        """Interrupt after `timeout` seconds, kill 0.3 s later. The kernel is usable after it when `state_kept` is."""
        try:
            code.encode()
        except UnicodeEncodeError as error:  # a lone surrogate, which no message can carry
            return Execution(status="error", error=CodeError("UnicodeEncodeError", str(error), ""))
        message = self._client.session.msg(
            "execute_request", {"code": code, "silent": False, "allow_stdin": False, "stop_on_error": False}
        )
        collector = Collector(self._limits)
        self._running = (message["header"]["msg_id"], collector)
        start = time.monotonic()
        reply = asyncio.create_task(self._reply(*self._running))
        try:
            self._client.shell_channel.send(message)
            await asyncio.wait([reply, self.ended], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            late = not reply.done() and not self.ended.done()
            if late:
                self._connection.interrupt()
                await asyncio.wait([reply, self.ended], timeout=GRACE_S, return_when=asyncio.FIRST_COMPLETED)
            for name, fd in self._outputs.items():
                self._read(name, fd)  # a pipe holds no more than one read takes
            kept = reply.done() and not self.ended.done()
            if not kept:
                await self.end()
        except BaseException:
            # Cancelled in the middle of a call: what runs there must neither go on nor print into the next one.
            await asyncio.shield(self.end())
            raise
        finally:
            reply.cancel()
            self._running = None
        return collector.execution(time.monotonic() - start, timed_out=late, state_kept=kept)

    async def end(self) -> None:
        """Kill the kernel and whatever it started. Idempotent."""
        self._listener.cancel()
        self._client.stop_channels()
        self._connection.close()
        for fd in self._outputs.values():
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self._outputs = {}
        await self._home.end()
        await self.ended

    def _read(self, name: str, fd: int) -> None:
        try:
            piece = os.read(fd, _PIPE_BYTES)
        except BlockingIOError:
            return
        if not piece:
            asyncio.get_running_loop().remove_reader(fd)
        elif self._running:
            self._running[1].output(name, piece)

    async def _reply(self, call: str, collector: Collector) -> None:
        while True:
            message = await self._message(self._client.shell_channel)
            if message["parent_header"].get("msg_id") == call:
                collector.reply(message["content"])
                break
        await collector.idle.wait()

    async def _listen(self) -> None:
        """Read the output channel at all times: threads print between calls, and nothing may pile up."""
        while True:
            message = await self._message(self._client.iopub_channel)
            await asyncio.sleep(0)
            if self._running and message["parent_header"].get("msg_id") == self._running[0]:
                self._running[1].add(message["msg_type"], message["content"])

    async def _message(self, channel: Any) -> dict[str, Any]:
        while True:
            frames = await channel.socket.recv_multipart()
            with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, RecursionError):  # forged: not heard
                if all(map(is_plain, frames)):
                    session = self._client.session
                    message: dict[str, Any] = session.deserialize(session.feed_identities(frames)[1])
                    if isinstance(message["content"], dict) and isinstance(message["parent_header"], dict):
                        return message
            await asyncio.sleep(0)  # whatever waits in the channel, others have their turn


class _Connection:
    """The connection to a kernel's guard: interrupts go out, the news of the kernel's end comes in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.ended: asyncio.Task[None]

    async def ready(self) -> str:
        """The isolation in force, once the kernel listens. Raises SandboxError."""
        try:
            line = await asyncio.wait_for(self._reader.readline(), START_S)
            said = json.loads(line) if line else {}
        except (TimeoutError, ValueError, OSError) as error:
            raise SandboxError(f"the kernel does not start: {type(error).__name__}") from None
        if "ready" not in said:
            raise SandboxError(f"the kernel does not start: {str(said.get('failed', 'it ended'))[:500]}")
        self.ended = asyncio.create_task(self._wait())
        return str(said["ready"])[:200]

    async def _wait(self) -> None:
        with contextlib.suppress(OSError):
            while await self._reader.read(4096):
                pass

    def interrupt(self) -> None:
        self._writer.write(b"i")

    def close(self) -> None:
        self._writer.close()


async def start_kernel(home: Home, confinement: dict[str, Any], limits: Limits) -> Kernel:
    """Raises SandboxError, or UserError when jupyter_client is missing."""
    folder = Path(tempfile.mkdtemp(prefix="solostream-"))  # 0700: no other user of this host comes in
    path, key = str(folder / "k"), secrets.token_hex(16)
    client = _client(path, key, limits)
    settings = {
        "path": path,
        "key": key,
        "output_bytes": limits.output_bytes,
        "memory_mb": limits.memory_mb,
        "confinement": confinement,
    }
    outputs: dict[str, int] = {}
    theirs: list[int] = []
    connection: socket.socket | _Connection | None = None
    kernel: Kernel | None = None
    relays: list[asyncio.Server] = []
    try:
        theirs += [_listen(f"{path}-{number}") for number in range(1, len(CHANNELS) + 1)]
        for name in ("stdout", "stderr"):
            outputs[name], write = os.pipe()
            os.set_blocking(outputs[name], False)
            os.fchmod(write, 0o622)  # /dev/stdout is opened by the session's user, who is not this one
            theirs.append(write)
        connection = await home.start()
        socket.send_fds(connection, [json.dumps(settings).encode()], theirs)
        connection.setblocking(False)
        connection = guard = _Connection(*await asyncio.open_unix_connection(sock=connection))
        isolation = await guard.ready()
        for number in range(1, len(CHANNELS) + 1):
            relays.append(await relay(f"{path}h-{number}", f"{path}-{number}", _message_bytes(limits)))
        client.shell_channel.start()
        client.iopub_channel.start()
        kernel = Kernel(client, home, guard, outputs, isolation, limits)
        await kernel.hear()
        return kernel
    except BaseException as error:
        if kernel is not None:
            await asyncio.shield(kernel.end())
        else:
            client.stop_channels()
            if connection is not None:
                connection.close()
            for fd in outputs.values():
                os.close(fd)
            await asyncio.shield(home.end())
        if isinstance(error, OSError):
            raise SandboxError(f"the kernel does not start: {error}") from None
        raise
    finally:
        for server in relays:
            server.close()
        for fd in theirs:
            os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)


def _listen(path: str) -> int:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        return listener.detach()


def _message_bytes(limits: Limits) -> int:
    """The largest message that an honest kernel sends."""
    return 12 * limits.output_bytes + (4 << 20)


def _client(path: str, key: str, limits: Limits) -> Any:
    """A jupyter_client whose sockets are capped and never connect a second time; its channels are not started."""
    try:
        import zmq.asyncio
        from jupyter_client.asynchronous.client import AsyncKernelClient
    except ImportError:
        raise UserError("notebook backends need jupyter_client: pip install 'solostream[jupyter]'") from None
    context = zmq.asyncio.Context.instance()
    context.setsockopt(zmq.MAXMSGSIZE, _message_bytes(limits))
    context.setsockopt(zmq.RCVHWM, _QUEUE)
    context.setsockopt(zmq.RECONNECT_IVL, -1)
    context.setsockopt(zmq.LINGER, 0)
    client = AsyncKernelClient(context=context)
    info: Any = {f"{name}_port": number for number, name in enumerate(CHANNELS, 1)}
    client.load_connection_info(
        info | {"transport": "ipc", "ip": f"{path}h", "key": key, "signature_scheme": "hmac-sha256"}
    )
    return client


class Kernels:
    """The kernels of one sandbox: those in use, and a warm one for whoever comes next."""

    def __init__(self, start: Callable[[], Awaitable[Kernel]]) -> None:
        self._start = start
        self._warm: asyncio.Task[Kernel] | None = None
        self._all: set[Kernel] = set()
        self._closed = False

    async def take(self) -> Kernel:
        """Raises SandboxError; UserError when something is not installed."""
        if self._closed:
            raise SandboxError("the sandbox is closed")
        warm, self._warm = self._warm, None
        kernel = None
        if warm is not None:
            with contextlib.suppress(SandboxError):
                kernel = await warm
        if kernel is None or kernel.ended.done():
            kernel = await self._start()
        self._all = {k for k in self._all if not k.ended.done()} | {kernel}
        if self._closed:
            await kernel.end()
            raise SandboxError("the sandbox is closed")
        if self._warm is None:
            self._warm = asyncio.ensure_future(self._start())
        return kernel

    async def close(self) -> None:
        """End the warm kernel and the one that is starting."""
        self._closed = True
        warm, self._warm = self._warm, None
        if warm is not None:
            with contextlib.suppress(SandboxError, UserError):
                self._all.add(await warm)
        kernels, self._all = self._all, set()
        await asyncio.gather(*(kernel.end() for kernel in kernels))


class KernelSession:
    """One interpreter: a kernel, and after a kill the next one."""

    def __init__(self, kernels: Kernels, kernel: Kernel, limits: Limits) -> None:
        self.isolation = kernel.isolation
        self._kernels = kernels
        self._kernel = kernel
        self._limits = limits
        self._turn = asyncio.Lock()
        self._closed = False

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        """As `Session.run`. A kernel that died is replaced: the state is lost, and `state_kept` says so."""
        timeout = self._limits.seconds(timeout)
        async with self._turn:
            if self._closed:
                raise SandboxError("the session is closed")
            lost = self._kernel.ended.done()  # it died between calls
            if lost:
                await self._kernel.end()
                self._kernel = await self._kernels.take()
            seen = await self._kernel.run(code, timeout)
            if not seen.state_kept and not self._closed:
                self._kernel = await self._kernels.take()
            return replace(seen, state_kept=False) if lost else seen

    async def close(self) -> None:
        """End the kernel. May be called twice."""
        if not self._closed:
            self._closed = True
            await self._kernel.end()
