"""What goes away, and what was found: the tests that are these scenarios, run, and their outcome in words.

Each is a real Ray with a head and two simulated machines; a row that is not "held" is a test that failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
TESTS = "tests/training/cluster/"
# test -> (what goes away, what it checks)
SCENARIOS = {
    "test_faults.py::test_a_replica_that_dies_before_weights_are_sent": (
        "a replica, before weights are sent",
        "the other samples on with them; it comes back with the weights of now",
    ),
    "test_faults.py::test_a_replica_that_dies_while_it_takes_weights": (
        "a replica, while it takes weights",
        "nobody waits for it; both sample from the weights of now",
    ),
    "test_faults.py::test_a_replica_that_dies_after_weights_were_sent_gives_its_turn_away": (
        "a replica, in the middle of a turn",
        "the other samples the turn, with the same result",
    ),
    "test_transfer.py::test_who_fails_or_hangs_in_a_transfer_holds_up_nobody": (
        "a replica that fails or hangs in a broadcast",
        "all have the weights by memory; the hanging one is opened again; the next goes by broadcast",
    ),
    "test_faults.py::test_a_player_that_dies_loses_no_episode_and_counts_none_twice": (
        "a player with episodes in hand",
        "42 episodes in 7 batches: none lost, none logged or used twice",
    ),
    "test_faults.py::test_a_machine_dies_with_a_replica_and_a_player_and_another_joins_late": (
        "a machine with a replica and a player",
        "weights and episodes do not wait for it; both start on a machine that joins late",
    ),
    "test_cluster_run.py::test_two_replicas_and_two_players_of_which_some_die_write_the_log_of_one_process": (
        "a player and a replica of a whole run",
        "the log equals that of one process, byte for byte",
    ),
    "test_cluster_run.py::test_a_driver_that_is_killed_goes_on_and_no_episode_is_lost_or_counted_twice": (
        "the driver, by SIGKILL; --resume auto",
        "six updates of 36 distinct episodes; no finished one is lost",
    ),
    "test_ranks.py::test_a_run_that_loses_a_rank_ends_where_one_process_ends": (
        "a rank, a replica and a player of a run on 2 ranks, 2 replicas, 2 players",
        "again from the last checkpoint; ends with one process's weights",
    ),
    "test_ranks.py::test_a_rank_that_hangs_is_given_up_after_the_time_that_is_set": (
        "a rank that hangs",
        "given up after the time that is set, not torch's half hour",
    ),
}


def measure() -> list[dict[str, Any]]:
    """By scenario the outcome of its test and its seconds."""
    with tempfile.TemporaryDirectory(prefix="solostream-faults-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run(
            [*command, *(TESTS + test for test in SCENARIOS)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=sys.stderr,  # which one is under way; the table is for standard output
            check=False,  # a failed test is a row of the table
        )
        cases = {case.get("name"): case for case in ElementTree.parse(report).iter("testcase")}
    found = []
    for test, (gone, checks) in SCENARIOS.items():
        case = cases[test.partition("::")[2]]
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "held")
        found.append({"gone": gone, "checks": checks, "outcome": outcome, "seconds": float(case.get("time", "0"))})
    return found


def table(found: list[dict[str, Any]]) -> str:
    rows = [f"| {f['gone']} | {f['checks']} | {f['outcome']} | {f['seconds']:.0f} s |" for f in found]
    return "\n".join(["| what goes away | then | found | |", "|---|---|---|---|", *rows])
