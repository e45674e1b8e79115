"""Are two answers the same? Exact and fast for numbers and strings, `math-verify` for the rest.

math-verify bounds its work with signals, which only the main thread may use, and SymPy can hang where no exception
reaches (`9^{9^{9^9}}`). So it runs in a child process that serves one pair at a time: the kernel's timer kills it, its
answer is then "no", and the next pair starts another. Safe from any thread and any worker process.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from solostream.errors import SandboxError, UserError

SECONDS = 5  # of processor time for one comparison, in the child: a busy machine changes no verdict
_PROGRAM = str(Path(__file__).with_name("grading_child.py"))
MAX_ANSWER = 2_000  # characters; a longer answer is not one
_NUMBER = re.compile(r"[+-]?(?:\d{1,400}|\d{1,3}(?:,\d{3}){1,40})(?:\.\d{1,400})?|[+-]?\.\d{1,400}", re.ASCII)
_RATIO = re.compile(
    r"(?P<sign>-?)(?:\\[dt]?frac\{(?P<a>-?\d{1,400})\}\{(?P<b>\d{1,400})\}|(?P<c>-?\d{1,400})/(?P<d>\d{1,400}))",
    re.ASCII,
)
_DECORATION = re.compile(
    r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;!: ]|\\(?:text|mathrm|mbox|mathbf)\{([^{}]*)\}|\$"
)
# White space that separates nothing; between two words or numbers it stays: "1 2" is not 12.
_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")


@lru_cache(maxsize=65_536)
def equivalent(gold: str, answer: str) -> bool:
    """Whether `answer` equals `gold` as mathematics. May take seconds.

    Raises UserError without math-verify, SandboxError when it does not start: neither is a wrong answer.
    """
    verdict = quick(gold, answer)
    return _compare(gold, answer) if verdict is None else verdict


def quick(gold: str, answer: str) -> bool | None:
    """Microseconds: decided for plain numbers, fractions and equal strings; None where it takes math-verify."""
    gold, answer = _plain(gold), _plain(answer)
    if not answer or len(answer) > MAX_ANSWER:
        return False
    if gold == answer:
        return True
    left, right = _rational(gold), _rational(answer)
    return left == right if left is not None and right is not None else None


def _plain(text: str) -> str:
    if text.isalnum() and text.isascii():
        return text
    text = _DECORATION.sub(lambda match: match[1] or "", text.strip())
    return _SPACE.sub("", text).rstrip(".")


def _rational(text: str) -> Fraction | None:
    if _NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if match := _RATIO.fullmatch(text):
        top, bottom = int(match["a"] or match["c"]), int(match["b"] or match["d"])
        return Fraction(-top if match["sign"] else top, bottom) if bottom else None
    return None


class _Child:
    def __init__(self) -> None:
        self.pid = os.getpid()  # a forked copy of this object must not talk into its parent's pipes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, gold: str, answer: str) -> bool:
        """A pair on which the child dies is not the same. It gets a second try, in case something else killed it."""
        with self._lock:
            for _ in range(2):
                process = self._process = self._process or _start()
                assert process.stdin is not None
                assert process.stdout is not None
                with suppress(BrokenPipeError):  # it died since the last pair
                    print(json.dumps([gold, answer]), file=process.stdin, flush=True)
                if line := process.stdout.readline():
                    return line.startswith("yes")
                if self.stop() == -signal.SIGPROF:  # its own timer
                    break
            return False

    def stop(self) -> int | None:
        """How the child ended; None: there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        process.communicate()  # closes the pipes, whatever is still in them
        return process.returncode


def _start() -> subprocess.Popen[str]:
    command = [sys.executable, "-P", _PROGRAM, str(SECONDS)]  # -P: its folder holds a types.py
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"},
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    if said == "ready\n":
        return process
    process.communicate()
    if said == "missing\n":
        raise UserError("comparing LaTeX answers needs math-verify: pip install 'math-verify[antlr4_13_2]'")
    raise SandboxError(f"the process that compares answers does not start; to see why: {' '.join(command)} </dev/null")


_child = _Child()


@atexit.register
def _stop_child() -> None:
    if _child.pid == os.getpid():
        _child.stop()


def _compare(gold: str, answer: str) -> bool:
    global _child
    if _child.pid != os.getpid():
        _child = _Child()
    return _child.ask(gold, answer)
