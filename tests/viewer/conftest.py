"""One Chromium for all tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import chromium


@pytest.fixture(scope="session")
def browser() -> Iterator:
    with chromium() as one:
        yield one
