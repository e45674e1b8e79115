"""Who learns in a run: a `Learner` in this process, or the `Ranks` that `[cluster] learners` asks for."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from solostream.training.cluster.handles import Actor
from solostream.training.cluster.placement import Placement
from solostream.training.cluster.rank_worker import RankLost, RankWorker, learner_of
from solostream.training.cluster.ranks import Ranks, on_gpus
from solostream.training.config import Config
from solostream.training.config.memory.weights import only_adapters
from solostream.training.learner import supervised
from solostream.training.learner.device import describe, sampler_dtype
from solostream.training.learner.learner import Learner
from solostream.training.learner.packing import MaskedTokens
from solostream.training.losses import Loss
from solostream.training.run import checkpoint
from solostream.training.run.setup import Components

T = TypeVar("T")
Learns = Learner | Ranks
RESTARTS = 3  # from one and the same step


class Learning:
    """What blocks here belongs into the learner's thread: all but `described` and `through`.

    loss: of reinforcement. folder: of the run.
    """

    def __init__(
        self, config: Config, parts: Components, placement: Placement | None, loss: Loss, folder: Path
    ) -> None:
        self._config, self._parts, self._loss, self._folder = config, parts, loss, folder
        self.ranks = _ranks(config, placement, loss, folder) if config.cluster.learners > 1 else None

    @property
    def described(self) -> str:
        """What trains, in a line."""
        if self.ranks is not None:
            return self.ranks.described
        said = describe(self._parts.model.device)
        if self._parts.masters is not None:
            return f"{said}, the optimizer on the host"
        idle = self._config.learner.offload_optimizer
        return (
            f"{said}; learner.offload_optimizer has nothing to move here: the optimizer is on the CPU" if idle else said
        )

    async def through(self, work: Callable[[], Awaitable[T]], back: Callable[[RankLost], int]) -> T:
        """What `work` returns, which is begun anew when ranks are lost: from a step that `back` has gone back to."""
        lost_at: Counter[int] = Counter()
        while True:
            try:
                return await work()
            except RankLost as lost:
                step = back(lost)
                lost_at[step] += 1
                if lost_at[step] > RESTARTS:
                    raise

    def open(self, found: Path | None) -> None:
        """Start the ranks, with the model in the folder `found`, else that of the configuration."""
        if self.ranks is not None:
            self.ranks.open(self._model(found), only_adapters(self._config))

    def begin(self, phase: str) -> Learns:
        """A learner for the phase "cold_start" or "rl", on the model as it is now.

        Where nothing is trained but adapters, the first phase has a learner of the second kind, too: one that could
        train all weights would make them float32, and moments for each.
        """
        phase = "rl" if only_adapters(self._config) else phase
        if self.ranks is None:
            gc.collect()  # the learner before, with its moments, should a cycle hold it: searches are rare in a run
            p = self._parts
            return learner_of(self._config, phase, p.model, self._loss, self._folder, masters=p.masters)
        self.ranks.begin(phase)
        return self.ranks

    def write_base(self, base: Path) -> None:
        """The weights under the adapters, once a run and where they are new; then everybody has those."""
        write = self.ranks.write_model if self.ranks else self._parts.model.save_pretrained
        checkpoint.write_base(base, self._folder, self._parts.tokenizer, write)
        if self.ranks is not None:  # what the cold start has shared out takes no adapters any more
            self.ranks.load_model(self._model(base), only_adapters(self._config))

    def close(self) -> None:
        """End the ranks."""
        if self.ranks is not None:
            self.ranks.close()

    def _model(self, found: Path | None) -> Any:
        path = str(found) if found else self._config.model.path
        if path == "build":
            return self._parts.model
        return str(Path(path).absolute()) if Path(path).exists() else path


def sft_step(learner: Learns, sequences: Sequence[MaskedTokens], step: int) -> dict[str, float]:
    """See `solostream.training.learner.supervised`."""
    if isinstance(learner, Ranks):
        return learner.sft_step(sequences, step)
    return supervised.sft_step(learner, sequences, step)


def sft_loss(learner: Learns, sequences: Sequence[MaskedTokens]) -> float:
    """See `solostream.training.learner.supervised`."""
    if isinstance(learner, Ranks):
        return learner.sft_loss(sequences)
    return supervised.sft_loss(learner, sequences)


def _ranks(config: Config, placement: Placement | None, loss: Loss, folder: Path) -> Ranks:
    """Not yet started."""
    n = config.cluster.learners
    assert placement is not None, "several learners are a cluster"
    gpu = on_gpus(config, placement.gpus)
    threads = {} if gpu else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (n + config.cluster.replicas)))}

    def start() -> list[Actor]:
        given = config, loss, folder.absolute()
        options: dict[str, Any] = {"cpus": 1, "gpus": int(gpu), "env": threads, "lost": RankLost}
        return [placement.actor(RankWorker, i, *given, who=f"the rank {i}", **options) for i in range(n)]

    described = f"{n} ranks train, each on a {'GPU' if gpu else 'processor'}"
    return Ranks(start, folder, sampler_dtype(config.model, torch.device("cuda" if gpu else "cpu")), described)
