"""What a checkpoint holds of a learner, and how it is taken up again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solostream.agent.engines import four_bit
from solostream.errors import UserError
from solostream.training.cluster.rank_group import RankGroup
from solostream.training.cluster.rank_sharding import fill, whole_tensors
from solostream.training.learner.optimizer import Optimizer

FILE, SHARDS = "learner.pt", "learner"


def state_of(
    model: nn.Module,
    optimizer: Optimizer,
    reference: nn.Module | None,
    *,
    adapters: bool,
    weights: bool,
    base: bool,
) -> dict[str, Any]:
    """The optimizer with its step, what is trained, the base under adapters, and the reference where there is one.

    weights, base: False leaves out what folders hold: the model that is trained whole, the base under adapters.
    """
    state: dict[str, Any] = {"optimizer": optimizer.state_dict()}
    # A model that is trained whole lies in the checkpoint as a folder that transformers loads: not twice.
    if weights or adapters:
        state["model"] = _detached(optimizer)
    # Adapters fit one base only, so it goes along, unless a folder has it for all checkpoints of the run.
    if base and adapters:
        state["base"] = _frozen(model)
    # The reference is of a moment that a resumed run cannot come back to.
    if reference is not None:
        state["reference"] = _of_reference(reference, adapters)
    return state


@torch.no_grad()
def load_state(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    reference: nn.Module | None,
    *,
    adapters: bool,
) -> None:
    """In place. Raises UserError when the state is of another model or another configuration."""
    # What is trained; where masters are on the host, the copy that computes follows them.
    if "model" in state:
        _copy(state["model"], _detached(optimizer))
        optimizer.publish()
    elif adapters:
        raise UserError("the checkpoint has no adapters: resume with the learner.lora that it was written with")
    if "base" in state:
        _copy(state["base"], _frozen(model))
    # A penalty that was switched on since has nothing to pull towards.
    if reference is not None:
        if "reference" not in state:
            raise UserError("the checkpoint has no KL reference; resume with the kl_coef it was written with")
        _copy(state["reference"], _of_reference(reference, adapters))

    # Last: whatever is refused above leaves the moments as they were.
    optimizer.load_state_dict(state["optimizer"])


def _detached(optimizer: Optimizer) -> dict[str, Tensor]:
    """What is trained; each shares its memory with what is stepped."""
    return {name: tensor.detach() for name, tensor in optimizer.named.items()}


def _frozen(model: nn.Module) -> dict[str, Tensor]:
    """What is not trained; each shares its memory with the model."""
    return {name: tensor.detach() for name, tensor in model.named_parameters() if not tensor.requires_grad}


def _of_reference(reference: nn.Module, adapters: bool) -> dict[str, Tensor]:
    """What the reference has of its own: under adapters it shares the base."""
    every = dict(reference.named_parameters())
    return {name: parameter for name, parameter in every.items() if not adapters or ".lora_" in name}


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    # All or nothing: a model of which half was loaded would train on without a word.
    if source.keys() != target.keys():
        odd = sorted(source.keys() ^ target.keys())[:3]
        raise UserError(
            f"the checkpoint belongs to another model: {', '.join(odd)} do not match; resume with the same one"
        )
    # In place: the optimizer and an engine of this process hold these very tensors.
    for name, tensor in target.items():
        fill(tensor, source[name])


def write_model(model: Any, weights: Mapping[str, Tensor], folder: Path, group: RankGroup) -> None:
    """A folder that `AutoModelForCausalLM.from_pretrained` loads. weights: of the plain model, by name."""
    if getattr(model.config, "quantization_config", None) is not None:
        model = _whole_of(model)  # what the policy computes with, in a folder that any engine reads
    # A tied weight is written once; loading ties it again.
    tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
    # Every rank takes part in putting the weights together, and the first one writes.
    found = whole_tensors(weights, group, without=tied)
    if group.first:
        model.save_pretrained(folder, state_dict=found)


def _whole_of(model: Any) -> Any:
    """A model like `model` that is not quantized, without weights."""
    with torch.device("meta"):
        twin = type(model)(four_bit.plain(model.config)).to(model.dtype)
    twin.generation_config = model.generation_config
    return twin


def write_state(state: Mapping[str, Any], folder: Path, group: RankGroup) -> None:
    """One process: a file; several ranks: `folder`/learner of torch's distributed checkpoints, each rank its share."""
    # One process needs no shards: a plain file, which anybody can look into.
    if group.world == 1:
        torch.save(dict(state), folder / FILE)
        return
    from torch.distributed.checkpoint.state_dict_saver import save

    save(dict(state), checkpoint_id=folder / SHARDS)


def read_state(own: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A state for `load_state`, by as many ranks as there are now; shards are read into the tensors of `own` at once.

    Raises UserError when the state is of another model or another configuration.
    """
    # Mapped, not read: of a file as large as the model each tensor is copied where it belongs.
    if not (folder / SHARDS).is_dir():
        found: dict[str, Any] = torch.load(folder / FILE, map_location="cpu", weights_only=True, mmap=True)
        return found
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    # A checkpoint may lack what a run of now has (a band that was switched on, say): only what is there is asked for.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*single process.*")  # one process reads what several wrote: as is meant
        there = FileSystemReader(folder / SHARDS).read_metadata().state_dict_metadata
        parts = {name.split(".")[0] for name in there}
        wanted = {name: part for name, part in own.items() if name in parts}
        try:
            load(wanted, checkpoint_id=folder / SHARDS)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the shards of {folder} belong to another model or configuration: {error}") from error
    return wanted
