"""The three memory files of a call: code and reply, stdout, stderr. The host owns them, so they survive the session."""

from __future__ import annotations

import codecs
import os
import struct
from types import TracebackType

from solostream.errors import SandboxError
from solostream.sandbox.fork.child import wire
from solostream.sandbox.types import CodeError, Execution


class MemoryFiles:
    """`descriptors`: (code and reply, stdout, stderr). Closed on exit; nothing read from them exceeds its limit."""

    def __init__(self, source: bytes) -> None:
        self.descriptors: list[int] = []
        self._source = source

    def __enter__(self) -> MemoryFiles:
        try:
            for name in ("reply", "stdout", "stderr"):
                self.descriptors.append(os.memfd_create(name, os.MFD_CLOEXEC))
            view = memoryview(self._source)
            while view:
                view = view[os.pwrite(self.descriptors[0], view, len(self._source) - len(view)) :]
        except OSError as error:
            self.__exit__(None, None, None)
            raise SandboxError(f"no memory file for a call: {error}; raise `ulimit -n`") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self.descriptors:
            os.close(fd)

    def output(self, stream: int, limit: int) -> tuple[str, bool]:
        """What was written to stdout (1) or stderr (2), at most `limit` bytes of it, and whether that is a part."""
        return _text(os.pread(self.descriptors[stream], limit + 1, 0), limit)

    def reply(self, limit: int) -> Execution | None:
        """The session's account of its call, each text cut at `limit` bytes; None when it makes no sense."""
        memory = self.descriptors[0]
        try:
            flags, *lengths = wire.HEAD.unpack(os.pread(memory, wire.HEAD.size, 0))
        except struct.error:
            return None
        texts, offset = [], wire.HEAD.size
        for length in lengths:
            texts.append(_text(os.pread(memory, min(length, limit + 1), offset), limit))
            offset += length
        (result, cut), (name, _), (message, _), (traceback, _) = texts
        failed = bool(flags & wire.HAS_ERROR)
        return Execution(
            result=result if flags & wire.HAS_RESULT else None,
            result_truncated=cut,
            error=CodeError(name, message, traceback) if failed else None,
            status="memory" if flags & wire.OUT_OF_MEMORY else "error" if failed else "ok",
        )


def _text(data: bytes, limit: int) -> tuple[str, bool]:
    """Valid text from any bytes; a character that the limit cuts in two is left out."""
    cut = len(data) > limit
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data[:limit], not cut), cut
