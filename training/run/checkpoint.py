"""Atomic checkpoints: a folder is written beside its place, synced, then renamed into it; the last K stay.

`step-000040/` is a Hugging Face folder (`AutoModelForCausalLM.from_pretrained` loads it) with files more:
`trainer.json` (what is plain data), `trainer.pt` (what is tensors), `learner.pt` or the shards of several ranks in
`learner/` (see `Learner.save`) and `solostream.json` (how the run evaluates; see `solostream.agent.run_settings`).
`manifest.json` holds every file's size and
SHA-256 and is written last: a folder without it, or that does not match it, is not a checkpoint.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from solostream.agent.chat_template import read_template
from solostream.disk import writing
from solostream.envs.data import Tasks
from solostream.envs.few_shot import fingerprint
from solostream.errors import UserError
from solostream.training.config import Config
from solostream.training.config.memory.weights import untouched

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint holds beside the learner's: `plain` is JSON, `tensors` tensors and plain types."""

    step: int
    plain: Mapping[str, Any]
    tensors: Mapping[str, Any]


def save(root: Path, state: State, write_model: Callable[[Path], None], keep: int) -> Path:
    """Write `root/step-N` atomically, replacing one of the same step, and drop all but the newest `keep`."""
    root.mkdir(parents=True, exist_ok=True)
    place = root / f"step-{state.step:06d}"
    for left in root.glob(".draft-*"):  # by a process that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    draft = root / f".draft-{state.step:06d}"
    draft.mkdir()
    try:
        with writing(draft):
            write_model(draft)
            torch.save(dict(state.tensors), draft / "trainer.pt")
        (draft / "trainer.json").write_text(json.dumps({"step": state.step, **state.plain}), encoding="utf-8")
        files = sorted(p for p in draft.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(draft)): [p.stat().st_size, _digest(p)] for p in files}
        for path in files:
            _sync(path)
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync(draft / MANIFEST)
        _sync(draft)
        _replace(draft, place)
        _sync(root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in complete(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def complete(root: Path) -> list[Path]:
    """Checkpoint folders that were written to the end, oldest first. Says nothing about damage since."""
    return sorted(p for p in root.glob("step-*") if (p / MANIFEST).exists())


def taken_up(config: Config, source: Path | None) -> State | None:
    """What the run goes on from, read. Raises UserError when it was written under settings that give other numbers."""
    if source is None:
        return None
    saved = load(source)
    refuse_another_run(config, saved)
    return saved


def load(folder: Path) -> State:
    """Read one checkpoint. Raises UserError when it is not one, or is damaged."""
    problem = damage(folder)
    if problem:
        raise UserError(f"{folder} is not a whole checkpoint: {problem}")
    plain = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
    tensors = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
    return State(plain.pop("step"), plain, tensors)


def repair(root: Path) -> None:
    """Put back what a kill between the two renames of `_replace` left aside."""
    for aside in root.glob(".old-step-*"):
        if not (root / aside.name.removeprefix(".old-")).exists():
            os.rename(aside, root / aside.name.removeprefix(".old-"))


def set_aside(root: Path, source: Path | None, saved: State | None, say: Callable[[str], None]) -> None:
    """Rename the checkpoints after `source`, from which a run goes on, to `abandoned-step-N`, and say so in a line.

    Under their names they would be the newest ones, and `save` would delete for them what the run writes from now on.
    """
    repair(root)
    own, first = source and source.resolve(), f"step-{saved.step if saved else 0:06d}"
    late = [place for place in complete(root) if place.name >= first and place.resolve() != own]
    for place in reversed(late):  # a kill in between leaves the older ones
        aside, n = root / f"abandoned-{place.name}", 1
        while aside.exists():
            n += 1
            aside = root / f"abandoned-{place.name}-{n}"
        os.rename(place, aside)
    if late:
        said = ", ".join(place.name for place in late)
        now = f"goes on from {source}" if source else "begins anew"
        say(f"{said} in {root} are renamed abandoned-*, for this run {now}: delete them when you want nothing of them")


def newest(root: Path) -> tuple[Path, State]:
    """The newest whole checkpoint under `root`; damaged ones are passed over with a warning. Raises UserError."""
    repair(root)
    for folder in reversed(complete(root)):
        try:
            return folder, load(folder)
        except (UserError, OSError, ValueError, RuntimeError) as error:
            warnings.warn(f"{error}; trying the one before it", stacklevel=2)
    raise UserError(f"no whole checkpoint in {root}: start the run anew under another --name")


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except ValueError as error:
        return f"its {MANIFEST} is unreadable: {error}"
    for name, (size, digest) in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or _digest(path) != digest:
            return f"{name} has changed since it was written"
    return None


def inputs(config: Config, train: Tasks, test: Tasks, saved: State | None) -> dict[str, Any]:
    """What a run was made of, as a checkpoint remembers it: whoever resumes must bring the same.

    "eval": how "before" is measured, or was in the run that `saved` is of.
    """
    then = saved.plain if saved is not None and saved.plain["before"] else {}
    return {
        "eval": then.get("eval", _measured(config)),
        "resume_fingerprint": config.resume_fingerprint(),
        "config_hash": config.hash(),
        "data": {"train": train.fingerprint, "test": test.fingerprint},
        "few_shot": fingerprint(config.env.options.get("few_shot")),
        "chat_template": _of_text(read_template(config.model.chat_template)),
    }


def refuse_another_run(config: Config, saved: State) -> None:
    """Raises UserError when the checkpoint was written under settings that give other numbers."""
    now, then = config.resume_fingerprint(), saved.plain["resume_fingerprint"]
    keys = {(section, key): None for tree in (now, then) for section in tree for key in tree[section]}
    changed = [
        f"{section}.{key}"
        for section, key in keys
        if then.get(section, {}).get(key) != now.get(section, {}).get(key)
        and (section, key) != ("learner", "total_steps")  # the run's length, of which `changes` tells
    ]
    if not changed:
        return
    raise UserError(f"the checkpoint was written with another {', '.join(changed)}: set them back, or start a new run")


def changes(config: Config, saved: State | None) -> list[str]:
    """A line for each thing that may change on resume, and makes the run another than one that was never stopped."""
    if saved is None:
        return []
    c, then = config.learner, saved.plain["resume_fingerprint"]["learner"]["total_steps"]
    if c.schedule == "constant" or c.total_steps == then:
        return []
    return [
        f"learner.total_steps was {then} and is {c.total_steps}: the rate goes on along the {c.schedule} schedule of "
        "that length, which is not the one that it had so far"
    ]


def unlike(config: Config, now: Mapping[str, Any]) -> list[str]:
    """A line for each setting that "before" was not measured with, and "after" will be. now: see `inputs`."""
    return [
        f'eval.{name} was {now["eval"][name]} when "before" was measured and is {value}: before → after is no '
        f"comparison; set it back for one"
        for name, value in _measured(config).items()
        if now["eval"][name] != value
    ]


def _measured(config: Config) -> dict[str, Any]:
    return {"temperature": config.eval.temperature, "samples": config.eval.samples}


def refuse_other_inputs(config: Config, now: Mapping[str, Any], saved: State | None) -> None:
    """Raises UserError when a file that the configuration only names has changed since the checkpoint.

    now: see `inputs`.
    """
    if saved is None:
        return
    if saved.plain.get("chat_template", now["chat_template"]) != now["chat_template"]:
        raise UserError(
            f"the chat template {config.model.chat_template} has changed since the checkpoint: "
            f"put it back, or start a new run under another --name"
        )
    changed = [name for name, digest in saved.plain["data"].items() if now["data"][name] != digest]
    if saved.plain["few_shot"] != now["few_shot"]:
        raise UserError(
            f"the examples of {config.env.options['few_shot']} have changed since the checkpoint: "
            f"put them back, or start a new run under another --name"
        )
    if changed:
        where = config.data.path or "the generator"
        raise UserError(
            f"the {' and '.join(changed)} problems of {where} have changed since the checkpoint: "
            f"put them back, or start a new run under another --name"
        )


def refuse_other_traces(config: Config, now: Mapping[str, Any], saved: State | None) -> None:
    """The same of the traces, which are read when there is a tokenizer."""
    if saved is not None and saved.plain["traces"] != now["traces"]:
        raise UserError(
            f"{config.cold_start.data} has changed since the checkpoint: put it back, or start a run of another --name"
        )


def _of_text(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(draft: Path, place: Path) -> None:
    """Rename over `place`; an old folder of that name steps aside first, since a rename cannot replace a full one."""
    aside = place.with_name(f".old-{place.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if place.exists():
        os.rename(place, aside)
    os.rename(draft, place)
    shutil.rmtree(aside, ignore_errors=True)


def base_of(config: Config, folder: Path) -> Path | None:
    """Where the weights under the adapters lie while the run `folder` reinforces; None where all are trained."""
    if config.learner.lora is None:
        return None
    return Path(config.model.path) if untouched(config) else folder / "base"


def base_under(config: Config, folder: Path, source: Path | None, saved: State | None) -> Path | None:
    """Where the weights are, under adapters alone, of the checkpoint `source` that the run `folder` goes on from.

    That of the run which wrote it, until `bring_base` has copied it. None where the checkpoint has all weights. Raises
    UserError.
    """
    base = base_of(config, folder)
    if source is None or saved is None or base is None or untouched(config):
        return base if source else None
    if saved.plain["phase"] != "rl":
        return None
    found = source.resolve().parent.parent / "base"
    if not found.is_dir():  # a checkpoint that was moved, perhaps into the folder that has it
        if base.is_dir():
            return base
        raise UserError(f"{source} has adapters alone, and there are no weights under them in {found}: put them back")
    files = [str(place.relative_to(found)) for place in found.rglob("*") if place.is_file()]
    if base.is_dir() and len(filecmp.cmpfiles(found, base, files)[0]) < len(files):
        raise UserError(f"{base} is not {found}, on which {source} was trained: go on under another --name")
    return found


def bring_base(base: Path | None, under: Path | None) -> None:
    """Copy the weights `under` the adapters once, so that the run needs no other folder."""
    if base is None or under is None or base.exists():
        return
    draft = base.with_name(".draft-base")
    with writing(base.parent):
        shutil.copytree(under, draft, dirs_exist_ok=True)
    draft.rename(base)


def write_base(base: Path, folder: Path, tokenizer: Any, write: Callable[[Path], None]) -> None:
    """Once a run, where they are new: built, or of a cold start. write: the model, into a folder."""
    if base.parent == folder and not base.exists():
        draft = base.with_name(".draft-base")
        with writing(folder):
            write(draft)
            tokenizer.save_pretrained(draft)
        draft.rename(base)
