"""One session's process, seen from the host: a socket, two pipes and a pidfd.

Everything that comes from the process is bounded before it is read, and believed only as far as it concerns the
process itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from dataclasses import replace

from solostream.errors import SandboxError
from solostream.sandbox.fork.channel import readable, receive
from solostream.sandbox.fork.child import wire
from solostream.sandbox.fork.family import Family, branch, end_group
from solostream.sandbox.fork.server import ForkServer
from solostream.sandbox.fork.streams import Streams, sealed, text
from solostream.sandbox.types import CodeError, Execution, Status

_INTERRUPT_S = 0.3  # between SIGINT and SIGKILL
_ROLLBACK_S = 5.0  # for the kernel to take the runner down
_OPEN_S = 60.0  # a session that takes longer to come is an infrastructure failure
_DEATH_S = 30.0
_PIECE_S = 10.0  # for each further frame of a reply


class Process:
    """Born confined and ready; dies once."""

    def __init__(self, server: ForkServer, channel: socket.socket, pidfd: int, streams: Streams) -> None:
        self.isolation = server.isolation
        self.dead = False
        self._server, self._channel, self._pidfd, self._streams = server, channel, pidfd, streams
        self._number = 0  # by which the fork server knows it
        self._family: Family | None = None  # once it has been copied, or is a copy
        self._copied = False
        self._running = self._released = False

    @classmethod
    async def take(cls, server: ForkServer, room: int) -> Process:
        """The next session of the pool; its texts are cut at `room` bytes. Raises SandboxError."""
        with server.ask() as answer:
            if not await readable(answer.fileno(), _OPEN_S):
                raise SandboxError(f"the fork server gave no session within {_OPEN_S:.0f} s")
            word, fds, _, _ = socket.recv_fds(answer, wire.PACKET, 2)
        if len(fds) != 2:
            for fd in fds:
                os.close(fd)
            if word[:1] == wire.FAILED:
                raise SandboxError(f"the kernel refused one more session: {word[1:].decode(errors='replace')}")
            died = not word and await _dies(server)
            raise SandboxError("the fork server died" if died else "out of descriptors; raise `ulimit -n`")
        channel = socket.socket(fileno=fds[0])
        channel.setblocking(False)
        try:
            process = cls(server, channel, fds[1], Streams(room))
            (process._number,) = wire.NUMBER.unpack(word[1:])
        except BaseException:
            channel.close()  # the session's end
            os.close(fds[1])
            raise
        try:
            with contextlib.suppress(OSError):  # it died: the next lines say so
                process._streams.give(channel)
            first = await receive(channel, _OPEN_S)
            if first != wire.READY:
                why = first[1:].decode(errors="replace") if first and first[:1] == wire.FAILED else "it died"
                raise SandboxError(f"a session could not be confined: {why}")
        except BaseException:
            await asyncio.shield(process.kill())
            raise
        return process

    async def fork(self, room: int) -> Process:
        """A live copy, variables and all. Raises SandboxError."""
        if self._family is None:
            self._family = Family(self._server, self._number, self._channel)
        self._family.living += 1
        try:
            channel, pidfd = await branch(self._channel, self._pidfd)
        except BaseException:
            await self._family.leave()
            raise
        try:
            process = type(self)(self._server, channel, pidfd, Streams(room))
        except BaseException:
            channel.close()
            os.close(pidfd)
            await self._family.leave()
            raise
        process._family, process._copied, process._number = self._family, True, self._number
        try:
            process._streams.give(channel)
        except OSError as error:
            await asyncio.shield(process.kill())
            raise SandboxError(f"the copy of a session died at once: {error}") from error
        return process

    async def run(self, code: str, timeout: float, room: int, snapshot: bool) -> Execution:
        """One call; texts are cut at `room` bytes. Raises SandboxError when the fork server died."""
        source = code.encode("utf-8", "surrogatepass")
        if len(source) > wire.MAX_CODE:
            message = f"the code has {len(source)} bytes, more than {wire.MAX_CODE}"
            return Execution(status="error", error=CodeError("ValueError", message, ""))
        start = time.monotonic()
        self._running = True
        self._streams.start()
        try:
            reply, kept, timed_out = await self._call(source, timeout, room, snapshot)
            duration = time.monotonic() - start
        finally:
            (stdout, stdout_cut), (stderr, stderr_cut) = self._streams.stop()
            self._running = False
            if self.dead:
                self._release()
        if timed_out:
            trace = reply.error.traceback if reply.error else ""
            late = CodeError("TimeoutError", f"no result after {timeout:g} s", trace)
            reply = replace(reply, status="timeout", error=late)
        return replace(
            reply,
            stdout=stdout,
            stderr=stderr,
            stdout_truncated=stdout_cut,
            stderr_truncated=stderr_cut,
            duration_s=duration,
            state_kept=kept,
        )

    async def _call(self, source: bytes, timeout: float, room: int, snapshot: bool) -> tuple[Execution, bool, bool]:
        """The session's reply or its death; whether the state was kept; whether the time was over."""
        nonce = os.urandom(wire.NONCE)
        self._ask(nonce, source)
        answer, timed_out = await self._answer(nonce, timeout), False
        if answer is None:
            timed_out = True
            answer = await self._stop(nonce, snapshot)
        if answer[:1] == wire.REPLY:
            reply = await self._reply(answer, room)
            if reply is not None:
                return reply, True, timed_out
            answer = b"?"  # it contradicts itself
        if answer[:1] != wire.BACK:
            await self.kill()
            if not answer and not timed_out and await _dies(self._server):
                raise SandboxError("the fork server died during the call; repeat it in a new session")
        status, error = self._death(answer)
        return Execution(status=status, error=error), answer[:1] == wire.BACK, timed_out

    def _ask(self, nonce: bytes, source: bytes) -> None:
        """Send the request; a dead process is noticed in `_answer`."""
        head = wire.REQUEST.pack(nonce, len(source))
        with contextlib.suppress(OSError):
            if len(source) <= wire.INLINE:
                self._channel.send(head + source)
                return
            memory = sealed(source)
            try:
                socket.send_fds(self._channel, [head], [memory])
            finally:
                os.close(memory)

    async def _reply(self, first: bytes, room: int) -> Execution | None:
        """The session's account of its call, each text cut at `room` bytes; None when it makes no sense."""
        try:
            flags, *lengths = wire.HEAD.unpack_from(first, 1 + wire.NONCE)
        except struct.error:
            return None
        caps = (room + 1, wire.MAX_NAME, room + 1, room + 1, 2 * wire.MAX_BUNDLE_BYTES)
        if any(length > cap for length, cap in zip(lengths, caps, strict=True)):
            return None
        body = bytearray(first[1 + wire.NONCE + wire.HEAD.size :])
        while len(body) < sum(lengths):
            piece = await receive(self._channel, _PIECE_S)
            if not piece:
                return None
            body += piece
        parts, at = [], 0
        for length in lengths:
            parts.append(bytes(body[at : at + length]))
            at += length
        (result, cut), (name, _), (message, _), (traceback, _) = (text(part, room) for part in parts[:4])
        try:
            display = wire.unpack_bundles(parts[4])
        except (ValueError, struct.error):
            return None
        failed = bool(flags & wire.HAS_ERROR)
        return Execution(
            result=result if flags & wire.HAS_RESULT else None,
            result_truncated=cut,
            error=CodeError(name, message, traceback) if failed else None,
            status="memory" if flags & wire.OUT_OF_MEMORY else "error" if failed else "ok",
            display=display,
        )

    async def kill(self) -> None:
        """SIGKILL, and wait until the fork server has reaped everything that the session started. Idempotent."""
        self.dead = True
        if self._released:
            return
        if self._server.owner != os.getpid():  # a fork of the host lets go of its parent's sessions, no more
            self._release()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._family is not None:
            await self._leave_family()
            return
        deadline = time.monotonic() + _DEATH_S
        # An event loop knows one reader a descriptor: where a call waits on this one, another is needed.
        channel = self._channel
        if self._running:
            with contextlib.suppress(OSError):  # out of descriptors: the rare double wait is the lesser evil
                channel = self._channel.dup()
        try:
            while await receive(channel, deadline - time.monotonic()):
                pass  # last words, true or forged; the end of the stream cannot be forged
            if time.monotonic() > deadline:
                raise SandboxError(f"a killed session is still there after {_DEATH_S:.0f} s")
        finally:
            if channel is not self._channel:
                channel.close()
        if not self._running:
            self._release()

    async def _leave_family(self) -> None:
        """What it started besides ends with the last of its family, or now where it has a process group of its own."""
        family, self._family = self._family, None
        assert family is not None
        pidfd = os.dup(self._pidfd)  # a call may be waiting on the other
        try:
            if self._copied:
                end_group(pidfd)
            if not await readable(pidfd, _DEATH_S):
                raise SandboxError(f"a killed session is still there after {_DEATH_S:.0f} s")
        finally:
            os.close(pidfd)
        await family.leave()
        if not self._running:
            self._release()

    async def _answer(self, nonce: bytes, seconds: float) -> bytes | None:
        """The reply to `nonce`, or DEAD, or b"" for an end without one and for a frame that no honest session sends."""
        deadline = time.monotonic() + seconds
        ended = self._pidfd if self._copied else None
        packet = await receive(self._channel, seconds, ended)
        if packet == wire.STREAMS + nonce:  # once a call
            with contextlib.suppress(OSError):  # it died
                self._streams.give(self._channel)
            packet = await receive(self._channel, deadline - time.monotonic(), ended)
        if packet is None or packet[:1] == wire.DEAD:
            return packet
        honest = packet.startswith(wire.REPLY + nonce) or packet[: -wire.STATUS.size] == wire.BACK + nonce
        return packet if honest else b""

    async def _stop(self, nonce: bytes, snapshot: bool) -> bytes:
        """SIGINT, and b"" after 300 ms in vain. With `snapshot` the keeper does it where none could be made; else
        it kills the runner: the state is then always the one before the call, never what an interrupt left.
        """
        number, seconds = (signal.SIGTERM, _ROLLBACK_S) if snapshot else (signal.SIGINT, _INTERRUPT_S)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)
        answer = await self._answer(nonce, seconds) or b""
        if answer[:1] == wire.REPLY and answer[1 + wire.NONCE : 2 + wire.NONCE] >= bytes([wire.PROTECTED]):
            return b""  # it ended as it was being killed: what is left is unknown
        return answer

    def _death(self, last: bytes) -> tuple[Status, CodeError]:
        """How the code's process ended, as an execution's status and error."""
        try:
            status, overflowed = wire.STATUS.unpack(last[-wire.STATUS.size :])
            code = os.waitstatus_to_exitcode(status)
        except (struct.error, ValueError):
            why = "the interpreter ended" if self._copied else "the session broke its protocol"
            return "killed", CodeError("ProcessKilled", why, "")
        if overflowed:
            return "memory", CodeError("MemoryError", "the session was killed at its memory limit", "")
        if code >= 0:
            return "killed", CodeError("ProcessExit", f"the interpreter exited with code {code}", "")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return "killed", CodeError("ProcessKilled", f"the interpreter was killed by signal {-code} ({name})", "")

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        self._streams.close()
        self._channel.close()
        os.close(self._pidfd)


async def _dies(server: ForkServer) -> bool:
    """After an end without a word: whether the fork server is going down, with all its sessions, or this was alone."""
    for _ in range(20):
        if not server.alive:
            return True
        await asyncio.sleep(0.005)
    return False
