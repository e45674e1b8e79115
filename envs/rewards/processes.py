"""Processes that run one reward: a fresh interpreter each, fed pickled episodes, killed when it takes too long.

Not `multiprocessing`: its workers cannot be killed one by one, and its spawn imports the user's script again.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_LENGTH = struct.Struct("<Q")


class RewardWorker:
    """One process. `ask` blocks; `kill` from another thread makes it raise."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        home = str(Path(__file__).parents[3])  # the folder that holds the package
        paths = os.pathsep.join([home, *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self._write([name, dict(options)])

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        return self._process.poll() is None

    def ask(self, argument: Any) -> Any:
        """The reward of `argument`. Raises RuntimeError with what the function raised, or that the process died."""
        try:
            self._write(argument)
            assert self._process.stdout is not None
            failed, value = _read(self._process.stdout)
        except (OSError, EOFError, ValueError) as error:
            self.kill()
            raise RuntimeError(f"its process died (exit code {self._process.returncode})") from error
        if failed:
            raise RuntimeError(value)
        return value

    def kill(self) -> None:
        """Kill and reap it; an `ask` in another thread raises RuntimeError."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError, ValueError):  # what was not yet written; another thread reads
                    pipe.close()

    def _write(self, value: Any) -> None:
        assert self._process.stdin is not None
        _write(self._process.stdin, value)


class Processes:
    """Workers of one reward that wait for the next episode; as many as were ever needed at once."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self._name, self._options = name, options
        self._idle: list[RewardWorker] = []
        self._lock = threading.Lock()

    def take(self) -> RewardWorker:
        """An idle worker, else a new one. Give it back."""
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    return worker
        return RewardWorker(self._name, self._options)

    def give(self, worker: RewardWorker) -> None:
        """Keep a worker for the next call; a dead one is dropped."""
        if worker.alive:
            with self._lock:
                self._idle.append(worker)

    def __del__(self) -> None:
        for worker in self._idle:
            worker.kill()


def _write(stream: Any, value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _read(stream: Any) -> Any:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    return pickle.loads(stream.read(length))


def main() -> None:
    """Serve until stdin closes. What the reward prints goes to stderr: stdout carries the values."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from solostream.envs.rewards.calls import component

    name, options = _read(sys.stdin.buffer)
    function: Any = None
    while True:
        try:
            argument = _read(sys.stdin.buffer)
        except EOFError:
            return
        try:
            function = function or component(name, options)
            value = function(argument)
            _write(replies, (False, value if not isinstance(argument, list) else list(value)))
        except Exception as error:
            _write(replies, (True, f"{type(error).__name__}: {error}"))
