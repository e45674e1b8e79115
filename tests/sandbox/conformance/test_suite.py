"""The suite must pass what is true and fail what is not: judged on a backend that holds nothing and claims all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from unsafe import UnsafeSandbox

from solostream.errors import UserError
from solostream.sandbox.conformance import CASES, CaseVerdict, check

# What the plain child process really does, and what it cannot.
HOLDS = [
    "variables, functions and imports are kept between calls",
    "the result is the repr of the last expression",
    "an exception has name, message, traceback, and what was printed before it",
    "unicode goes in and out unchanged",
    "close is idempotent, and a closed session says so",
    "10**10**9: one endless C call",
]
BROKEN = {
    "a time-out ends the call and keeps what was printed": "status is timeout, stdout 'before'",
    "output over the limit is cut and flagged, below it is neither": "truncated is True, not False",
    "output of children and of raw descriptors is captured": "infrastructure failure",
    "session N+1 sees nothing of session N": "no variable, module attribute, environment, path or file is left",
    "os._exit(0) is never ok": "what was printed before is kept",
    "fork bomb": "at most 32 processes",
    "thread bomb": "at most 32 threads",
    "Python memory bomb": "not more than 128 MB are given",
    "N processes times the memory limit": "together at most 128 MB",
    "disk fill, then another session writes": "about 4 MB at most",
    "double-forked daemons die with the session": "processes are left after close",
    "TCP out": "the host saw 1",
    "UDP out": "no datagram leaves",
    "abstract sockets between sessions, and to the host": "can be reached",
    "files of the host": "stays unread",
    "symlinks and .. in paths": "neither leads to a file of the host",
    "environment variables": "is not passed on",
    "/proc/*/environ": "no process's environment shows",
    "kill(-1)": "contains its signals",
    "killing its parent and pid 1": "contains its signals",
    "killing another session": "unharmed",
    "ptrace of the host, of its parent and of another session": "every attach is refused",
    "unshare and setns": "no namespace is made",
    "writes to site-packages and system folders": "nothing is written to the host",
    "descriptor exhaustion": "at most 256",
    "lone surrogates in output and in code": "",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the code of a sandbox that confines nothing writes."""
    monkeypatch.chdir(tmp_path)


async def verdict(name: str) -> CaseVerdict:
    report = await check(UnsafeSandbox, only=name)
    return next(v for v in report.cases if v.name == name)


@pytest.mark.parametrize("name", HOLDS)
async def test_passes_what_holds(name: str) -> None:
    seen = await verdict(name)
    assert (seen.status, seen.detail) == ("pass", "")


@pytest.mark.parametrize("name", BROKEN)
async def test_fails_what_is_broken(name: str) -> None:
    seen = await verdict(name)
    assert seen.status == "fail"
    assert BROKEN[name] in seen.detail


async def test_a_claim_that_is_not_made_is_skipped_with_the_reason() -> None:
    class Modest(UnsafeSandbox):
        claims = frozenset({"state"})

    report = await check(Modest, only="TCP out")
    assert [(v.name, v.status, v.detail) for v in report.cases[:1]] == [("TCP out", "skip", "not claimed: network")]


async def test_a_child_left_by_close_is_seen() -> None:
    """A backend whose helper process outlives `close` (as a warm pool would)."""

    class Careless(UnsafeSandbox):
        helper: subprocess.Popen[bytes] | None = None

        async def open(self):
            self.helper = self.helper or subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220
            return await super().open()

    sandbox = Careless()
    try:
        report = await check(lambda: sandbox, only="empty code and comments run", name="careless")
    finally:
        assert sandbox.helper is not None
        sandbox.helper.kill()
        sandbox.helper.wait()
    assert report.backend == "careless"
    assert [v.status for v in report.cases] == ["pass", "fail"]
    assert f"{{{sandbox.helper.pid}: 'sleep'}}" in report.cases[1].detail


async def test_report_is_the_documented_json() -> None:
    record = (await check(UnsafeSandbox, only="empty code and comments run")).to_dict()
    assert record["backend"] == "UnsafeSandbox"
    assert record["isolation"] == "none"
    assert [set(case) for case in record["cases"]] == [{"name", "status", "detail", "ms"}] * 2
    assert "SOLOSTREAM_CANARY" not in os.environ


async def test_no_match_is_the_users_error() -> None:
    with pytest.raises(UserError, match="no case matches 'nothing like it'"):
        await check(UnsafeSandbox, only="nothing like it")


def test_the_list_is_long_enough_and_its_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 54
