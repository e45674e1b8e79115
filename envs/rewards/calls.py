"""How one reward is called: on the event loop, in a thread, in a process, or once for many episodes; with a time limit.

`async def` rewards run on the event loop, all others off it: in a thread (the default), or in a process of their own
(`run = "process"`: for code that holds the interpreter lock, crashes or never ends; it gets the episode pickled). What
raises, hangs, dies or leaves [0, 1] is a `RewardError`: one line that names the reward and the task, and counted. All
environments of a process that use the same reward with the same options share one `RewardCall`, so that a batch can
hold their episodes.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import os
import threading
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary, WeakValueDictionary

from solostream import registry
from solostream.envs.rewards.episode import Episode, RewardError, Score
from solostream.envs.rewards.processes import Processes
from solostream.errors import SandboxError, UserError

Where = Literal["thread", "process"]
TIMEOUT_S = 60.0  # of one call
THREADS = 64  # of one reward at a time; more wait
SHOWN = 10  # failures of one reward that are printed; more are only counted

# reward -> what failed since the process began, by the kind of exception; `solostream.envs.rewards.failures` reads it
failures: dict[str, Counter[str]] = {}


class RewardCall:
    """One reward with its options. `await call(episode, workspace)` gives a `Score` or raises RewardError.

    timeout_s: of one call; None: what the reward itself says (`timeout_s`), else a minute. batch: so many episodes at
    most go into one call (the function takes a list and returns a list); a smaller batch goes after `batch_wait_s`.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        run: Where = "thread",
        timeout_s: float | None = None,
        batch: int = 0,
        batch_wait_s: float = 0.05,
    ) -> None:
        if run not in get_args(Where):
            raise UserError(f"reward {name!r}: run is thread or process, not {run!r}")
        self._function = component(name, options)
        if timeout_s is None:
            timeout_s = float(getattr(self._function, "timeout_s", TIMEOUT_S))
        if not (0 < timeout_s < math.inf and batch >= 0 and 0 <= batch_wait_s < math.inf):
            raise UserError(
                f"reward {name!r}: timeout_s must be above 0 and finite; batch and batch_wait_s at least 0 and finite"
            )
        self.name, self._timeout_s, self._batch, self._batch_wait_s = name, timeout_s, batch, batch_wait_s
        self._wants_workspace = "workspace" in _parameters(self._function)
        if run == "process" and (_is_async(self._function) or self._wants_workspace):
            raise UserError(f"reward {name!r} is asynchronous or runs code in the sandbox: leave out run = 'process'")
        self._processes = Processes(name, options) if run == "process" else None
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Asked]] = WeakKeyDictionary()

    async def __call__(self, episode: Episode, workspace: Any) -> Score:
        """Raises RewardError; UserError passes, as it is about a setting that no episode will change."""
        try:
            returned = await (self._join(episode) if self._batch else self._call(episode, workspace))
            return _score(returned)
        except UserError:
            raise
        except SandboxError as error:
            kind, said = "SandboxError", str(error)
        except TimeoutError:
            kind, said = "TimeoutError", f"no reward within {self._timeout_s:g} s"
        except Exception as error:
            kind, said = type(error).__name__, str(error)
        raise self._failed(episode, kind, said)

    def _failed(self, episode: Episode, kind: str, said: str) -> RewardError:
        counted = failures.setdefault(self.name, Counter())
        counted[kind] += 1
        line = f"reward {self.name!r} failed on task {episode.task.id!r}: {kind}: {' '.join(said.split())[:300]}"
        if counted.total() <= SHOWN:
            last = " (further ones are only counted)" if counted.total() == SHOWN else ""
            warnings.warn(line + last, RuntimeWarning, stacklevel=3)
        return RewardError(line)

    async def _call(self, argument: Any, workspace: Any = None) -> Any:
        """The function's value, whatever kind of function it is. Raises TimeoutError and what the function raises."""
        given = {"workspace": workspace} if self._wants_workspace else {}
        if _is_async(self._function):
            return await asyncio.wait_for(self._function(argument, **given), self._timeout_s)
        slots = self._slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._most()))
        async with slots:
            if self._processes is not None:
                worker = self._processes.take()
                try:
                    return await asyncio.wait_for(in_thread(worker.ask, argument), self._timeout_s)
                except (TimeoutError, asyncio.CancelledError):
                    worker.kill()
                    raise
                finally:
                    self._processes.give(worker)
            return await asyncio.wait_for(in_thread(self._function, argument, **given), self._timeout_s)

    def _most(self) -> int:
        return THREADS if self._processes is None else max(1, os.cpu_count() or 1)

    async def _join(self, episode: Episode) -> Any:
        """This episode's part of a batch: the batch goes when it is full or its first episode has waited."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.setdefault(loop, [])
        asked = _Asked(episode, loop.create_future())
        waiting.append(asked)
        if len(waiting) >= self._batch:
            self._send(loop)
        elif len(waiting) == 1:
            loop.call_later(self._batch_wait_s, self._send, loop, asked)
        return await asked.future

    def _send(self, loop: asyncio.AbstractEventLoop, first: _Asked | None = None) -> None:
        waiting = self._waiting.get(loop) or []
        if not waiting or (first is not None and waiting[0] is not first):
            return  # it went when it was full
        batch = [asked for asked in waiting if not asked.future.done()]
        waiting.clear()
        if batch:
            task = loop.create_task(self._score_batch(batch))
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)

    async def _score_batch(self, batch: Sequence[_Asked]) -> None:
        try:
            returned = list(await self._call([asked.episode for asked in batch]))
            if len(returned) != len(batch):
                raise ValueError(f"{len(returned)} rewards for {len(batch)} episodes")
        except Exception as error:
            for asked in batch:
                if not asked.future.done():
                    asked.future.set_exception(error)
            return
        for asked, value in zip(batch, returned, strict=True):
            if not asked.future.done():
                asked.future.set_result(value)


def failed_rewards() -> str:
    """The rewards that failed since the process began, each with its failures by kind; "": none did."""
    told = (f"{name!r} ({', '.join(f'{n} × {kind}' for kind, n in kinds.items())})" for name, kinds in failures.items())
    return ", ".join(told)


class _Asked:
    __slots__ = ("episode", "future")

    def __init__(self, episode: Episode, future: asyncio.Future[Any]) -> None:
        self.episode, self.future = episode, future


_tasks: set[asyncio.Task[None]] = set()  # the event loop itself holds tasks only weakly
_calls: WeakValueDictionary[str, RewardCall] = WeakValueDictionary()


def shared_call(name: str, options: Mapping[str, Any], settings: Mapping[str, Any]) -> RewardCall:
    """The one `RewardCall` of this process for these options. Raises UserError for an unknown name or option."""
    key = json.dumps([name, dict(options), dict(settings)], sort_keys=True, default=repr)
    call = _calls.get(key)
    if call is None:
        call = _calls[key] = RewardCall(name, options, **settings)
    return call


def component(name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The reward that `name` says: a function, with its keyword options bound, or an instance of a class."""
    found = registry.load("reward", name)
    if inspect.isclass(found):
        made: Callable[..., Any] = registry.make("reward", name, options)
        return made
    if not callable(found):
        raise UserError(f"reward {name!r} is a {type(found).__name__}; it must be a function or a class with __call__")
    first = next(iter(_parameters(found)), "")
    bound = registry.checked(f"reward '{name}'", found, options, (first, "workspace"))
    return partial(found, **bound) if bound else found


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _is_async(function: Callable[..., Any]) -> bool:
    plain = function.func if isinstance(function, partial) else function
    return inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(getattr(plain, "__call__", None))  # noqa: B004


def in_thread(function: Callable[..., Any], *args: Any, **named: Any) -> Awaitable[Any]:
    """`function`'s value, from a daemon thread: one that hangs keeps neither its place in a pool nor the program."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def work() -> None:
        result, failed = None, None
        try:
            result = function(*args, **named)
        except BaseException as error:
            failed = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=work, name="reward", daemon=True).start()
    return future


def _score(returned: Any) -> Score:
    score = returned if isinstance(returned, Score) else Score(float(returned))
    if not 0 <= score.value <= 1:
        raise ValueError(f"returned {score.value}; rewards must lie in [0, 1]")
    return score
