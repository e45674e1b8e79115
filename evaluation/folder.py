"""The folder of an evaluation: one writer at a time, samples of one evaluation only, and of the problems as they are.

A sample's line carries a hash of its problem. Where a data file was edited, the samples of problems that changed are
moved aside to `replaced.jsonl` and asked for again; those of problems that are no longer there are moved, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.envs.types import Task
from solostream.errors import UserError
from solostream.evaluation import writer
from solostream.evaluation.metrics import Sample
from solostream.evaluation.samples import reduce

SAMPLES, IDENTITY, REPLACED = "samples.jsonl", "identity.json", "replaced.jsonl"


@dataclass(slots=True)
class FolderContents:
    """What was in the folder. keys: (task id, number of the sample). replaced: samples of problems that were edited."""

    samples: list[Sample] = field(default_factory=list)
    keys: set[tuple[str, int]] = field(default_factory=set)
    damaged: int = 0
    replaced: int = 0


def content_hash(task: Task) -> str:
    """Of everything a reward can depend on: another prompt, answer or `meta` is another problem."""
    record = json.dumps([task.prompt, task.answer, dict(task.meta)], sort_keys=True, default=repr)
    return hashlib.blake2b(record.encode(errors="replace"), digest_size=8).hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the folder for this process. What a start that failed left in it (no sample yet) goes when it is given back.

    Raises UserError while another process holds it.
    """
    with writer.locked(folder):
        try:
            yield
        except BaseException:
            _remove_empty(folder)
            raise


def open_folder(folder: Path, identity: Mapping[str, Any], tasks: Sequence[Task]) -> FolderContents:
    """What is there already, of all `tasks` of the data set. A torn last line is cut off.

    Raises UserError when the samples of an evaluation with another identity are there.
    """
    place, path = folder / IDENTITY, folder / SAMPLES
    if place.exists() and path.exists() and path.stat().st_size:  # without a sample there is nothing to mix up
        _same(folder, place, identity)
    place.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    path.touch()
    hashes = {task.id: content_hash(task) for task in tasks}
    found, stale, end = FolderContents(), [], 0
    for line in read_lines(path):
        end = line.offset + line.length
        if line.trajectory is None or line.record is None:
            found.damaged += 1
            continue
        key = (line.trajectory.task_id, line.record.get("sample", -1))
        if hashes.get(key[0]) != line.record.get("problem"):
            stale.append((line.offset, line.length))
        elif key not in found.keys:
            found.keys.add(key)
            found.samples.append(reduce(line.trajectory))
    if path.stat().st_size > end:
        os.truncate(path, end)
    if stale:
        _move_aside(folder, stale)
    found.replaced = len(stale)
    return found


def line_of(trajectory: Trajectory, task: Task, sample: int, system: str | None = None) -> str:
    """What `open_folder` reads back: the record of the trajectory with its number and its problem.

    system: what the system message said; the record of the opening runs it together with examples. None: unknown.
    """
    record = {**trajectory.to_dict(), "sample": sample, "prompt": task.prompt, "problem": content_hash(task)}
    if system is not None:
        record["system"] = system
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def _same(folder: Path, place: Path, identity: Mapping[str, Any]) -> None:
    try:
        before, now = _spread(json.loads(place.read_text(encoding="utf-8"))), _spread(identity)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"cannot read {place}: choose another --out, or remove that folder") from None
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        what = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed)
        raise UserError(f"{folder} holds another evaluation ({what}); choose another --out, or remove that folder")


def _spread(identity: Mapping[str, Any]) -> dict[str, Any]:
    """`identity` with one entry a setting of the environment."""
    options = {f"env_options.{name}": value for name, value in json.loads(identity["env_options"]).items()}
    return {**{name: value for name, value in identity.items() if name != "env_options"}, **options}


def _move_aside(folder: Path, stale: Sequence[tuple[int, int]]) -> None:
    """Bytes (offset, length) of samples.jsonl to the end of replaced.jsonl; a kill in between loses nothing."""
    path = folder / SAMPLES
    content = path.read_bytes()
    kept, at = [], 0
    for offset, length in stale:
        kept.append(content[at:offset])
        at = offset + length
    kept.append(content[at:])
    with (folder / REPLACED).open("ab") as aside:
        aside.write(b"".join(content[offset : offset + length] for offset, length in stale))
    draft = folder / f".{SAMPLES}.draft"
    draft.write_bytes(b"".join(kept))
    os.replace(draft, path)


def _remove_empty(folder: Path) -> None:
    """A folder in which nothing was finished, if nothing else is in it."""
    samples = folder / SAMPLES
    if samples.exists() and samples.stat().st_size:
        return
    ours = {SAMPLES, IDENTITY, writer.LOCK, "summary.json"}
    if {path.name for path in folder.iterdir()} <= ours:
        for name in ours:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
