"""A connection that has begun a request, or has just been made, and says no more: closed after `HEAD_S` seconds.

uvicorn has a clock for idle connections between requests, and none for a head that never ends.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 30.0


class TimedConnection(HttpToolsProtocol):
    """uvicorn's connection with one clock more."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a head must arrive within `HEAD_S`."""
        super().connection_made(transport)
        self._clock = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """Start the clock again with the first bytes of another head."""
        super().data_received(data)
        between = self.cycle is None or self.cycle.response_complete
        if between and self._clock is None:  # the beginning of a head
            self._clock = self.loop.call_later(HEAD_S, self.transport.close)

    def on_headers_complete(self) -> None:
        """The head is here: stop the clock."""
        self._stop_clock()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
