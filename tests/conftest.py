"""Which tests stay together where several workers share the suite, as in `make test`."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file is a group, for its fixtures are costly; what needs the Ray cluster is one, for there is one of it."""
    for item in items:
        ray = "ray_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ray" if ray else item.nodeid.partition("::")[0]))
