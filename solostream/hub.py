"""Names of the Hugging Face Hub: asked for without a dozen lines of retries, and why one did not come, in one line."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

_ABSENT = "it is not in the cache, and the Hub cannot be reached"
_REPOSITORY = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)  # with or without its owner
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class _Retries(logging.Filter):
    """Leaves out that a request is tried again; whatever else their client has to say passes."""

    NOISE = re.compile(r"Retrying in |thrown while requesting ")

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.NOISE.search(record.getMessage())


_RETRIES, _CLIENT = _Retries(), logging.getLogger("huggingface_hub.utils._http")
_CONNECT_S = 5.0  # for each address of the Hub
_asking, _offline, _count_lock = 0, False, threading.Lock()


@contextmanager
def asked(name: str) -> Iterator[None]:
    """Held around a request to the Hub for `name`, which may also be a file or a folder.

    Its client logs two lines for each time that it tries again, for half a minute a file, before the one error that we
    tell in a line; where nothing answers at all only its cache is looked through, at once. A script or a notebook that
    asks by itself finds its client as before.
    """
    global _asking
    alone = not Path(name).exists() and _unreachable()
    with _count_lock:
        _asking += 1
        _CLIENT.addFilter(_RETRIES)  # once, however often it is added
        if alone:
            _go_offline(True)
    try:
        yield
    finally:
        with _count_lock:
            _asking -= 1
            if not _asking:  # another thread may be in the middle of a download
                _CLIENT.removeFilter(_RETRIES)
                if _offline:
                    _go_offline(False)


def _unreachable() -> bool:
    """Whether no connection to the Hub can be made. What a proxy reaches is left to their client."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.is_offline_mode() or {address.scheme, "all"} & set(getproxies()):
        return False
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), _CONNECT_S).close()
    except OSError:
        return True
    return False


def _go_offline(on: bool) -> None:
    """What HF_HUB_OFFLINE does for a whole process."""
    global _offline
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = _offline = on


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
        return _ABSENT
    return _first_line(error)


def no_model(name: str, error: BaseException) -> str:
    """As `why`, of a model that may have been meant as a folder, or be a run's folder or a file of a model."""
    saved = sorted(Path(name).glob("checkpoints/step-*"))
    if saved:
        return f"it is a run, not a model: give one of its checkpoints, such as {saved[-1]}"
    if Path(name).is_file():
        return f"it is a file, and a model is a folder with a config.json: give that, such as {Path(name).parent}"
    if Path(name).exists():
        return _first_line(error)
    if not _REPOSITORY.fullmatch(name):
        return "no such folder, and no name that a Hugging Face id can have: check the path"
    reason = why(name, error)
    bring = f": check the network, or bring it here with `hf download {name}`" if reason == _ABSENT else ""
    return f"no such folder, and as a Hugging Face id: {reason}{bring}"


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
