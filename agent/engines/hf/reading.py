"""A model from a folder or from the Hub: whole, or one line that says what is wrong with its files."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Collection, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from solostream.agent.engines.hf.device import full, told
from solostream.errors import UserError

_LOADER = logging.getLogger("transformers.modeling_utils")


class _Report(logging.Filter):
    """Keeps back the table that transformers logs about weights that do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        kept = "LOAD REPORT" in record.getMessage()
        if kept:
            self.records.append(record)
        return not kept

    @property
    def text(self) -> str:
        return "\n".join(record.getMessage() for record in self.records)


def read_model(path: str, **options: Any) -> Any:
    """A causal language model of transformers; options: of its `from_pretrained`.

    transformers makes up what the files lack, and says so in a table only: a run would train what is random.

    Raises UserError for weights that cannot be read, lack a part or have other shapes than config.json says; OSError,
    ValueError and torch's errors about its devices as they come.
    """
    report = _Report()
    _LOADER.addFilter(report)
    try:
        # Shapes that differ are told below, with their names.
        read: Any = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        model, found = read
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(_unreadable(path, error)) from error
    except RuntimeError as error:
        # What fails while a tensor is converted is in the table; the error itself says only that there is one.
        if said := full(RuntimeError(report.text)):
            raise torch.OutOfMemoryError(said) from error
        if told(error, if_full=""):
            raise
        raise UserError(_unreadable(path, error)) from error
    finally:
        _LOADER.removeFilter(report)
    if wrong := _wrong(found):
        raise UserError(f"the weights in {path} are not those of its config.json: {wrong}; copy or download both again")
    for record in report.records:  # of weights that the model has no use for
        _LOADER.handle(record)
    return model


def _unreadable(path: str, error: Exception) -> str:
    why = next(iter(str(error).splitlines()), type(error).__name__)
    return f"the weights in {path} cannot be read ({why}): copy or download them again"


def _wrong(found: Mapping[str, Collection[Any]]) -> str:
    """What the model needs and does not get; "" for nothing."""
    if others := sorted(found["mismatched_keys"]):
        name, is_, wanted = others[0]
        return f"{len(others)} tensors have another shape ({name} is {_shape(is_)}, not {_shape(wanted)})"
    if missing := sorted(found["missing_keys"]):
        return f"{len(missing)} tensors are missing ({', '.join(missing[:2])}{' …' if len(missing) > 2 else ''})"
    return ""


def _shape(sizes: Collection[int]) -> str:
    return " × ".join(map(str, sizes))
