"""Several ranks as one learner: what is asked of it is asked of every rank at once, with the same batch.

    learner:  update, logprobs, entropies, save, load, …  →  rank 0 … rank L - 1, each in a process of its own

Answers are alike, and the first rank's is handed on. A rank that dies, hangs or stops answering ends them all
(`RankLost`): `restart` begins with new processes, and whoever drives them goes on from the last checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solostream.agent.engines.vllm.sender import Receivers
from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantages
from solostream.training.batch import Batch
from solostream.training.cluster.handles import Actor, fetch, share
from solostream.training.cluster.parcels import unpack
from solostream.training.cluster.rank_worker import RankLost
from solostream.training.config import Config

GRACE_S = 10.0  # for the other ranks to answer, once one has failed


class RankWeights(Mapping[str, Any]):
    """Weights of the ranks: a live view of them until somebody wants them published.

    Then they lie in Ray's object store, whole, and are fetched when one is asked for. All methods block.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._reference: Any = None
        self._tensors: dict[str, Any] | None = None

    def publish(self) -> Any:
        """A reference to the parcel, for a process that fetches it itself."""
        if self._reference is None:
            self._reference = self._ranks.publish()
        return self._reference

    def send(self, transfer: str, patience_s: float, to: Receivers, version: int) -> None:
        """See `Sender.send`."""
        self._ranks.send(transfer, patience_s, to, version)

    def _fetched(self) -> dict[str, Any]:
        if self._tensors is None:
            self._tensors = unpack(fetch(self.publish()))
        return self._tensors

    def __getitem__(self, name: str) -> Any:
        return self._fetched()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fetched())

    def __len__(self) -> int:
        return len(self._fetched())


class Ranks:
    """The ranks that `start` starts, with the methods of a `Learner`; all block, and belong into the learner's thread.

    dump_dir: see `Learner`. dtype: of the weights that are published. described: in a line. Every method raises
    RankLost, beside what a learner raises.
    """

    def __init__(
        self, start: Callable[[], list[Actor]], dump_dir: Path, dtype: torch.dtype, described: str = "ranks"
    ) -> None:
        self._start, self.dump_dir, self._dtype, self.described = start, dump_dir, dtype, described
        self._actors: list[Actor] = []

    def open(self, model: Any, adapters: bool) -> None:
        """New processes, which find one another and load `model`: a path that each can read, or the model itself."""
        self.close()
        self._actors = self._start()
        place = asyncio.run(self._actors[0].call("run", "meet"))
        self._every("join", *place)
        self.load_model(model, adapters)

    def close(self) -> None:
        """End the processes, also those that hang."""
        actors, self._actors = self._actors, []
        for actor in actors:
            actor.kill()

    def load_model(self, model: Any, adapters: bool) -> None:
        """Instead of the model that they have; see `open`."""
        self._every("load", model if isinstance(model, str) else share(model), adapters)

    def begin(self, phase: str) -> None:
        """A learner for "cold_start" or "rl" at every rank, on the model that is there."""
        self._every("begin", phase)

    def sft_step(self, sequences: Sequence[Any], step: int) -> dict[str, float]:
        """See `solostream.training.learner.supervised`."""
        found: dict[str, float] = self._every("sft_step", share(sequences), step)
        return found

    def sft_loss(self, sequences: Sequence[Any]) -> float:
        """See `solostream.training.learner.supervised`."""
        return float(self._every("sft_loss", share(sequences)))

    def update(self, batch: Batch, advantages: Advantages, **options: Any) -> dict[str, float]:
        """See `Learner.update`."""
        found: dict[str, float] = self._every("update", share(batch), share(advantages), **options)
        return found

    def logprobs(self, batch: Sequence[Trajectory]) -> list[np.ndarray]:
        """See `Learner.logprobs`."""
        return list(self._every("logprobs", share(batch)))

    def entropies(self, batch: Sequence[Trajectory]) -> list[np.ndarray]:
        """See `Learner.entropies`."""
        return list(self._every("entropies", share(batch)))

    def weights(self) -> RankWeights:
        """As one process would have them: whole, under their Hugging Face names, adapters merged in."""
        return RankWeights(self)

    def publish(self) -> Any:
        """A reference to the parcel of the weights of this moment; nobody else may be asking the ranks for anything."""
        first, *others = self._actors
        reference = first.refer("run", "publish", self._dtype)  # not fetched: it goes to those who sample
        self._all([actor.call("run", "publish", self._dtype) for actor in others])
        return reference

    def send(self, transfer: str, patience_s: float, to: Receivers, version: int) -> None:
        """See `Sender.send`; as `publish`, while the ranks do nothing else."""
        self._every("send", transfer, patience_s, to, version)

    def merge_adapters(self) -> None:
        """Nothing: adapters of a cold start are refused, and those of reinforcement stay."""

    def save(self, folder: Path, *, base: bool = True, on: Path | None = None) -> None:
        """See `Learner.save`; the folder is one that every rank can write to."""
        self._every("save", folder.absolute(), base=base, on=on)

    def write_model(self, folder: Path) -> None:
        """A folder for `from_pretrained`."""
        self._every("write_model", folder.absolute())

    def load(self, folder: Path) -> None:
        """See `Learner.load`."""
        self._every("load_state", folder.absolute())

    def _every(self, name: str, *arguments: Any, **options: Any) -> Any:
        """The first rank's answer, when all have answered."""
        return self._all([actor.call("run", name, *arguments, **options) for actor in self._actors])

    def _all(self, calls: Sequence[Any]) -> Any:
        async def together() -> list[Any]:
            tasks = [asyncio.ensure_future(call) for call in calls]
            _, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if waiting:  # one has failed: the others do so at once, or wait for it
                await asyncio.wait(waiting, timeout=GRACE_S)
            for task in tasks:
                task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        answers = asyncio.run(together()) if calls else [None]
        failed = [one for one in answers if isinstance(one, BaseException)]
        if not failed:
            return answers[0]
        # What a rank says of its work explains more than that the others waited for it.
        said = [one for one in failed if not isinstance(one, RankLost | asyncio.CancelledError)]
        raise (said or [one for one in failed if isinstance(one, RankLost)] or [RankLost("a rank does not answer")])[0]


def refuse_too_many(config: Config, cpus: float, gpus: int) -> None:
    """cpus, gpus: of the cluster. Raises UserError for more ranks than devices, or a device that none can have."""
    n, device = config.cluster.learners, config.model.device
    if device.startswith("cuda:"):
        raise UserError(f'model.device = "{device}" is one GPU, and there are {n} learners: set model.device = "cuda"')
    on_gpu = on_gpus(config, gpus)
    if on_gpu and n > gpus:
        raise UserError(f"cluster.learners = {n}, one a GPU, and there are {gpus} GPUs: set cluster.learners lower")
    if not on_gpu and n > cpus:
        raise UserError(
            f"cluster.learners = {n}, one a processor, and there are {cpus:g}: set cluster.learners lower, or add nodes"
        )
    c = config.learner
    if c.masters != "float32" or c.moments != "full":
        raise UserError(
            'learner.masters and learner.moments need cluster.learners = 1: leave them "float32" and "full"'
        )
    if config.cold_start.learner.lora is not None:
        raise UserError("cold_start.learner.lora needs cluster.learners = 1: adapters of sharded weights do not merge")


def on_gpus(config: Config, gpus: int) -> bool:
    """Whether the ranks train on GPUs, of which the cluster has so many."""
    return config.model.device != "cpu" and (gpus > 0 or config.model.device == "cuda")
