"""The bytes between host and session.

A session has one SOCK_SEQPACKET pair, so the kernel keeps frames apart and a frame that claims 4 GB cannot exist. Texts
do not travel in frames but in memory files that the host made: a request carries three of them (the code, which the
reply overwrites; stdout; stderr), and what the code printed survives its death.

    host -> session   REQUEST  nonce, length of the code in bytes          + 3 descriptors
    session -> host   READY | REPLY, nonce | BACK, nonce, as DEAD (rolled back)
    fork server -> host (same socket)   DEAD, wait status, whether it was killed for its memory

The reply in the first memory file: HEAD = flags and four lengths, then result, error name, message and traceback in
UTF-8. The nonce is drawn by the host for each call: a reply that was forged in advance does not know it. A session can
always lie about itself; it cannot make the host read more than the caps below.
"""

from __future__ import annotations

import struct

REQUEST = struct.Struct("<16sI")
HEAD = struct.Struct("<BIIII")
STATUS = struct.Struct("<i?")
NONCE = 16
PACKET = 512  # no frame is longer

READY, REPLY, BACK, DEAD, FAILED = b"R", b"A", b"B", b"D", b"F"

HAS_RESULT, HAS_ERROR, OUT_OF_MEMORY, RESULT_CUT = 1, 2, 4, 8

MAX_CODE = 16 << 20  # bytes of one call's source
MAX_NAME = 256  # characters of an exception's name
