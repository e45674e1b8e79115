"""Names of the Hugging Face Hub: asked for without a dozen lines of retries, and why one did not come, in one line."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class _Retries(logging.Filter):
    """Leaves out that a request is tried again; whatever else their client has to say passes."""

    NOISE = re.compile(r"Retrying in |thrown while requesting ")

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.NOISE.search(record.getMessage())


_RETRIES, _CLIENT = _Retries(), logging.getLogger("huggingface_hub.utils._http")
_asking, _count_lock = 0, threading.Lock()


@contextmanager
def asked() -> Iterator[None]:
    """Held around a request to the Hub. Its client logs two lines for each time that it tries again, for half a minute,
    before the one error that we tell in a line; a script or a notebook that asks by itself hears them as before.
    """
    global _asking
    with _count_lock:
        _asking += 1
        _CLIENT.addFilter(_RETRIES)  # once, however often it is added
    try:
        yield
    finally:
        with _count_lock:
            _asking -= 1
            if not _asking:  # another thread may be in the middle of a download
                _CLIENT.removeFilter(_RETRIES)


def why(name: str, error: BaseException, kind: str = "") -> str:
    """One line without a full stop. kind: "datasets/" for a data set. `error`: what a library of theirs raised."""
    causes: set[str] = set()
    one: BaseException | None = error
    while one is not None and len(causes) < 50:
        causes |= {each.__name__ for each in type(one).__mro__}
        one = one.__cause__ or one.__context__
    said = str(error)
    if "GatedRepoError" in causes or "gated" in said:
        return f"it is gated: ask for access at https://huggingface.co/{kind}{name}, then {LOGIN}"
    unknown = ("doesn't exist on the Hub", "is not a valid model identifier")
    if "RepositoryNotFoundError" in causes or any(phrase in said for phrase in unknown):
        return f"the Hub has no such repository, or a private one: check the spelling; for a private one {LOGIN}"
    absent = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError"} & causes
    if absent or "reach" in said or "connect" in said:
        return "it is not in the cache, and the Hub cannot be reached"
    return _first_line(error)


def no_model(name: str, error: BaseException) -> str:
    """As `why`, of a model that may have been meant as a folder."""
    if Path(name).exists():
        return _first_line(error)
    return f"no such folder, and as a Hugging Face id: {why(name, error)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
