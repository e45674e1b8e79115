"""The cases that a situation has broken before, in that situation: an ordinary user, no cgroup, older Landlock.

Each runs in a process of its own, which gives up root where it must. The whole suite takes minutes for each; by hand:
`python tests/sandbox/conformance/test_situations.py --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from solostream.sandbox.conformance import LIMITS, check
from solostream.sandbox.fork import ForkSandbox, cgroup
from solostream.sandbox.fork.child import linux
from solostream.sandbox.fork.child.isolation import landlock, rootfs
from tests.sandbox.fork.conftest import need

USER = 1000
OTHERS = ("trespass", "forks", "folders with mode 0", "3,000 nested", "without a parent-death signal")
UNSEEN = ("shared memory of which", "shared memory whose", "PR_FUTEX_HASH", "vmsplice", "vfork", "CLONE_PARENT")
MEMORY = ("memory of", "memory behind", "N processes times", "many mappings")


def become_user() -> None:
    """Root gives itself up, in a mount namespace in which the user may enter the folders of this Python."""
    rootfs.let_in(USER)
    home = tempfile.mkdtemp()
    os.chown(home, USER, USER)
    os.environ["HOME"] = home
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    os.chdir(home)


def main() -> int:
    parser = argparse.ArgumentParser(description="The conformance suite in one situation.")
    parser.add_argument("--tier", default="auto")
    parser.add_argument("--user", action="store_true", help=f"as user {USER}, who shares the uid with the sessions")
    parser.add_argument("--no-cgroup", action="store_true")
    parser.add_argument("--landlock", type=int, default=landlock.NEWEST, help="the newest ABI to use")
    parser.add_argument("--only", nargs="*", default=[""])
    told = parser.parse_args()
    if told.user and os.geteuid() == 0:
        become_user()
    if told.no_cgroup:
        cgroup.parent = lambda pid: None  # type: ignore[assignment]

    def box() -> ForkSandbox:
        return ForkSandbox(limits=LIMITS, isolation=told.tier, landlock_abi=told.landlock, allow_unisolated=True)

    report = asyncio.run(check(box, name="fork", only=tuple(told.only)))
    print(json.dumps(report.to_dict()))
    return 0


@pytest.mark.parametrize(
    ("tier", "options", "only", "least"),
    [
        ("namespaces", ["--user", "--no-cgroup"], (*OTHERS, *MEMORY, *UNSEEN), 38),
        ("namespaces", ["--no-cgroup", "--landlock", "5"], ("trespass", *MEMORY), 20),
        ("landlock", ["--user", "--no-cgroup"], (*OTHERS, *MEMORY), 20),
        ("landlock", ["--user", "--no-cgroup", "--landlock", "1"], OTHERS, 11),  # orphans and the host are not claimed
        ("landlock", ["--no-cgroup"], OTHERS, 16),
    ],
)
def test_fork_holds_what_it_claims(tier: str, options: list[str], only: tuple[str, ...], least: int) -> None:
    need(tier)
    command = [sys.executable, __file__, "--tier", tier, *options, "--only", *only]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert [(case["name"], case["detail"]) for case in report["cases"] if case["status"] == "fail"] == []
    assert sum(case["status"] == "pass" for case in report["cases"]) >= least, report


if __name__ == "__main__":
    raise SystemExit(main())
