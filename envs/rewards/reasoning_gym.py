"""`reasoning-gym`: a problem's own verifier, `score_answer(answer, entry)` of the library that made it.

Several of those verifiers evaluate the answer as Python (`eval`, SymPy's `parse_expr`). So only plain numbers and words
are shown to them here; any other answer is scored in a session of the fork sandbox, in a process forked for it alone.
What that does not keep out: an answer that is a program against its own verifier can make itself right there.
A verifier that raises, or does not come to an end, has found the answer wrong.
"""

from __future__ import annotations

import base64
import math
import pickle
import re
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from reasoning_gym.factory import get_score_answer_fn

from solostream.envs.rewards.episode import Episode, Score
from solostream.errors import SandboxError, UserError
from solostream.sandbox.interpreter import Interpreter

SECONDS = 10.0  # of one verdict
_START_S = 120.0  # to import the library on a loaded machine
_PLAIN = re.compile(r"[+-]?[0-9][0-9,]{0,40}(\.[0-9]{1,20})?|[A-Za-z]{1,40}( [A-Za-z]{1,40}){0,8}")
_SETUP = """import base64, os, pickle
from reasoning_gym.factory import get_score_answer_fn
def score(kind, packed):
    answer, entry = pickle.loads(base64.b64decode(packed))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = repr(float(get_score_answer_fn(kind)(answer, entry)))
        except BaseException as error:
            said = type(error).__name__
        os.write(write, said.encode()[:100])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)  # else it counts among the session's processes for good
    return said
"""


class ReasoningGym:
    """The verifier's score, kept within [0, 1]. The task's `meta` has the `kind` and the library's entry as `row`."""

    timeout_s = 2 * _START_S

    def __init__(self) -> None:
        self._lock = threading.Lock()  # one session for all threads
        self._interpreter: Interpreter | None = None

    def __call__(self, episode: Episode) -> Score:
        """Raises SandboxError where nothing could be judged, UserError where the sandbox has no reasoning-gym."""
        meta, answer = episode.task.meta, episode.answer
        if answer is None:
            return Score(0.0, "no answer")
        kind, entry = str(meta["kind"]), meta["row"]
        said = _here(kind, answer, entry) if _PLAIN.fullmatch(answer) else self._apart(kind, answer, entry)
        try:
            value = float(said)
        except ValueError:
            return Score(0.0, f"the verifier of {kind} failed on it: {said}")
        return Score(min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0, f"the verifier of {kind}")

    def _apart(self, kind: str, answer: str, entry: Mapping[str, Any]) -> str:
        packed = base64.b64encode(pickle.dumps((answer, dict(entry)))).decode()
        with self._lock:
            if self._interpreter is None:
                self._interpreter = _opened()
            done = self._interpreter.run(f"score({kind!r}, {packed!r})", timeout=SECONDS)
            failed = done.status == "error"  # what the verifier raises is an answer of its process, this is none
            if failed or not done.state_kept:
                self._interpreter.close()
                self._interpreter = None
        if failed:
            raise SandboxError(f"the verifier's sandbox: {done.error.message if done.error else done.status}")
        if done.status != "ok":
            return done.status
        return (done.result or "''")[1:-1]


def _opened() -> Interpreter:
    interpreter = Interpreter("fork", memory_mb=2048, pool=1)
    done = interpreter.run(_SETUP, timeout=_START_S)
    if done.status == "ok":
        return interpreter
    interpreter.close()
    if done.error and done.error.name == "ModuleNotFoundError":
        raise UserError(f"the verifier's sandbox: {done.error.message}; pip install 'solostream[reasoning-gym]'")
    raise SandboxError(f"the verifier did not start: {done.error.message if done.error else done.status}")


@lru_cache(maxsize=128)
def _verifier(kind: str) -> Callable[[str, Mapping[str, Any]], float]:
    return get_score_answer_fn(kind)  # type: ignore[no-any-return]


def _here(kind: str, answer: str, entry: Mapping[str, Any]) -> str:
    try:
        return repr(float(_verifier(kind)(answer, dict(entry))))
    except Exception as error:  # whatever a verifier does with an answer that it did not expect
        return type(error).__name__
