"""A connection whose client does nothing for `HEAD_S` seconds: it has begun a request and says no more, or it does not
read its answer. uvicorn has a clock for idle connections between requests, and none for these.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 30.0


class TimedConnection(HttpToolsProtocol):
    """uvicorn's connection with two clocks more."""

    _clock: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None  # while an answer waits for the client

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

    def pause_writing(self) -> None:
        """The client does not keep up: it must read something every `HEAD_S`."""
        super().pause_writing()
        self._look(self.transport.get_write_buffer_size() + 1)

    def resume_writing(self) -> None:
        """It has kept up."""
        self._stop_looking()
        super().resume_writing()

    def _look(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._reading = self.loop.call_later(HEAD_S, self._look, left)

    def _stop_looking(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_clock()
        self._stop_looking()
        super().connection_lost(exc)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
