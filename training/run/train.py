"""One call that trains: `solostream.train(...)`, and what the command line does for each of its runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solostream.agent.engines.hf.device import KEPT, device_told
from solostream.errors import UserError
from solostream.sandbox.interpreter import in_any_thread
from solostream.training import config as configuration
from solostream.training.cluster.crew import refuse_sampler
from solostream.training.config import Config
from solostream.training.learner.device import device_of
from solostream.training.run import checkpoint
from solostream.training.run.interrupt import Interrupted
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.summary import Summary
from solostream.training.run.trainer import Trainer

TOO_LARGE = (
    "--dry-run lists what the run takes and what would make it fit; look at what else is on the device (nvidia-smi); "
    f"{KEPT}"
)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run left: its folder, the newest checkpoint (a Hugging Face folder), and `summary.json` as an object."""

    folder: Path
    checkpoint: Path
    summary: Summary


def train(
    config: str | Path | Mapping[str, Any] | Config,
    settings: Iterable[str] | Mapping[str, Any] = (),
    *,
    name: str | None = None,
    resume: bool = False,
    view: ProgressDisplay | None = None,
) -> TrainResult:
    """Train as `solostream train` does, in a script or in a notebook.

    Args:
        config: a recipe's name ("quickstart"), a TOML file, a mapping of sections, or a `Config`.
        settings: on top of it: {"run.steps": 20, "data.path": "problems.jsonl"}, or ["run.steps=20"].
        name: of the folder under `run.root` ("runs"); default: the file's or recipe's.
        resume: go on from the newest whole checkpoint, where there is one.
        view: where progress is shown; default: bars on a terminal, a line now and then elsewhere.

    Raises UserError for whatever is wrong with the input; SandboxError and EngineError when these fail for good;
    KeyboardInterrupt after Ctrl-C, with a checkpoint.
    """
    made, default = _configured(config, settings)
    folder = Path(made.run.root) / (name or made.run.name or default)
    if folder.exists() and not resume:
        raise UserError(f"{folder} exists: give another name, or resume=True")
    try:
        summary = run(made, folder, newest(folder) if resume else None, view or ProgressDisplay())
    except Interrupted:
        raise KeyboardInterrupt from None
    assert summary is not None  # only a cold start alone has none
    return TrainResult(folder, checkpoint.complete(folder / "checkpoints")[-1], summary)


def run(
    config: Config,
    folder: Path,
    source: Path | None,
    view: ProgressDisplay,
    *,
    started: float | None = None,
    cold_start_only: bool = False,
) -> Summary | None:
    """Prepare and do one run. A start that fails before its first checkpoint leaves no folder behind.

    source: the checkpoint to go on from. started: `time.monotonic()` when the work began. Raises Interrupted.
    """
    device_of(config.model.device)  # first of all: a recipe for a machine that this is not
    new = not folder.exists()
    refuse_sampler(config, source)
    with device_told(TOO_LARGE):
        trainer = Trainer(config, folder, view, source, started=started, cold_start_only=cold_start_only)
    try:
        with device_told(TOO_LARGE):
            return in_any_thread(trainer.run, trainer.stop)
    except BaseException:
        if new and not checkpoint.complete(folder / "checkpoints") and not _worth_keeping(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; None when there is none yet. Raises UserError when all are damaged."""
    root = folder / "checkpoints"
    checkpoint.repair(root)
    return checkpoint.newest(root)[0] if checkpoint.complete(root) else None


def _worth_keeping(folder: Path) -> bool:
    """Whether somebody could learn something from what a failed start left: episodes, or a batch that was no good."""
    dumped = [*folder.glob("bad-batch-*"), *folder.glob("trajectories.jsonl")]
    return any(path.stat().st_size for path in dumped)


def _configured(
    config: str | Path | Mapping[str, Any] | Config, settings: Iterable[str] | Mapping[str, Any]
) -> tuple[Config, str]:
    """The configuration, and what its run is called unless somebody says otherwise."""
    name = "run"
    if isinstance(config, Config):
        tree: Mapping[str, Any] = config.model_dump(mode="json", exclude_unset=True)
    elif isinstance(config, Mapping):
        tree = config
    else:
        tree, name = configuration.read(Path(config)), configuration.name_of(Path(config))
    tree = configuration.assign(tree, settings)
    if configuration.swept(tree):
        raise UserError("a [sweep] is many runs: use solostream train, or call train() for each")
    return configuration.validate(tree), name
