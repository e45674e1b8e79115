"""What runs inside vLLM's workers: reading new weights from a file, not outliving the engine's owner.

Named by `worker_extension_cls`: vLLM imports it before it makes its half of a weight transfer.
"""

from __future__ import annotations

import os
import select
import signal
from threading import Thread
from typing import Any

from solostream.agent.engines.weight_file import read_weights


class Reload:
    """Mixed into vLLM's worker class by vLLM."""

    model_runner: Any
    model_config: Any
    _weight_update_active: bool

    def end_with(self, owner: int) -> None:
        """Die when the process `owner` does, however it dies (Linux). vLLM's core dies with any of its workers."""
        try:
            watched = os.pidfd_open(owner)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGKILL)
        Thread(target=_die_after, args=(watched,), daemon=True).start()

    def dtype(self) -> str:
        """Of the weights: "bfloat16"."""
        return str(self.model_config.dtype).removeprefix("torch.")

    def load_from(self, path: str) -> None:
        """Load a `weight_file` (names as in the Hugging Face state dict) over the model."""
        self.model_runner.reload_weights(weights_iterator=read_weights(path))

    def abandon_update(self) -> None:
        """After a transfer that broke off: layers that have some of their weights take no others until they are whole.

        vLLM's own end of an update would be refused where it failed. What is in the layers then is of no use.
        """
        from vllm.model_executor.model_loader import reload

        finalize: Any = reload.finalize_layerwise_reload
        self._weight_update_active = False
        finalize(self.model_runner.get_model(), self.model_runner.model_config)


def know_gloo() -> None:
    """Tell this process's vLLM of the backend "gloo", both halves. Idempotent."""
    from vllm.distributed.weight_transfer import factory

    place = "solostream.agent.engines.vllm.gloo"
    for registry, half in (
        (factory.WeightTransferEngineFactory, "GlooReceiver"),
        (factory.WeightTransferTrainerFactory, "GlooSender"),
    ):
        if "gloo" not in registry._registry:
            registry.register_engine("gloo", place, half)


def _die_after(watched: int) -> None:
    select.select([watched], [], [])  # a pidfd is readable once its process has ended
    os.kill(os.getpid(), signal.SIGKILL)


know_gloo()
