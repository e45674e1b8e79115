"""The bytes between host and session.

A session has one SOCK_SEQPACKET pair, so the kernel keeps frames apart and a frame that claims 4 GB cannot exist. What
the code prints travels in two pipes, whose reading ends only the host has: what was printed survives the session.

    session -> host   READY
    host -> session   STREAMS  + 2 descriptors, the writing ends of stdout and stderr: once, and again when the session,
                      whose code has lost them, asks with STREAMS and the nonce, once a call
    host -> session   REQUEST  nonce, length of the code in bytes, the code; a code longer than INLINE is not in the
                      frame but in a sealed memory file, whose descriptor comes with it
    session -> host   REPLY, nonce, HEAD, texts; what does not fit follows in further frames | BACK, nonce, as DEAD
    host -> session   FORK  + 1 descriptor, the end of a copy's own pair, on which the copy answers READY
    fork server -> host (same socket)   DEAD, wait status, whether it was killed for its memory

HEAD: flags and five lengths; then result, error name, message and traceback in UTF-8, and the rich outputs (`bundles`).
The nonce is drawn by the host for each call: a reply that was forged in advance does not know it. A session can always
lie about itself; it cannot make the host read more than the caps below.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

REQUEST = struct.Struct("<16sI")
HEAD = struct.Struct("<BIIIII")
STATUS = struct.Struct("<i?")
NUMBER = struct.Struct("<Q")  # of a session, for its fork server
NONCE = 16
PACKET = 65_536  # no frame is longer
INLINE = 32_768  # bytes of code that travel in the request itself

READY, STREAMS, REPLY, BACK, DEAD, FAILED = b"R", b"S", b"A", b"B", b"D", b"F"
FORK = b"f"
HOLD, LET_GO = b"h", b"l"

HAS_RESULT, HAS_ERROR, OUT_OF_MEMORY = 1, 2, 4
PROTECTED = 8  # a snapshot waits behind the call, so that whoever ends it kills the runner

MAX_CODE = 16 << 20  # bytes of one call's source
MAX_NAME = 256  # characters of an exception's name, and of a MIME type
MAX_BUNDLES = 32  # rich outputs of one call
MAX_BUNDLE_BYTES = 1 << 20  # of all of them together

_COUNT, _SIZES = struct.Struct("<B"), struct.Struct("<HI")


def pack_bundles(bundles: Sequence[Mapping[bytes, bytes]]) -> bytes:
    """Each: how many forms; for each form the sizes of MIME type and data, and both."""
    parts = []
    for bundle in bundles:
        parts.append(_COUNT.pack(len(bundle)))
        for mime, data in bundle.items():
            parts += [_SIZES.pack(len(mime), len(data)), mime, data]
    return b"".join(parts)


def unpack_bundles(packed: bytes) -> tuple[dict[str, str], ...]:
    """The inverse, in one pass over any bytes. Raises ValueError where they contradict themselves."""
    bundles: list[dict[str, str]] = []
    at = 0
    while at < len(packed) and len(bundles) < MAX_BUNDLES:
        bundle = {}
        (forms,) = _COUNT.unpack_from(packed, at)
        at += _COUNT.size
        for _ in range(forms):
            if at + _SIZES.size > len(packed):
                raise ValueError("a rich output that breaks off")
            name, size = _SIZES.unpack_from(packed, at)
            at += _SIZES.size
            if name > MAX_NAME or at + name + size > len(packed):
                raise ValueError("a rich output that breaks off")
            mime = packed[at : at + name].decode("utf-8", "replace")
            bundle[mime] = packed[at + name : at + name + size].decode("utf-8", "replace")
            at += name + size
        bundles.append(bundle)
    return tuple(bundles)
