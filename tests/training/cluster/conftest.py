"""One Ray cluster for all tests of a session: a head and two machines, simulated in processes of this one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HEALTH = {  # a machine whose process is gone is given up after seconds; one that is only slow is not
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 60_000,
    "health_check_failure_threshold": 3,
}
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",  # else a token is written to the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    "RAY_worker_niceness": "0",  # Ray's 15 lets the other tests of a busy machine starve what these wait for
}
os.environ.update(SETTINGS)  # some are read when ray is imported
SMALL = {"num_cpus": 8, "object_store_memory": 80 << 20, "include_dashboard": False, "include_log_monitor": False}
TESTS = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the cluster comes last, so that its processes are there for none of the other tests."""
    items.sort(key=lambda item: "ray_cluster" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Ray, connected; the fixture's value can add and remove machines."""
    import ray
    from ray.cluster_utils import Cluster

    place = Path("/tmp") / f"ray-{os.getpid()}"  # short: paths of sockets have an end
    place.mkdir()
    before = dict(os.environ)
    folders = (Path(__file__).parent, TESTS, TESTS.parent / "benchmarks", os.environ.get("PYTHONPATH", ""))
    os.environ |= {"RAY_TMPDIR": str(place), "PYTHONPATH": os.pathsep.join(filter(None, map(str, folders)))}
    head = {**SMALL, "no_monitor": True, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(**SMALL)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(place, ignore_errors=True)
