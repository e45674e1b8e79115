"""Frames between the host and the server in a container: four bytes of length, big-endian, then a JSON object.

The host trusts nothing that it reads: a frame has a size cap, every field is checked, texts are cut.
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
from typing import Any, cast, get_args

from solostream.sandbox.fork.child import wire
from solostream.sandbox.types import CodeError, Execution, Limits, Status

PROTOCOL = 1  # both sides must speak the same: an old image is refused
CODE_LENGTH = 16 << 20  # characters of one request
_LENGTH = struct.Struct(">I")


class BadFrame(ValueError):
    """What arrived is not what the protocol allows."""


def reply_bytes(limits: Limits) -> int:
    """The cap of one reply: six texts of `output_bytes` and rich outputs, each byte of which JSON may write as six."""
    return 6 * (6 * limits.output_bytes + wire.MAX_BUNDLE_BYTES) + 32_768


async def read(reader: asyncio.StreamReader, cap: int) -> dict[str, Any]:
    """The next frame. Raises BadFrame, or asyncio.IncompleteReadError at the end of the stream."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > cap:
        raise BadFrame(f"a frame of {length} bytes, allowed are {cap}")
    try:
        frame = json.loads(await reader.readexactly(length))
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"a frame that is not JSON: {error}") from None
    if not isinstance(frame, dict):
        raise BadFrame("a frame that is not an object")
    return frame


def pack(frame: dict[str, Any]) -> bytes:
    """A frame as bytes: the length of its JSON (big-endian, 4 bytes), then the JSON."""
    body = json.dumps(frame).encode()
    return _LENGTH.pack(len(body)) + body


def clip(text: str, size: int) -> tuple[str, bool]:
    """At most `size` bytes of UTF-8, and whether something was cut. Lone surrogates become `?`."""
    raw = text[: size + 1].encode(errors="replace")
    if len(raw) <= size:
        return raw.decode(), False
    return raw[:size].decode(errors="ignore"), True


def execution(record: Any, limits: Limits) -> Execution:
    """An `Execution` out of an untrusted record. Raises BadFrame."""
    if not isinstance(record, dict):
        raise BadFrame("an execution that is not an object")
    status, duration = record.get("status"), record.get("duration_s")
    if status not in get_args(Status):
        raise BadFrame("an execution with an unknown status")
    if not isinstance(duration, int | float) or not math.isfinite(duration):
        raise BadFrame("an execution without a duration")
    texts = {name: _clipped(record, name, limits) for name in ("stdout", "stderr", "result")}
    error = record.get("error")
    if error is not None:
        if not isinstance(error, dict):
            raise BadFrame("an error that is not an object")
        error = CodeError(*(_clipped(error, name, limits)[0] or "" for name in ("name", "message", "traceback")))
    return Execution(
        stdout=texts["stdout"][0] or "",
        stderr=texts["stderr"][0] or "",
        result=texts["result"][0],
        error=error,
        status=cast(Status, status),
        stdout_truncated=texts["stdout"][1],
        stderr_truncated=texts["stderr"][1],
        result_truncated=texts["result"][1],
        duration_s=float(duration),
        state_kept=record.get("state_kept") is True,
        display=_bundles(record.get("display")),
    )


def _bundles(record: Any) -> tuple[dict[str, str], ...]:
    """Rich output, within what the runner keeps of it. Raises BadFrame."""
    if not isinstance(record, list | tuple | None) or not all(isinstance(bundle, dict) for bundle in record or ()):
        raise BadFrame("rich output that is no list of objects")
    bundles, room = [], wire.MAX_BUNDLE_BYTES
    for bundle in (record or ())[: wire.MAX_BUNDLES]:
        kept = {}
        for mime, data in bundle.items():
            if not isinstance(data, str):
                raise BadFrame("rich output that is not text")
            if len(data) <= room:
                kept[mime[: wire.MAX_NAME]] = clip(data, room)[0]
                room -= len(data)
        bundles.append(kept)
    return tuple(bundles)


def _clipped(record: dict[str, Any], name: str, limits: Limits) -> tuple[str | None, bool]:
    text = record.get(name)
    if text is None:
        return None, False
    if not isinstance(text, str):
        raise BadFrame(f"{name} is not text")
    text, cut = clip(text, limits.output_bytes)
    return text, cut or record.get(f"{name}_truncated") is True
