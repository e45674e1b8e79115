"""What a person sees while it runs: live bars on a terminal, one plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Value = float | int | None
# What the bar shows of a step's metrics: name -> (label, format).
SHOWN: Mapping[str, tuple[str, str]] = {
    "loss": ("loss", ".3f"),
    "reward/mean": ("reward", ".3f"),
    "code/ratio": ("code", ".0%"),
    "code/first_call_token": ("first call", ".1f"),
    "time/tokens_per_s": ("tokens/s", ",.0f"),
    "tokens_per_s": ("tokens/s", ",.0f"),  # of a supervised step
    "accuracy": ("accuracy", ".3f"),
    "accuracy_greedy": ("greedy", ".3f"),
}
LINES = 8  # a phase prints about that many lines when nobody watches


class ProgressBar:
    """One phase in progress: `advance` it with the step's metrics."""

    def __init__(self, console: Console, title: str, total: int, bars: Progress | None, done: int) -> None:
        self._console, self._title, self._total, self._bars, self._done = console, title, total, bars, done
        self._started, self._offset = time.monotonic(), done
        self._task = bars.add_task(title, total=total, completed=done, note="") if bars else None

    def advance(self, metrics: Mapping[str, Value] | None = None, by: int = 1) -> None:
        """`by` units are done; `metrics` are shown beside them (see `SHOWN`)."""
        self._done += by
        note = note_of(metrics or {})
        if self._bars is not None and self._task is not None:
            fields: dict[str, Any] = {"note": note} if note else {}
            self._bars.update(self._task, advance=by, **fields)
        elif self._is_due(by):
            spent = time.monotonic() - self._started
            left = spent / max(self._done - self._offset, 1) * (self._total - self._done)
            line = f"{self._title} {self._done}/{self._total}  {note}  {spent:.0f} s, {left:.0f} s to go"
            _print(self._console, line.replace("    ", "  "))

    def _is_due(self, by: int) -> bool:
        every = max(1, self._total // LINES)
        return self._done >= self._total or self._done // every > (self._done - by) // every


class ProgressDisplay:
    """Where the run reports to. `live` decides between bars and lines; by default: is it a terminal?"""

    def __init__(self, console: Console | None = None, live: bool | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal if live is None else live
        self._bars: Progress | None = None

    def say(self, text: str) -> None:
        """Plain text, above the bars."""
        _print(self.console, text)

    @contextmanager
    def stage(self, title: str, total: int, done: int = 0) -> Iterator[ProgressBar]:
        """A phase of `total` units, `done` of which an earlier process did. The bar stays when it ends."""
        if not self._live:
            yield ProgressBar(self.console, title, total, None, done)
            return
        columns = (
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, refresh_per_second=4) as bars:
            yield ProgressBar(self.console, title, total, bars, done)


def note_of(metrics: Mapping[str, Value]) -> str:
    """The metrics that a person follows, as one short text."""
    parts = []
    for name, (label, form) in SHOWN.items():
        value = metrics.get(name)
        if value is not None:
            parts.append(f"{label} {value:{form}}")
    return "  ".join(parts)


def _print(console: Console, text: str) -> None:
    """Plain text; what the terminal's encoding has not becomes a question mark, in a script as on the command line."""
    shown = text.encode(console.encoding, "replace").decode(console.encoding)
    console.print(shown, markup=False)
