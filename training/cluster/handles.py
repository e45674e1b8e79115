"""An object of this process, or an actor of Ray's in another: the same asynchronous calls and the same errors.

Whoever calls does not know which of the two it has. Ray is imported where there is an actor, and nowhere before.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
import time
from typing import Any

from solostream.agent.engine import EngineError


class Dead(EngineError):
    """An actor that nobody will start again: it could not be made, or was ended on purpose."""


class Local:
    """`obj`, in this process."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    async def call(self, name: str, *args: Any, **kw: Any) -> Any:
        """What its method `name` returns or raises; a coroutine is awaited."""
        found = getattr(self._obj, name)(*args, **kw)
        return await found if inspect.isawaitable(found) else found

    def move(self) -> None:
        """It is where everybody is."""


class Actor:
    """The actor behind `handle`, called `who` in messages (with its article: "the replica 1").

    lost: what is raised when its process, its node or an object of its went away; the message says what happened.
    """

    def __init__(self, handle: Any, who: str = "an actor", lost: type[Exception] = EngineError) -> None:
        self.handle, self.who, self._lost = handle, who, lost

    async def call(self, name: str, *args: Any, **kw: Any) -> Any:
        """What its method `name` returns; raises what that raised there, and `lost` where there is nobody now: Dead
        where nobody will come.

        References among the arguments arrive as what they refer to (`share`). Who gives the call up ends it there too.
        """
        import ray
        from ray.exceptions import ActorDiedError, RayError, RayTaskError

        reference = self.refer(name, *args, **kw)
        try:
            return await reference
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise self._lost(f"{self.who} failed in {name}: {_line(error)}") from error
        except ActorDiedError as error:
            raise Dead(f"{self.who} is gone for good ({_line(error)})") from error
        except RayError as error:
            raise self._lost(f"{self.who} is gone ({type(error).__name__}: {_line(error)})") from error

    def refer(self, name: str, *args: Any, **kw: Any) -> Any:
        """A reference to what the method will return; the value stays where it is made until somebody asks for it."""
        return getattr(self.handle, name).remote(*args, **kw)

    def move(self) -> None:
        """End its process; Ray starts it again where there is room, which is no machine that will be taken away."""
        import ray

        ray.kill(self.handle, no_restart=False)

    def kill(self) -> None:
        """End its process at once, whatever it does."""
        import ray

        ray.kill(self.handle, no_restart=True)


def share(value: Any) -> Any:
    """A reference by which any number of actors get `value`, which is sent to each machine once."""
    import ray

    return ray.put(value)


def fetch(reference: Any) -> Any:
    """What `reference` refers to; arrays in it are read-only and lie where all processes of a machine read them."""
    import ray

    return ray.get(reference)


def own_machine() -> str:
    """Ray's number of the machine of this process; empty for a process that Ray does not know."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id()) if ray is not None and ray.is_initialized() else ""


def leaving_machines() -> dict[str, float]:
    """Those that Ray was told will be taken away (a spot machine's notice, `ray drain-node`), and the seconds left."""
    from ray import get_runtime_context
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # as Ray Serve asks; no public way
    from ray.exceptions import RpcError

    try:
        ends = GcsClient(address=get_runtime_context().gcs_address).get_draining_nodes(timeout=5)
    except RpcError:  # the head does not answer: nobody knows of any
        return {}
    return {machine: end / 1000 - time.time() if end else math.inf for machine, end in ends.items()}


def own_address() -> str:
    """At which processes of other machines reach this one."""
    import ray

    util: Any = ray.util
    return str(util.get_node_ip_address())


def _line(error: BaseException) -> str:
    """The one line that says most: of what failed while an actor was made, the last, which is that failure."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "creation task" in lines[0] else lines[0]
