"""Ray: a cluster that is there, or one of this machine for as long as the run; what runs on it, and where.

Every actor is restarted by Ray for as long as there is a machine with room for it: at once in another process, after
Ray's health check (24 s by default) on another machine, and when a machine joins that it was waiting for.
"""

from __future__ import annotations

import inspect
import os
import platform
import socket
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import solostream
from solostream.agent.engine import EngineError
from solostream.errors import UserError
from solostream.training.cluster.handles import Actor
from solostream.training.config.cluster import ClusterConfig

PATIENCE_S = 10.0  # for an address to answer
CALLS = 1 << 16  # under way at one actor, at most
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"}
SAME_EVERYWHERE = ("torch", "vllm", "transformers")


class Placement:
    """The connection to Ray. `close` ends the actors that were started through it, and Ray where it was started here.

    cpus: what a cluster of this machine alone is to have, whatever the machine has: its processes share it.
    say: told what a person wants to know. Raises UserError: Ray is not installed, the cluster does not answer, or its
    machines have other versions.
    """

    def __init__(self, config: ClusterConfig, cpus: int = 1, say: Callable[[str], None] = print) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("[cluster] needs ray: pip install 'solostream[cluster]'") from None
        self._ray: Any = ray
        self.say = say
        self._actors: list[Actor] = []
        self._held: list[Any] = []  # references to what actors are made of
        self._own = not ray.is_initialized()
        self._alone = self._own and not config.address
        if self._own:
            os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
            self._connect(config.address, cpus)
        try:
            refuse_other_versions(self._versions())
        except UserError:
            self.close()
            raise

    def _connect(self, address: str, cpus: int) -> None:
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if not address:
            try:
                self._ray.init(num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False, **quiet)
            except Exception as error:  # Ray's own when it takes longer than half a minute
                raise UserError(
                    f"Ray did not start on this machine: {error}; is it very busy, or short of memory?"
                ) from None
            return
        _refuse_silent(address)
        try:
            self._ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise UserError(
                f"no Ray cluster at {address} that this machine belongs to ({lines[0]}): start one with `ray start`"
            ) from None

    @property
    def cpus(self) -> float:
        """Of all machines together."""
        return processors(self._ray.cluster_resources(), alone=self._alone)

    @property
    def gpus(self) -> int:
        """Of all machines together."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    def lacks(self, cpus: float, gpus: float) -> str | None:
        """What a run that wants so many processors and GPUs has to wait for; None where all is there."""
        have = self._ray.cluster_resources()
        short = [
            f"{wanted:g} {name}s of {have.get(name, 0):g}"
            for name, wanted in (("CPU", cpus), ("GPU", gpus))
            if have.get(name, 0) < wanted
        ]
        return f"the run wants {', '.join(short)}: what finds no place waits for a machine to join" if short else None

    def actor(
        self,
        made: type,
        *arguments: Any,
        who: str,
        cpus: float = 0,
        gpus: float = 0,
        env: Mapping[str, str] | None = None,
        lost: type[Exception] = EngineError,
        **options: Any,
    ) -> Actor:
        """An object of the class `made` in a process of its own, made of `arguments` again whenever it is restarted.

        Returns at once: the process starts where there is room, and when there is. env: variables of that process.
        options: of Ray's.
        """
        # Ray stores an argument above 100 kB by itself, but lets go of it: a second restart would not find it.
        held = [self._ray.put(argument) for argument in arguments]
        self._held += held
        handle = (
            self._ray.remote(made)
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=-1,
                max_task_retries=0,  # a call that Ray repeats would meet an object that has forgotten everything
                # For a class without a coroutine Ray would make a thread for each call that may be under way.
                max_concurrency=CALLS if _asynchronous(made) else 1,
                runtime_env={"env_vars": {**QUIET, "PYTHONPATH": _python_path(), **(env or {})}},
                **options,
            )
            .remote(*held)
        )
        self._actors.append(Actor(handle, who, lost))
        return self._actors[-1]

    def close(self) -> None:
        """End what was started. Idempotent."""
        actors, self._actors, self._held = self._actors, [], []
        if self._own and self._ray.is_initialized():
            self._ray.shutdown()
            return
        for actor in actors:
            actor.kill()

    def _versions(self) -> dict[str, dict[str, str]]:
        """Of every machine that is there now, by address."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = self._ray.remote(num_cpus=0)(versions)
        asked = {
            node["NodeManagerAddress"]: ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in self._ray.nodes()
            if node["Alive"]
        }
        found: dict[str, dict[str, str]] = {"here": versions()}
        for address, answer in asked.items():
            try:
                found[address] = self._ray.get(answer)
            except Exception as error:  # no solostream at all: the task cannot even be read there
                lines = str(error).strip().splitlines()
                raise UserError(
                    f"{address} of the cluster cannot run solostream: {lines[-1]}; install it there"
                ) from None
        return found


def _asynchronous(made: type) -> bool:
    return any(inspect.iscoroutinefunction(getattr(made, name)) for name in dir(made))


def _python_path() -> str:
    """Components of one's own ("module:object") are found there as here, where the folder is there at all."""
    return os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH", ""))))


def processors(resources: Mapping[str, float], *, alone: bool) -> float:
    """Of a cluster with such `resources`; `alone`: it is this machine, and was told of as many as the run wants."""
    return float((os.cpu_count() or 1) if alone else resources.get("CPU", 0))


def versions() -> dict[str, str]:
    """Of this process: Python, solostream, and what numbers depend on; "none" of a package that is not there."""
    found = {"Python": platform.python_version(), "solostream": solostream.__version__}
    for package in SAME_EVERYWHERE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def refuse_other_versions(found: Mapping[str, Mapping[str, str]]) -> None:
    """`found`: by machine, this one first. Raises UserError for one that has something else."""
    (here, own), *others = found.items()
    for machine, theirs in others:
        for name, number in own.items():
            if theirs.get(name) != number:
                raise UserError(
                    f"{name} is {number} {here} and {theirs.get(name)} on {machine} of the cluster: install the same"
                )


def _refuse_silent(address: str) -> None:
    """Ray itself would wait for half a minute, and then say much. Raises UserError."""
    if address in ("auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        raise UserError(f'cluster.address = "{address}" is no address of a Ray cluster: give "auto", or "HOST:6379"')
    try:
        socket.create_connection((host, int(port)), PATIENCE_S).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at {address} ({error}): start one with `ray start --head`") from None
