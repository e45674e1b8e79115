"""Why a name did not come from the Hugging Face Hub, in words that say what to do."""

from __future__ import annotations

from pathlib import Path

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


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
