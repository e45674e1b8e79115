"""One Chromium for each file of tests: while it is open its event loop runs, and others could start none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as one:
        yield one
