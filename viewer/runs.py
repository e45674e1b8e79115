"""The runs that a server shows: those that were named, and those that appear in a folder of runs while it serves."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

from solostream.agent.trajectory_file import FILE_NAMES, find_file
from solostream.errors import UserError
from solostream.viewer.index import Index
from solostream.viewer.metric_columns import RunMetrics
from solostream.viewer.tokens import Pieces, find_tokenizer

# What a run and an evaluation write before their first trajectory -> the file that this will be in.
BEGUN = {"config.toml": "trajectories.jsonl", "identity.json": "samples.jsonl"}


class ViewedRun:
    """One run that can be looked at: its index, its metrics and its tokenizer.

    name: of its own among the runs of a server, part of its pages' addresses. trouble: why its file cannot be followed
    now.
    """

    def __init__(self, place: Path, name: str, tokenizer: Path | None = None) -> None:
        self.place, self.name = place, name
        self.path = _file(place)
        self.index = Index(self.path)
        self.metrics = RunMetrics(self.path.with_name("metrics.jsonl"))
        self.trouble: str | None = None
        self._pieces = Pieces(tokenizer) if tokenizer else None

    @property
    def pieces(self) -> Pieces | None:
        """Of the run's tokenizer, which comes with its first checkpoint."""
        if self._pieces is None and (found := find_tokenizer(self.place)) is not None:
            self._pieces = Pieces(found)
        return self._pieces


class Runs:
    """`places`: runs, evaluations, files of trajectories, or folders that hold such. Raises UserError for others."""

    def __init__(self, places: Sequence[Path], tokenizer: Path | None = None) -> None:
        self._tokenizer = tokenizer
        self._folders = [place for place in places if not _is_run(place) and _holds_runs(place)]
        self.sources: list[ViewedRun] = []
        self._known: set[Path] = set()
        for place in places:
            if place not in self._folders:
                self.sources.append(self._source(place))
        self._changed = threading.Lock()
        self._follower: _Follower | None = None
        self.discover()

    def discover(self) -> None:
        """Take in the runs that have begun in the folders since the last look; the others keep their numbers."""
        with self._changed:
            new: list[ViewedRun] = []
            for folder in self._folders:
                for place in sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path)):
                    if _file(place).resolve() not in self._known:
                        new.append(self._source(place, [source.name for source in new]))
            self.sources += new
            if new and self._follower is not None:
                self._follower.stop()
                self._follower = _Follower(self.sources)

    @property
    def only(self) -> ViewedRun | None:
        """The one run that was named, when there is nothing else to show and nothing will come."""
        return self.sources[0] if len(self.sources) == 1 and not self._folders else None

    def find(self, name: str) -> ViewedRun | None:
        """The run of that name, as the list shows it."""
        return next((source for source in self.sources if source.name == name), None)

    def _source(self, place: Path, more: Sequence[str] = ()) -> ViewedRun:
        """more: names that are taken besides those of `sources`."""
        taken = {source.name for source in self.sources} | set(more)
        plain = place.resolve().name
        name = next(n for n in chain([plain], (f"{plain}-{i}" for i in count(2))) if n not in taken)
        source = ViewedRun(place, name, self._tokenizer)
        self._known.add(source.path.resolve())
        return source

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Keep the indexes up to date, in a process of their own; what troubles it becomes a source's `trouble`."""
        with self._changed:
            self._follower = _Follower(self.sources)
        try:
            yield
        finally:
            with self._changed:
                self._follower.stop()
                self._follower = None


class _Follower:
    """The process that indexes; see `solostream.viewer.follow`."""

    def __init__(self, sources: Sequence[ViewedRun]) -> None:
        for source in sources:
            try:
                source.index.refresh(100)  # the first page is there when the first request comes
            except OSError as error:  # one that may not be read is no reason to show none
                source.trouble = str(error)
        self._sources, self._ending = list(sources), threading.Event()
        pairs = [str(path) for source in sources for path in (source.index.place.resolve(), source.path.resolve())]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "solostream.viewer.follow", *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )  # fmt: skip - a session of its own: Ctrl+C is for the server
        assert self._process.stdout is not None
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    def stop(self) -> None:
        self._ending.set()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it ends when it sees that
        self._process.wait()
        self._listener.join()
        self._process.stdout.close()

    def _listen(self, lines: Iterable[str]) -> None:
        for line in lines:
            i, trouble = json.loads(line)
            self._sources[i].trouble = trouble
        if not self._ending.is_set():
            for source in self._sources:
                source.trouble = "indexing has stopped: start solostream view again"


def _is_run(place: Path) -> bool:
    try:
        return place.is_file() or any((place / name).is_file() for name in (*FILE_NAMES, *BEGUN))
    except PermissionError:  # somebody's private folder among the others
        return False


def _holds_runs(place: Path) -> bool:
    """Whether runs are in this folder, or may come: a folder of anything else is a mistake."""
    if not place.is_dir():
        return False
    return not any(place.iterdir()) or any(path.is_dir() and _is_run(path) for path in place.iterdir())


def _file(place: Path) -> Path:
    """The file of trajectories, also before its first line. Raises UserError."""
    for sign, name in BEGUN.items():
        if (place / sign).is_file() and not any((place / known).is_file() for known in FILE_NAMES):
            return place / name
    try:
        return find_file(place)
    except UserError as error:
        if place.is_dir():
            raise UserError(f"{place} is neither a run, an evaluation nor a folder of such") from None
        raise error
