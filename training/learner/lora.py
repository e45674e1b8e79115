"""Adapters by peft, and the way back to a plain model.

A checkpoint has the merged weights for whoever samples, and the adapters alone for whoever goes on: merged weights are
rounded, and adapters on top of them would count twice. The base lies where it came from, or once in the run's folder.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from solostream.agent.engines import four_bit
from solostream.errors import UserError
from solostream.training.config.learner import LoraConfig


def wrap(model: Any, config: LoraConfig | None) -> Any:
    """`model` with fresh adapters; only they are trained. Raises UserError when peft is missing, fits nothing, or
    would adapt a tied weight. None: `model` as it is.
    """
    if config is None:
        return model
    four_bit.quiet()
    # Loaded here, because most runs train all weights and need not have it.
    try:
        import peft
    except ImportError:
        raise UserError("lora needs peft: pip install peft") from None
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    # Before peft renames the layers: which weights stand in more than one place.
    shared = _shared(model)
    wanted = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # Of tied weights peft only warns, in half a page; they are refused below.
            warnings.filterwarnings("ignore", ".*tie_word_embeddings")
            adapted = peft.get_peft_model(model, wanted)
    except (ValueError, re.error) as error:
        raise UserError(f"lora.targets = {config.targets!r} does not fit this model: {error}") from None

    # An adapter acts at one place only; merged into a weight that stands in two, it would act at both.
    for name, module in adapted.get_base_model().named_modules():
        adapted_layer = getattr(module, "base_layer", None)  # what peft has put its adapter around
        weight = getattr(adapted_layer, "weight", None)
        others = shared.get(id(weight))
        if others:
            raise UserError(
                f"lora.targets = {config.targets!r} reach {name}, whose weight is tied ({' = '.join(others)}): merged,"
                f" the adapters would be another model than the one that was trained; leave {name} out of lora.targets"
            )
    return adapted


def _shared(model: Any) -> dict[int, list[str]]:
    """id of each parameter that stands in more than one place -> its names."""
    names: dict[int, list[str]] = {}
    # torch leaves the second name of a tied weight out, unless it is asked for.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {key: places for key, places in names.items() if len(places) > 1}


def merge_adapters(model: Any, *, trained: bool) -> None:
    """Leave the plain model inside `model`, in place; what the adapters learnt is in it, if they were `trained`."""
    plain = model.merge_and_unload() if trained else model.unload()
    for parameter in plain.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # for another learner, which may train them all


def save(model: Any, adapters: dict[str, Any], folder: Path, base: Path) -> None:
    """A folder that `peft.PeftModel.from_pretrained(base model, folder)` loads. adapters: whole, by name in `model`."""
    # peft would name the folder that the model was loaded from, which need not be there any more.
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=adapters)
