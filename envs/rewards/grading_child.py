"""The grader's child process. It says "ready" ("missing": no math-verify); then JSON pairs in, "yes" or "no" out.

Its timer kills it when a pair takes too long.
"""

from __future__ import annotations

import json
import resource
import signal
import sys

MEMORY = 2 << 30  # bytes of address space


def main() -> None:
    """Serve until stdin closes. SIGPROF keeps its default action: the kernel ends the process even inside C code."""
    try:
        import math_verify
    except ImportError:
        print("missing", flush=True)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    math_verify.verify(_read(math_verify, "\\sqrt{2}"), _read(math_verify, "2"), timeout_seconds=None)  # imports lazily
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
        gold, answer = json.loads(line)
        try:
            same = math_verify.verify(_read(math_verify, gold), _read(math_verify, answer), timeout_seconds=None)
        except Exception:  # whatever SymPy throws at strange input: not the same
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("yes" if same else "no", flush=True)


def _read(math_verify, text: str) -> list:  # type: ignore[no-untyped-def]
    boxed = text if "\\boxed" in text or "$" in text else f"${text}$"
    return math_verify.parse(boxed, parsing_timeout=None)


if __name__ == "__main__":
    main()
