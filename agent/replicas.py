"""`Replicas`: one or several engines as one, each opened again, with the weights of now, when it has failed.

An episode stays with the replica that has its prefix cached; a new one goes to the replica with the fewest outstanding
tokens (Llumnix, arXiv 2406.03243, Sec. 4.4, without its look into the KV cache). A turn brings the whole ledger, so any
replica can go on with any episode: that is how one moves when its replica fails, or is drained because its machine will
be taken away (Llumnix copies the cache instead, Sec. 4.2).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from solostream.agent.engine import Engine, EngineError, Generation, Sampling, Sleeper, Weights
from solostream.errors import UserError

ASKED = 2  # replicas that may fail one turn: a third would hardly be luckier
PAUSE_S = 0.2  # before one that failed while it was opened is opened again

Open = Callable[[], Awaitable[Engine]]
Send = Callable[[Sequence[Engine], Weights, int], Awaitable[Sequence[BaseException | None]]]


@runtime_checkable
class Watched(Protocol):
    """An engine whose failure can be noticed while nobody asks it for anything."""

    async def watch(self) -> None:
        """Goes on for as long as the engine lives; raises EngineError when it is gone, Leaving when it will be."""
        ...


class Leaving(EngineError):
    """The engine's machine will be taken away: its turns may end within `patience_s`."""

    def __init__(self, message: str, patience_s: float) -> None:
        super().__init__(message)
        self.patience_s = patience_s


class _Moved(Exception):
    """The turn's replica was drained, or failed another turn; this one is sampled elsewhere."""


@dataclass(eq=False, slots=True)
class _Replica:
    """engine: None while it is opened. drained: ends its turns, and is closed then. trouble: why it is not opened any
    more.
    """

    open: Open
    left: int  # restarts until it takes weights again
    engine: Engine | None = None
    drained: Engine | None = None
    opening: asyncio.Task[None] | None = None
    watching: asyncio.Task[None] | None = None
    served: bool = False  # whether it has ever been open
    trouble: Exception | None = None
    turns: set[asyncio.Task[Generation]] = field(default_factory=set)
    tokens: int = 0  # outstanding: prompts and limits of its turns
    episodes: int = 0

    @property
    def load(self) -> tuple[int, int]:
        return self.tokens, self.episodes


class Replicas:
    """An `Engine`. `version` is that of the weights which were loaded last.

    openers: each makes one engine of any weights, which are replaced before its first request.
    still: held while an engine that is opened anew reads the weights. Those that were loaded last may be a live view of
    a learner, which keeps them; nothing of them is kept here. They may be one update ahead of `version`, until the
    `load_weights` of that update, which follows at once.
    send: brings new weights to all engines that are open, and says for each what it raised; default: one by one.
    restarts: of one replica in a row, without weights taken in between; then it is left out.

    Raises EngineError when a turn failed twice, or when no replica is left; whoever asked plays the episode again. What
    a replica refuses (UserError) goes through.
    """

    def __init__(
        self,
        openers: Sequence[Open],
        *,
        still: Callable[[], AbstractAsyncContextManager[None]] | None = None,
        send: Send | None = None,
        restarts: int = 3,
    ) -> None:
        self._replicas = [_Replica(opener, restarts) for opener in openers]
        self._still, self._send, self._restarts = still or _free, send or one_by_one, restarts
        self._homes: dict[str, _Replica] = {}
        self._weights: Weights | None = None
        self._loads = 0  # times that weights were loaded: a version may come twice
        self._loading = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        self._awake = asyncio.Event()
        self._awake.set()
        self._closed = False
        self.version = 0

    @property
    def n_open(self) -> int:
        """Replicas that sample now."""
        return sum(replica.engine is not None for replica in self._replicas)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """As an engine's; a turn that fails is asked of one other replica, where another is open."""
        failed: list[_Replica] = []
        while True:
            replica = await self._home(sampling.key, failed, sampling.parent)
            engine = replica.engine
            assert engine is not None
            try:
                return await self._turn(replica, engine, prompt_ids, sampling)
            except EngineError as error:
                self._lost(replica, engine, error)
                failed.append(replica)
                self._refuse_without_hope()
                if len(failed) == ASKED or not self._others(failed):
                    raise
            except _Moved:
                continue

    async def release(self, key: str) -> None:
        """As an engine's; nothing where the episode's replica is not open."""
        replica = self._homes.pop(key, None)
        if replica is not None:
            replica.episodes -= 1
            if replica.engine is not None:
                await replica.engine.release(key)

    async def load_weights(self, weights: Weights, version: int) -> None:
        """As an engine's. A replica that fails at it is opened again with these weights; returns when one has them."""
        self._awake.set()
        async with self._loading:
            self._weights, self.version = weights, version
            self._loads += 1
            given = [(replica, replica.engine) for replica in self._replicas if replica.engine is not None]
            outcomes = await self._send([engine for _, engine in given], weights, version) if given else []
        for (replica, engine), outcome in zip(given, outcomes, strict=True):
            if isinstance(outcome, EngineError):
                self._lost(replica, engine, outcome)
            elif outcome is not None:
                raise outcome
            else:
                replica.left = self._restarts
        await self._some_open()

    async def sleep(self) -> None:
        """As a `Sleeper`'s, of all of them. One that fails at it is opened again by the next `load_weights`."""
        if not self._awake.is_set():
            return
        await self._some_open()
        await asyncio.gather(*(replica.opening for replica in self._replicas if replica.opening is not None))
        self._awake.clear()
        for replica in self._replicas:
            engine = replica.engine
            if engine is None:
                continue
            assert isinstance(engine, Sleeper), "whoever opens engines that shall sleep refuses others"
            try:
                await engine.sleep()
            except EngineError as error:
                self._lost(replica, engine, error)

    async def close(self) -> None:
        """Close every replica, also one that is just opening. Idempotent."""
        self._closed = True
        for replica in self._replicas:
            await _end(replica.opening, replica.watching)
            for engine in (replica.engine, replica.drained):
                if engine is not None:
                    await engine.close()
            replica.engine = replica.drained = None
        await asyncio.gather(*self._leaving)

    # -- one turn ------------------------------------------------------------------------------------------------------

    async def _home(self, key: str | None, failed: Sequence[_Replica], parent: str | None = None) -> _Replica:
        """The open replica of the episode `key`: its own, else where its beginning is cached, else the least loaded."""
        await self._some_open()
        home = self._homes.get(key) if key is not None else None
        if home is not None and home.engine is not None and home not in failed:
            return home
        others = self._others(failed)
        beside = self._homes.get(parent) if home is None and parent is not None else None
        found = beside if beside in others else min(others, key=lambda replica: replica.load)
        if key is not None:
            if home is not None:
                home.episodes -= 1
            self._homes[key] = found
            found.episodes += 1
        return found

    def _others(self, failed: Sequence[_Replica]) -> list[_Replica]:
        return [replica for replica in self._replicas if replica.engine is not None and replica not in failed]

    async def _turn(
        self, replica: _Replica, engine: Engine, prompt_ids: Sequence[int], sampling: Sampling
    ) -> Generation:
        turn = asyncio.ensure_future(engine.generate(prompt_ids, sampling))
        tokens = len(prompt_ids) + sampling.max_tokens
        replica.turns.add(turn)
        replica.tokens += tokens
        try:
            await asyncio.wait([turn])
        except asyncio.CancelledError:
            turn.cancel()
            raise
        finally:
            replica.turns.discard(turn)
            replica.tokens -= tokens
        if turn.cancelled():
            raise _Moved
        return turn.result()

    # -- failing and opening -------------------------------------------------------------------------------------------

    def _lost(self, replica: _Replica, engine: Engine, error: EngineError) -> None:
        """`engine` failed with `error`: it is closed, and another opened. Nothing where that has been seen to."""
        if replica.engine is not engine:
            return
        replica.engine = None
        for (
            turn
        ) in replica.turns:  # they go on elsewhere, whether or not the engine would ever have said that it failed
            turn.cancel()
        watching, replica.watching = replica.watching, None
        if watching is not None and watching is not asyncio.current_task():
            watching.cancel()
        leaving = asyncio.ensure_future(_close(engine))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        if replica.left == 0:
            replica.trouble = EngineError(f"the engine failed again and again, at last with: {error}")
            replica.trouble.__cause__ = error
            return
        replica.left -= 1
        replica.opening = asyncio.ensure_future(self._bring_up(replica, leaving))

    async def _bring_up(self, replica: _Replica, leaving: asyncio.Task[None] | None) -> None:
        """Until it is open and has the weights of now, or for good not; this task raises nothing.

        leaving: what closes the engine before it, whose memory the new one needs.
        """
        if leaving is not None:
            await asyncio.wait([leaving])  # which goes on when this task is cancelled
        while True:
            await self._awake.wait()  # the device is lent
            try:
                engine = await self._opened(replica)
            except Exception as error:
                gone = isinstance(error, EngineError) or (replica.served and isinstance(error, UserError))
                if not gone:  # refused, or a fault of ours: raised by whoever asks next
                    replica.trouble = error
                    return
                if replica.left == 0:
                    replica.trouble = error if isinstance(error, EngineError) else EngineError(str(error))
                    return
                replica.left -= 1
                await asyncio.sleep(PAUSE_S)
            else:
                replica.engine, replica.served = engine, True
                if isinstance(engine, Watched):
                    replica.watching = asyncio.ensure_future(self._watch(replica, engine))
                return

    async def _opened(self, replica: _Replica) -> Engine:
        """A new engine that has the weights of now, also where they changed while it was given them."""
        engine = await replica.open()
        try:
            loads = 0
            while self._weights is not None and loads != self._loads:
                async with self._loading, self._still():
                    loads = self._loads
                    await engine.load_weights(self._weights, self.version)
        except BaseException:
            await engine.close()
            raise
        return engine

    async def _watch(self, replica: _Replica, engine: Any) -> None:
        try:
            await engine.watch()
        except Leaving as notice:
            drained: Engine = engine
            if replica.engine is drained:
                replica.engine, replica.drained, replica.watching = None, drained, None  # nothing more comes to it
                replica.opening = asyncio.ensure_future(self._drain(replica, drained, notice.patience_s))
        except EngineError as error:
            self._lost(replica, engine, error)

    async def _drain(self, replica: _Replica, engine: Engine, patience_s: float) -> None:
        """Let its turns end within `patience_s`; others sample the rest anew, from the same ledger and the same seed.
        Then it is opened again, wherever that is.
        """
        if replica.turns:
            await asyncio.wait(replica.turns, timeout=patience_s)
        for turn in tuple(replica.turns):
            turn.cancel()
        await _close(engine)
        replica.drained = None
        await self._bring_up(replica, None)

    async def _some_open(self) -> None:
        """Wait until a replica is open; those that were never opened are now. Raises where there is no hope."""
        for replica in self._replicas:
            if replica.opening is None and replica.trouble is None:
                replica.opening = asyncio.ensure_future(self._bring_up(replica, None))
        while True:
            self._refuse_without_hope()
            if self.n_open:
                return
            openings = [r.opening for r in self._replicas if r.opening is not None and not r.opening.done()]
            await asyncio.wait(openings, return_when=asyncio.FIRST_COMPLETED)

    def _refuse_without_hope(self) -> None:
        if self._closed:
            raise EngineError("the sampler was closed")
        troubles = [replica.trouble for replica in self._replicas if replica.trouble is not None]
        refused = [trouble for trouble in troubles if not isinstance(trouble, EngineError)]
        if refused or len(troubles) == len(self._replicas):
            raise (refused or troubles)[-1]


async def one_by_one(engines: Sequence[Engine], weights: Weights, version: int) -> list[BaseException | None]:
    """`load_weights` of each, at the same time; what each raised."""
    done = await asyncio.gather(*(engine.load_weights(weights, version) for engine in engines), return_exceptions=True)
    return list(done)


@asynccontextmanager
async def _free() -> AsyncIterator[None]:
    yield


async def _close(engine: Engine) -> None:
    with suppress(EngineError):  # it has failed already
        await engine.close()


async def _end(*tasks: asyncio.Task[None] | None) -> None:
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
