"""One rank, as it lives in a process of its own: its place in the group, its model, the learner that trains it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from solostream.agent.engine import EngineError
from solostream.agent.engines.vllm.sender import Receivers, Sender
from solostream.training.cluster.handles import own_address
from solostream.training.cluster.parcels import Parcel, pack
from solostream.training.cluster.rank_group import ALONE, RankGroup, join, meet, reach
from solostream.training.cluster.rank_sharding import whole_tensors
from solostream.training.config import Config
from solostream.training.learner.device import device_of
from solostream.training.learner.learner import Learner
from solostream.training.learner.optimizer.on_host import HostMasters
from solostream.training.learner.packing import MaskedTokens
from solostream.training.learner.state import write_model
from solostream.training.learner.supervised import sft_loss, sft_step
from solostream.training.losses import Loss
from solostream.training.run.model import load_weights

# What torch says when another rank is gone or does not come; it has no class of error for all of it.
LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "broken pipe")


class RankLost(EngineError):
    """A rank is gone, or the others waited for one in vain: the group has no way back to work."""


class RankWorker:
    """Rank `rank` of `config.cluster.learners`.

    loss: of reinforcement. dump_dir: see `Learner`.
    """

    def __init__(self, rank: int, config: Config, loss: Loss, dump_dir: Path) -> None:
        self._rank, self._config, self._loss, self._dump_dir = rank, config, loss, dump_dir
        # One thread for all that torch does: the calls of a group come in one order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rank")
        self._store: Any = None
        self._group = ALONE
        self._model: Any = None
        self.learner: Any = None
        self._sender: Sender | None = None

    async def run(self, name: str, *arguments: Any, **options: Any) -> Any:
        """What the method `name` of this object, or else of its learner, returns or raises. Raises RankLost."""

        def work() -> Any:
            method = getattr(self, name, None) or getattr(self.learner, name)
            try:
                return method(*arguments, **options)
            except RuntimeError as error:
                if self._group.world > 1 and any(word in str(error).lower() for word in LOST):
                    raise RankLost(f"rank {self._rank}: {str(error).strip().splitlines()[0]}") from None
                raise

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def meet(self) -> tuple[str, int]:
        """Of the first rank: the address at which the others find it."""
        host = own_address()
        self._store = meet(host)
        return host, self._store.port

    def join(self, host: str, port: int) -> None:
        """Returns when all ranks are there."""
        cluster = self._config.cluster
        store = self._store or reach(host, port, cluster.timeout_s)
        self._group = join(self._rank, cluster.learners, store, self._device(), cluster.timeout_s)

    def load(self, model: Any, adapters: bool) -> None:
        """Take up `model`, or load it from the path that it is. adapters: see `load_weights`."""
        self._model = self.learner = None  # the memory of the one before
        device = self._device()
        read = isinstance(model, str)
        self._model = load_weights(self._config.model, model, device, adapters=adapters) if read else model.to(device)

    def begin(self, phase: str) -> None:
        """A learner for "cold_start" or "rl", on the model as it is now."""
        self.learner = None  # its moments are let go before there are new ones
        self.learner = learner_of(self._config, phase, self._model, self._loss, self._dump_dir, self._group)

    def sft_step(self, sequences: Sequence[MaskedTokens], step: int) -> dict[str, float]:
        """See `solostream.training.learner.supervised`."""
        return sft_step(self.learner, sequences, step)

    def sft_loss(self, sequences: Sequence[MaskedTokens]) -> float:
        """See `solostream.training.learner.supervised`."""
        return sft_loss(self.learner, sequences)

    def publish(self, dtype: torch.dtype) -> Parcel | None:
        """Every weight in the sampler's dtype, from the first rank; None from the others."""
        found = whole_tensors(self.learner.weights(), self._group, dtype)
        return pack(found) if self._group.first else None

    def send(self, transfer: str, patience_s: float, to: Receivers, version: int) -> None:
        """Every weight straight to the replicas; see `Sender.send`."""
        if self._sender is None:
            self._sender = Sender(transfer, patience_s, own_address(), self._rank)
        self._sender.send(self.learner.weights(), to, version)

    def load_state(self, folder: Path) -> None:
        """See `Learner.load`."""
        self.learner.load(folder)

    def write_model(self, folder: Path) -> None:
        """A folder for `from_pretrained`; written by the first rank."""
        write_model(self._model, self.learner.weights(), folder, self._group)

    def _device(self) -> torch.device:
        return device_of(self._config.model.device)


def learner_of(
    config: Config,
    phase: str,
    model: Any,
    loss: Loss,
    dump_dir: Path,
    group: RankGroup = ALONE,
    masters: HostMasters | None = None,
) -> Learner:
    """The learner of the cold start ("cold_start"), or of reinforcement ("rl"); each rank of a group makes its own."""
    if phase == "cold_start":
        return Learner(model, config.cold_start.learner, dump_dir=dump_dir, group=group, masters=masters)
    return Learner(
        model,
        config.learner,
        loss=loss,
        temperature=config.rollout.temperature,
        seed=config.run.seed,
        dump_dir=dump_dir,
        group=group,
        masters=masters,
    )
