"""The protocol between host and container, from the side of a host that trusts nothing."""

import asyncio
import json
import struct

import pytest

from solostream.sandbox.docker import frames
from solostream.sandbox.types import CodeError, Execution, Limits

LIMITS = Limits(output_bytes=8)
GOOD = Execution(stdout="a", result="1", duration_s=0.5).to_dict()


def read(data: bytes, cap: int = 100):
    async def once():
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await frames.read(reader, cap)

    return asyncio.run(once())


def test_a_frame_is_its_length_in_four_bytes_and_json():
    assert frames.pack({"id": 1}) == b'\0\0\0\x09{"id": 1}'
    assert read(b'\0\0\0\x09{"id": 1}rest') == {"id": 1}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 2**32 - 1) + b"x",  # claims 4 GB: refused before a byte of it is read
        struct.pack(">I", 101) + b" " * 101,
        struct.pack(">I", 4) + b"{no}",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 2) + b"\xff\xfe",
        struct.pack(">I", 100) + b"[" * 100,
    ],
)
def test_a_malformed_frame_is_refused(data):
    with pytest.raises(frames.BadFrame):
        read(data)


def test_a_deeply_nested_frame_is_refused():
    with pytest.raises(frames.BadFrame):
        read(struct.pack(">I", 200_000) + b"[" * 200_000, 300_000)


def test_a_frame_that_is_cut_off_ends_the_connection():
    with pytest.raises(asyncio.IncompleteReadError):
        read(struct.pack(">I", 50) + b"{")


def test_an_execution_arrives_as_it_was_sent():
    sent = Execution("out", "err", "res", CodeError("E", "m", "t"), "error", duration_s=1.5, state_kept=False)
    assert frames.execution(json.loads(json.dumps(sent.to_dict())), LIMITS) == sent


def test_texts_are_cut_by_the_host_whatever_the_container_says():
    seen = frames.execution({**GOOD, "stdout": "é" * 8, "stdout_truncated": False}, LIMITS)
    assert (seen.stdout, seen.stdout_truncated) == ("éééé", True)
    error = {"name": "N" * 99, "message": "m" * 99, "traceback": "t" * 99}
    assert frames.execution({**GOOD, "error": error}, LIMITS).error == CodeError("N" * 8, "m" * 8, "t" * 8)


def test_a_character_is_never_cut_in_two():
    assert frames.clip("abc🙂", 6) == ("abc", True)
    assert frames.clip("abc🙂", 7) == ("abc🙂", False)
    assert frames.clip("\ud800b", 8) == ("?b", False)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "fine"},
        {"status": None},
        {"status": ["ok"]},
        {"stdout": 5},
        {"result": ["x"]},
        {"error": "x"},
        {"error": {"name": 1}},
        {"duration_s": "1"},
        {"duration_s": float("nan")},
    ],
)
def test_a_record_with_a_wrong_type_is_refused(change):
    with pytest.raises(frames.BadFrame):
        frames.execution({**GOOD, **change}, LIMITS)


def test_the_cap_holds_the_largest_honest_reply():
    text = "\0" * LIMITS.output_bytes  # JSON writes each as six bytes
    error = CodeError(text, text, text)
    largest = Execution(text, text, text, error, "error", True, True, True, 1e300 / 3, False)
    assert len(frames.pack({"id": 10**9, "execution": largest.to_dict()})) <= frames.reply_bytes(LIMITS)
