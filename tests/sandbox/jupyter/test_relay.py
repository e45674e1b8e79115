"""What passes between a kernel and the host: any honest message, none that is too large as a whole."""

from __future__ import annotations

import importlib.util
import resource

import pytest

from solostream.sandbox.jupyter.relay import MessageTooLarge, Meter
from solostream.sandbox.jupyter.sandbox import JupyterSandbox
from solostream.sandbox.types import Limits

GREETING = b"\xff" + bytes(8) + b"\x7f" + bytes(54)


def frame(size: int, more: bool) -> bytes:
    if size > 255:
        return bytes([2 | more]) + size.to_bytes(8, "big") + b"x" * size
    return bytes([more, size]) + b"x" * size


def fed(stream: bytes, chunk: int, cap: int = 1000) -> int:
    """How many bytes pass."""
    meter = Meter(cap)
    for at in range(0, len(stream), chunk):
        try:
            meter.feed(stream[at : at + chunk])
        except MessageTooLarge:
            return at
    return len(stream)


@pytest.mark.parametrize("chunk", [1, 7, 64, 65_536])
def test_messages_within_the_cap_pass_however_they_are_cut(chunk: int) -> None:
    message = frame(0, True) + frame(255, True) + frame(256, True) + frame(489, False)  # 1,000 bytes
    stream = GREETING + b"\x04\x05READY" + message * 30 + frame(3, False) * 200
    assert fed(stream, chunk) == len(stream)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize(
    "message",
    [
        frame(1001, False),
        frame(500, True) + frame(501, False),
        frame(100, True) * 11,
        frame(1, True) * 65,
        b"\x02" + b"\xff" * 8,
    ],
    ids=["frame", "two", "eleven", "many", "claimed"],
)
def test_a_message_over_the_cap_is_cut_off(message: bytes, chunk: int) -> None:
    before = GREETING + frame(900, False)
    assert len(before) - chunk < fed(before + message + b"y" * 500, chunk) < len(before + message)


async def test_a_kernel_that_sends_frame_after_frame_does_not_fill_the_host() -> None:
    if importlib.util.find_spec("ipykernel") is None:
        pytest.skip("ipykernel is not installed")
    box = JupyterSandbox(limits=Limits(timeout_s=60))
    code = (
        "import zmq\nsocket = get_ipython().kernel.iopub_thread.socket\n"
        "for n in range(400):\n    socket.send(b'x' * (1 << 20), zmq.SNDMORE)\n"
    )
    try:
        session = await box.open()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seen = await session.run(code, timeout=5)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert seen.status != "ok"
        assert grown < 100
        assert (await session.run("6 * 7")).result == "42"
    finally:
        await box.close()
