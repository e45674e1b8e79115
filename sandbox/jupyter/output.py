"""From the messages of one Jupyter call to an `Execution`. No message is trusted: types are checked, texts cut."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from solostream.sandbox.fork.child import wire
from solostream.sandbox.types import CodeError, Execution, Limits, Status

_DISPLAYS = wire.MAX_BUNDLES  # rich outputs kept of one call
_DISPLAY_BYTES = wire.MAX_BUNDLE_BYTES  # characters of all of them together
_QUOTES = 4096
_OUTSIDE = 65_536  # bytes of JSON that are no strings: numbers, brackets
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def is_plain(frame: bytes) -> bool:
    """Whether a frame of JSON is cheap to parse: one pass finds how many strings it has, and how much is outside them.

    A frame of 4 MB that is all brackets takes 100 times its size and seconds of the event loop; pictures and texts,
    which is what honest frames are made of, do not.
    """
    bare = frame.replace(b"\\\\", b"").replace(b'\\"', b"")
    return bare.count(b'"') <= _QUOTES and sum(map(len, bare.split(b'"')[::2])) <= _OUTSIDE


class Collector:
    """What one call has said so far. Messages that come after `execution` was made are lost."""

    def __init__(self, limits: Limits) -> None:
        self.idle = asyncio.Event()
        self._cap = limits.output_bytes
        self._streams = {"stdout": bytearray(), "stderr": bytearray()}
        self._result: str | None = None
        self._error: CodeError | None = None
        self._display: list[dict[str, str]] = []
        self._room = _DISPLAY_BYTES

    def output(self, name: str, piece: bytes) -> None:
        """What came through a pipe: "stdout" or "stderr"."""
        stream = self._streams[name]
        stream += piece[: self._cap + 1 - len(stream)]  # the one byte more says that something was cut

    def add(self, kind: str, content: dict[str, Any]) -> None:
        """A message of the output channel."""
        if kind == "execute_result":
            data = content.get("data")
            if isinstance(data, dict):
                self._result = _text(data, "text/plain")
                self._show({name: value for name, value in data.items() if name != "text/plain"})
        elif kind == "display_data":
            data = content.get("data")
            if isinstance(data, dict):
                self._show(data)
        elif kind == "status" and content.get("execution_state") == "idle":
            self.idle.set()

    def reply(self, content: dict[str, Any]) -> None:
        """The answer to the request itself."""
        if content.get("status") != "ok":
            lines = content.get("traceback")
            traceback = "\n".join(map(str, lines)) if isinstance(lines, list) else ""
            name, message = _text(content, "ename") or "Error", _text(content, "evalue")
            self._error = CodeError(name[:256], self._cut(message)[0], self._cut(_ESCAPES.sub("", traceback))[0])

    def execution(self, duration_s: float, *, timed_out: bool, state_kept: bool) -> Execution:
        """What was collected, as an `Execution`. duration_s: wall time; a time-out overrides the kernel's status."""
        status: Status = "ok"
        error = self._error
        if timed_out:
            status = "timeout"
            traceback = "" if error is None else error.traceback
            error = CodeError("TimeoutError", f"no result after {duration_s:.0f} s", traceback)
        elif not state_kept:
            status = "killed"
            error = CodeError("ProcessExit", "the interpreter died", "")
        elif error is not None:
            status = "memory" if error.name == "MemoryError" else "error"
        stdout, stdout_cut = _decode(self._streams["stdout"], self._cap)
        stderr, stderr_cut = _decode(self._streams["stderr"], self._cap)
        result, result_cut = (None, False) if self._result is None else self._cut(self._result)
        return Execution(
            stdout=stdout,
            stderr=stderr,
            result=result,
            error=error,
            status=status,
            stdout_truncated=stdout_cut,
            stderr_truncated=stderr_cut,
            result_truncated=result_cut,
            duration_s=duration_s,
            state_kept=state_kept,
            display=tuple(self._display),
        )

    def _show(self, data: dict[Any, Any]) -> None:
        bundle = {str(name)[:256]: value for name, value in data.items() if isinstance(value, str)}
        size = sum(map(len, bundle.values()))
        if bundle and size <= self._room and len(self._display) < _DISPLAYS:
            self._room -= size
            self._display.append(bundle)

    def _cut(self, text: str) -> tuple[str, bool]:
        return _decode(text[: self._cap + 1].encode(errors="replace"), self._cap)


def _text(content: dict[str, Any], name: str) -> str:
    value = content.get(name)
    return value if isinstance(value, str) else ""


def _decode(raw: bytes | bytearray, cap: int) -> tuple[str, bool]:
    """At most `cap` bytes as text, and whether more had come."""
    return raw[:cap].decode(errors="ignore" if len(raw) > cap else "replace"), len(raw) > cap
