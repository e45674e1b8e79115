"""AdamW, or Muon on matrices with AdamW on the rest; warm-up and schedule; clipping."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from solostream.errors import UserError
from solostream.training.cluster.rank_sharding import fill, whole
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.optimizer import low_memory
from solostream.training.learner.optimizer.muon import Muon
from solostream.training.learner.optimizer.on_host import HostMasters


def factor(config: LearnerConfig, step: int, left_out: int = 0) -> float:
    """What the learning rates are multiplied by at optimizer step `step` (from 0): warm-up, then the schedule.

    left_out: of the planned steps, those that are never taken.
    """
    # Adam's second moments know nothing yet: its first steps would be as long as its largest.
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    # The share of the way from the end of the warm-up to the last step; beyond it the rate stays where it ended.
    scheduled = max(config.total_steps - config.warmup_steps - left_out, 1)
    done = min((step - config.warmup_steps) / scheduled, 1.0)
    if config.schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done))


class Optimizer:
    """`step` counts the steps taken, `left_out` those that a cold start has skipped; the schedule is theirs alone.

    masters: of `model`, where they lie on the host; then they are what is stepped, clipped and saved.
    """

    def __init__(self, model: nn.Module, config: LearnerConfig, masters: HostMasters | None = None) -> None:
        self.config = config
        self._masters = masters
        self.step = self.left_out = 0
        # What torchao's optimizers are asked for, and torch's are not.
        self._small = config.masters == "bfloat16" or config.moments == "8bit"

        # A tied weight stands in the model twice, and is one parameter, under its first name.
        trained: dict[str, Any] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                trained[name] = parameter
        self.named: dict[str, Any] = trained if masters is None else masters.named
        self.parameters = list(self.named.values())

        # Muon's step is that of a linear map between activations; the rest (and all of it without Muon) is AdamW's.
        embedded = {id(module.weight) for module in _embeddings(model)}
        matrices = []
        rest = []
        for parameter in self.parameters:
            is_map = parameter.ndim == 2 and id(parameter) not in embedded
            if is_map and config.optimizer == "muon":
                matrices.append(parameter)
            else:
                rest.append(parameter)

        # Norms and biases are scales and offsets, which decay would pull towards a wrong value.
        decayed = [parameter for parameter in rest if parameter.ndim >= 2]
        others = [parameter for parameter in rest if parameter.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        # One kernel for all parameters, where torch has one for them.
        fused = all(parameter.is_floating_point() for parameter in self.parameters)

        # (optimizer, its learning rate) of each.
        self.parts: list[tuple[torch.optim.Optimizer, float]] = []
        # Nothing is left for it where Muon has taken everything: adapters are matrices, all of them.
        if rest:
            adamw = (
                low_memory.adamw(groups, config)
                if self._small
                else torch.optim.AdamW(groups, config.lr, config.betas, fused=fused)
            )
            self.parts.append((adamw, config.lr))
        # Moments from the start, not from the first step on: a checkpoint always has the same tensors.
        for parameter in () if self._small else rest:
            # Where one kernel takes all parameters it counts the steps itself, on the device.
            counted_on = parameter.device if fused else "cpu"
            adamw.state[parameter] = {
                "step": torch.zeros((), device=counted_on),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        if matrices:
            muon = Muon(matrices, config.muon_lr, weight_decay=config.weight_decay)
            self.parts.append((muon, config.muon_lr))

    @property
    def lr(self) -> float:
        """AdamW's, at the coming step."""
        return self.config.lr * factor(self.config, self.step, self.left_out)

    def clip(self) -> Tensor:
        """The gradient's norm; the gradient is scaled down to `grad_clip` where it exceeds it."""
        return whole(nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip or math.inf))

    def apply(self) -> None:
        """One step, and the gradients are gone."""
        # A function of the steps taken and left out, which a resumed run knows: it has the rate that it would have had.
        for part, lr in self.parts:
            for group in part.param_groups:
                now = lr * factor(self.config, self.step, self.left_out)
                # torchao takes a tensor only: for each new number its compiled step would be compiled anew.
                group["lr"] = torch.as_tensor(now) if self._small else now
            # Rounding at random is the one thing here that draws numbers.
            device = self.parameters[0].device
            with low_memory.repeatable(self.step, device) if self._small else nullcontext():
                part.step()
        self.publish()
        self.step += 1
        self.zero()

    def publish(self) -> None:
        """What computes becomes what is stepped; they are one where the masters are not on the host."""
        if self._masters is not None:
            self._masters.publish()

    def zero(self) -> None:
        """Gradients are dropped, not filled with zeros: memory that the next forward pass can use."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The step, and under each parameter's name its moments: tensors, the optimizer's own."""
        # By name, not by place in a group: a checkpoint does not depend on how parameters are grouped.
        state = {}
        for part, _ in self.parts:
            for parameter, moments in part.state.items():
                state[id(parameter)] = moments
        by_name = {name: state[id(parameter)] for name, parameter in self.named.items()}
        return {"step": torch.tensor(self.step), "moments": by_name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, in place. Raises UserError for the state of another model or optimizer."""
        own = self.state_dict()["moments"]
        given = state["moments"]
        # Looked at before anything is copied: half a state is none.
        has = {name: moments.keys() for name, moments in own.items()}
        comes = {name: moments.keys() for name, moments in given.items()}
        if has != comes:
            raise UserError("the checkpoint's optimizer has moments of other weights: resume with the same model")
        self.step = int(state["step"])
        for name, moments in own.items():
            for key, tensor in moments.items():
                fill(tensor, given[name][key])


def _embeddings(model: nn.Module) -> list[Any]:
    """The input and output embeddings: looked up or projected onto the vocabulary, not matrices in Muon's sense."""
    found = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return found if head is None else [*found, head]
