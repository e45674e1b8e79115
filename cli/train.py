"""`solostream train` and `solostream sft`: everything that can be refused is refused before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from solostream.errors import UserError
from solostream.training import config as configuration
from solostream.training.config import Config
from solostream.training.run.progress import ProgressDisplay

Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


def train(
    config: tyro.conf.Positional[Path],
    name: str | None = None,
    engine: Literal["hf", "vllm"] | None = None,
    seed: int | None = None,
    resume: str | None = None,
    set: Settings = (),
    dry_run: bool = False,
) -> int:
    """Cold start, reinforcement learning and evaluation from one TOML file, into runs/NAME.

    Args:
        config: the TOML file; a [sweep] section runs every combination, one after the other.
        name: folder under runs/; default: the file's name.
        engine: what samples: hf (in this process) or vllm.
        seed: of the model, the data order and the sampling.
        resume: go on from the newest whole checkpoint ("auto", also when nothing follows) or from a checkpoint folder.
        set: section.key=value, as often as wanted, on top of the file.
        dry_run: print the plan (tokens, memory, steps) and stop.
    """
    runs = _runs(config, name, engine, seed, set)
    if dry_run:
        from solostream.training.config.dry_run import describe

        for settings, folder in runs:
            print(f"{folder}\n{describe(settings)}\n")
        return 0
    _refuse_existing(runs, resume)
    for settings, folder in runs:
        _train_one(settings, folder, resume)
    return 0


def sft(
    config: tyro.conf.Positional[Path],
    name: str | None = None,
    seed: int | None = None,
    resume: str | None = None,
    set: Settings = (),
) -> int:
    """The supervised cold start only, with the evaluation that follows it; `solostream train --resume` goes on from it.

    Args:
        config: the TOML file.
        name: folder under runs/; default: the file's name.
        seed: of the model, the demonstrations and the sampling.
        resume: "auto" or a checkpoint folder.
        set: section.key=value, as often as wanted, on top of the file.
    """
    runs = _runs(config, name, None, seed, set)
    if not all(settings.cold_start.phases for settings, _ in runs):
        raise UserError("there is no cold start: give [cold_start] phases, or use solostream train")
    _refuse_existing(runs, resume)
    for settings, folder in runs:
        _train_one(settings, folder, resume, cold_start_only=True)
    return 0


def _runs(
    path: Path, name: str | None, engine: str | None, seed: int | None, settings: Sequence[str]
) -> list[tuple[Config, Path]]:
    """Every run that the command asks for and where it goes; a swept key that an option also sets is refused."""
    options = [f"run.{key}={_toml(value)}" for key, value in (("engine", engine), ("seed", seed)) if value is not None]
    given = [*settings, *options]
    tree = configuration.assign(configuration.read(path), given)
    twice = sorted(configuration.swept(tree).keys() & {setting.partition("=")[0].strip() for setting in given})
    if twice:
        raise UserError(f"{twice[0]} is swept and set: take it out of [sweep], or leave the option away")
    runs = []
    for suffix, combination in configuration.expand(tree):
        made = configuration.validate(combination)
        folder = Path(made.run.root) / ((name or made.run.name or path.stem) + suffix)
        runs.append((made, folder))
    if len({folder for _, folder in runs}) < len(runs):
        raise UserError("two runs of the sweep have the same name: its keys must differ in their last part")
    return runs


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _refuse_existing(runs: Sequence[tuple[Config, Path]], resume: str | None) -> None:
    """Raises UserError rather than overwrite a run, before the first of a sweep begins."""
    for _, folder in runs:
        if resume is None and folder.exists():
            raise UserError(f"{folder} exists: choose another --name, or go on with --resume")


def _train_one(config: Config, folder: Path, resume: str | None, *, cold_start_only: bool = False) -> None:
    started = time.monotonic()  # loading torch and transformers is part of the run
    checkpoint = _checkpoint(folder, resume)
    from solostream.training.run.interrupt import Interrupted
    from solostream.training.run.trainer import Trainer

    view = ProgressDisplay()
    try:
        Trainer(config, folder, view, checkpoint, started=started).run(cold_start_only=cold_start_only)
    except Interrupted:
        view.say(f"stopped with a checkpoint in {folder}/checkpoints; --resume goes on from it")
        raise KeyboardInterrupt from None


def _checkpoint(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from; None starts from the beginning. Raises UserError when there is none as asked."""
    if resume is None:
        return None
    if resume != "auto":
        if not (Path(resume) / "manifest.json").exists():
            raise UserError(f"--resume {resume}: no checkpoint; give a folder like {folder}/checkpoints/step-000020")
        return Path(resume)
    from solostream.training.run.checkpoint import complete, newest, repair

    root = folder / "checkpoints"
    repair(root)
    return newest(root)[0] if complete(root) else None
