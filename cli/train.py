"""`solostream train` and `solostream sft`: everything that can be refused is refused before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from solostream.errors import UserError
from solostream.training import config as configuration
from solostream.training.config import Config
from solostream.training.run.progress import ProgressDisplay

Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


def train(
    config: tyro.conf.Positional[Path],
    name: str | None = None,
    engine: str | None = None,
    seed: int | None = None,
    resume: str | None = None,
    set: Settings = (),
    cluster: str | None = None,
    dry_run: bool = False,
) -> int:
    """Cold start, reinforcement learning and evaluation from one TOML file, into runs/NAME.

    Args:
        config: the TOML file (a [sweep] section runs every combination, one after the other), or a recipe's name:
            quickstart, own-data, smollm2-135m-cpu, qwen3-0.6b, … (docs/training.md); with --resume also a run's folder.
        name: folder under runs/; default: the file's name.
        engine: what samples: hf (in this process), vllm, server, or one of your own.
        seed: of the model, the data order and the sampling.
        resume: go on from the newest whole checkpoint ("auto", also when nothing follows) or from a checkpoint folder,
            under the run's own configuration; --set comes on top of that.
        set: section.key=value, as often as wanted, on top of the file.
        cluster: run on a Ray cluster: its address, "HOST:6379"; alone: the one that this machine belongs to.
        dry_run: print the plan (tokens, memory, steps) and stop.
    """
    runs = _runs(config, name, engine, seed, set, resume, cluster)
    if dry_run:
        return _plan(runs)
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
    dry_run: bool = False,
) -> int:
    """The supervised cold start only, with the evaluation that follows it; `solostream train --resume` goes on from it.

    Args:
        config: the TOML file, or a recipe's name.
        name: folder under runs/; default: the file's name.
        seed: of the model, the demonstrations and the sampling.
        resume: "auto" or a checkpoint folder.
        set: section.key=value, as often as wanted, on top of the file.
        dry_run: print the plan (memory: of these steps alone) and stop.
    """
    runs = _runs(config, name, None, seed, set, resume)
    if not all(settings.cold_start.begun for settings, _ in runs):
        raise UserError("there is no cold start: give [cold_start] phases or data, or use solostream train")
    if dry_run:
        return _plan(runs, cold_start_only=True)
    _refuse_existing(runs, resume)
    for settings, folder in runs:
        _train_one(settings, folder, resume, cold_start_only=True)
    return 0


def _plan(runs: Sequence[tuple[Config, Path]], *, cold_start_only: bool = False) -> int:
    from solostream.training.config.dry_run import describe

    for settings, folder in runs:
        print(f"{folder}\n{describe(settings, cold_start_only=cold_start_only)}\n")
    return 0


def _runs(
    path: Path,
    name: str | None,
    engine: str | None,
    seed: int | None,
    settings: Sequence[str],
    resume: str | None,
    cluster: str | None = None,
) -> list[tuple[Config, Path]]:
    """Every run that the command asks for and where it goes; a swept key that an option also sets is refused.

    A run that is resumed goes by the configuration that it wrote, whatever has become of the file since.
    """
    said = (("run.engine", engine), ("run.seed", seed), ("cluster.address", cluster))
    options = [f"{key}={_toml(value)}" for key, value in said if value is not None]
    given = [*settings, *options]
    tree = configuration.assign(configuration.read(path), given)
    twice = sorted(configuration.swept(tree).keys() & {setting.partition("=")[0].strip() for setting in given})
    if twice:
        raise UserError(f"{twice[0]} is swept and set: take it out of [sweep], or leave the option away")
    runs = []
    for suffix, combination in configuration.expand(tree):
        made = configuration.validate(combination)
        own = path if (path / "config.toml").is_file() else None  # `train runs/mine --resume`
        folder = own or Path(made.run.root) / ((name or made.run.name or configuration.name_of(path)) + suffix)
        if resume is not None and (written := _written(folder, resume)) is not None:
            made = configuration.validate(configuration.assign(configuration.read(written), given))
            print(f"settings of {written}; --set overrides")
        runs.append((made, folder))
    if len({folder for _, folder in runs}) < len(runs):
        raise UserError("two runs of the sweep have the same name: its keys must differ in their last part")
    return runs


def _written(folder: Path, resume: str) -> Path | None:
    """The configuration of the run in `folder`, or of the one whose checkpoint is resumed; None before the first."""
    places = [folder / "config.toml"] + ([Path(resume).parent.parent / "config.toml"] if resume != "auto" else [])
    return next((place for place in places if place.is_file()), None)


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _refuse_existing(runs: Sequence[tuple[Config, Path]], resume: str | None) -> None:
    """Raises UserError rather than overwrite a run, before the first of a sweep begins."""
    for _, folder in runs:
        if resume is None and folder.exists():
            raise UserError(f"{folder} exists: choose another --name, or go on with --resume")


def _train_one(config: Config, folder: Path, resume: str | None, *, cold_start_only: bool = False) -> None:
    started = time.monotonic()  # loading torch and transformers is part of the run
    from solostream.training.run.interrupt import Interrupted
    from solostream.training.run.train import newest, run

    checkpoint = newest(folder) if resume == "auto" else _checkpoint(folder, resume)
    view = ProgressDisplay()
    try:
        run(config, folder, checkpoint, view, started=started, cold_start_only=cold_start_only)
    except Interrupted:
        view.say(f"stopped with a checkpoint in {folder}/checkpoints; --resume goes on from it")
        raise KeyboardInterrupt from None


def _checkpoint(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint that was named, None for none. Raises UserError when it is not one."""
    if resume is None:
        return None
    if not (Path(resume) / "manifest.json").exists():
        raise UserError(f"--resume {resume}: no checkpoint; give a folder like {folder}/checkpoints/step-000020")
    return Path(resume)
