"""From messages to an `Execution`: honest ones, and what a kernel that was taken over could send."""

import json

import pytest

from solostream.sandbox.jupyter.output import Collector, is_plain
from solostream.sandbox.types import CodeError, Limits


def collector() -> Collector:
    return Collector(Limits(output_bytes=8))


def ended(heard: Collector, *, timed_out: bool = False, state_kept: bool = True):
    return heard.execution(0.5, timed_out=timed_out, state_kept=state_kept)


def test_streams_result_and_rich_output():
    heard = collector()
    heard.output("stdout", b"ab")
    heard.output("stderr", b"err")
    heard.output("stdout", b"cd")
    heard.add("display_data", {"data": {"text/plain": "<Figure>", "image/png": "iVBO"}, "metadata": {}})
    heard.add("execute_result", {"data": {"text/plain": "x", "text/latex": "$x$"}})
    heard.reply({"status": "ok"})
    seen = ended(heard)
    assert (seen.stdout, seen.stderr, seen.result, seen.status) == ("abcd", "err", "x", "ok")
    assert seen.display == ({"text/plain": "<Figure>", "image/png": "iVBO"}, {"text/latex": "$x$"})


def test_an_error_loses_its_colours():
    heard = collector()
    heard.reply({"status": "error", "ename": "E", "evalue": "why", "traceback": ["\x1b[31mred\x1b[0m", "x"]})
    seen = ended(heard)
    assert (seen.status, seen.error) == ("error", CodeError("E", "why", "red\nx"))


def test_exactly_the_limit_is_whole_and_one_byte_more_is_cut():
    heard = collector()
    heard.output("stdout", b"12345678")
    heard.output("stderr", b"1234567")
    heard.output("stderr", b"89" * 10_000)
    seen = ended(heard)
    assert (seen.stdout, seen.stdout_truncated) == ("12345678", False)
    assert (seen.stderr, seen.stderr_truncated) == ("12345678", True)


def test_a_character_that_the_limit_cuts_is_dropped_and_a_bad_byte_is_replaced():
    heard = collector()
    heard.output("stdout", "abc🙂🙂".encode())
    heard.output("stderr", b"a\xffb")
    seen = ended(heard)
    assert (seen.stdout, seen.stderr) == ("abc🙂", "a\ufffdb")


def test_how_a_call_ended():
    assert ended(collector(), timed_out=True, state_kept=True).status == "timeout"
    assert ended(collector(), timed_out=True, state_kept=False).status == "timeout"
    assert ended(collector(), state_kept=False).status == "killed"
    heard = collector()
    heard.reply({"status": "error", "ename": "MemoryError", "evalue": "", "traceback": []})
    assert ended(heard).status == "memory"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("execute_result", {}),
        ("execute_result", {"data": "text"}),
        ("display_data", {"data": {5: ["x"], "image/png": {"a": 1}}}),
        ("display_data", {"data": {"image/png": "x" * (2 << 20)}}),
        ("status", {"execution_state": ["idle"]}),
        ("unknown", {"name": "stdout", "text": "x"}),
    ],
)
def test_garbled_messages_say_nothing(kind, content):
    heard = collector()
    heard.add(kind, content)
    seen = ended(heard)
    assert (seen.stdout, seen.result, seen.display) == ("", None, ())
    assert not heard.idle.is_set()


def test_garbled_results_and_replies_are_bounded():
    heard = collector()
    heard.add("execute_result", {"data": {"text/plain": "r" * 10_000_000}})
    heard.reply({"status": ["?"], "ename": 5, "evalue": "v" * 100, "traceback": [1, {"x": 2}] * 1000})
    seen = ended(heard)
    assert (seen.result, seen.result_truncated) == ("rrrrrrrr", True)
    assert seen.error == CodeError("Error", "vvvvvvvv", "1\n{'x': ")


def test_rich_output_is_counted():
    heard = collector()
    for _ in range(1000):
        heard.add("display_data", {"data": {"text/html": "h" * 100_000}})
    shown = ended(heard).display
    assert 0 < sum(len(bundle["text/html"]) for bundle in shown) <= 1 << 20


def test_only_cheap_frames_are_parsed() -> None:
    data = {"image/png": "iVBOR" * 200_000, "text/plain": '"quoted" \\ [,,,,]' * 20}
    assert is_plain(json.dumps({"data": data, "metadata": {}}).encode())
    assert is_plain(b"")
    nested, quotes = b'{"a":' * 800_000, b'"' * 4_600_000
    for hostile in (b"[" + b"[]," * 1_500_000 + b"[]]", nested, quotes, b'["' + b'","' * 1_000_000):
        assert not is_plain(hostile)
        assert not is_plain(b'"' + b'\\"' * 1_000_000 + b'"' + hostile)
