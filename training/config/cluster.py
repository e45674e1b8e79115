"""`[cluster]`: in how many processes a run learns, samples and plays, and on which machines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from solostream.training.config.section import Count, Positive, Section


class ClusterConfig(Section):
    """With the defaults everything is in this process, and Ray is neither needed nor imported; see docs/scaling.md."""

    learners: Positive = 1  # ranks that train, one a GPU; several share the weights out among them (FSDP2)
    replicas: Positive = 1  # engines that sample; an episode stays with one
    players: Count = 0  # processes that play the episodes, each with environments and sandboxes; 0: this process
    address: str = ""  # of a Ray cluster ("auto", "HOST:6379"); empty: none, processes are started on this machine
    # of weights: through Ray's object store, or by one of vLLM's transfers (GPUs, one GPU for both, no GPU)
    transfer: Literal["memory", "nccl", "ipc", "gloo"] = "memory"
    # that learners wait for one of them before they are all restarted; a transfer waits a quarter of it for a replica
    timeout_s: Annotated[float, Field(gt=0)] = 300.0

    @property
    def used(self) -> bool:
        """Whether anything of the run is in another process by Ray."""
        return self != ClusterConfig()
