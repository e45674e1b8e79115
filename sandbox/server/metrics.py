"""Prometheus metrics of one worker, summed over the workers when there are several."""

from __future__ import annotations

import os
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from solostream.sandbox.types import Execution

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class ServerMetrics:
    """Counters under the prefix `solostream_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        into: Any = {"registry": self.registry}
        self.runs = Counter("solostream_runs", "Executions, by how they ended", ["status"], **into)
        self.seconds = Histogram("solostream_run_seconds", "Duration of executions", buckets=_SECONDS, **into)
        self.errors = Counter("solostream_sandbox_errors", "Infrastructure failures", **into)
        self.refused = Counter("solostream_refused", "Requests turned away, by reason", ["reason"], **into)
        self.expired = Counter("solostream_sessions_expired", "Sessions closed because idle", **into)
        self.live = Gauge("solostream_sessions", "Open sessions", multiprocess_mode="livesum", **into)

    def count(self, seen: Execution) -> None:
        """Count one run by its status, and its wall time."""
        self.runs.labels(seen.status).inc()
        self.seconds.observe(seen.duration_s)

    def text(self) -> bytes:
        """The exposition format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)
        return generate_latest(everyone)
