"""Process 1 of a session's namespace: a program that waits for ever, in 200 bytes.

Its death is the death of all in the namespace. `/bin/sleep` would do, but loading the C library takes a fifth of what
starting a session costs.
"""

from __future__ import annotations

import os
import struct

_CODE = {  # what it does, and for which machine (the ELF header's e_machine)
    "x86_64": (62, bytes.fromhex("b822000000 0f05 ebf7")),  # pause(), again and again
    "aarch64": (  # ppoll(NULL, 0, NULL, NULL), again and again
        183,
        struct.pack("<7I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800928, 0xD4000001, 0x17FFFFFA),
    ),
}
_BASE = 0x400000
_HEADERS = 64 + 56


def program(machine: str) -> bytes:
    """An ELF executable of one segment, readable and executable. Raises KeyError for a machine that is not known."""
    number, code = _CODE[machine]
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian, version 1
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, number, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = _HEADERS + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000)
    return header + segment + code


def write(path: str) -> None:
    """Where sessions see it, read-only. On a machine that is not known: `sleep`, under another name."""
    machine = os.uname().machine
    if machine in _CODE:
        with open(path, "wb") as file:
            file.write(program(machine))
        os.chmod(path, 0o755)
    else:
        os.symlink("/bin/sleep", path)
