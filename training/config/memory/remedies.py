"""What would make a run fit that does not: settings, the mildest first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from solostream.training.config.learner import LoraConfig
from solostream.training.config.memory import SECTIONS, learners
from solostream.training.config.models import Config

Way = dict[str, dict[str, Any]]  # what to set, as a person reads it -> the keys and their values


def remedies(config: Config, need: Any, free: int) -> list[str]:
    """Settings that would make the run fit, each alone, the mildest first; all of them together where none does.

    need: from a configuration to its bytes. Empty where not even all would.
    """
    places = {SECTIONS[phase]: c for phase, c in learners(config).items()}
    # In one phase where that is enough, else in both.
    scopes = [[section] for section in reversed(places)] + ([list(places)] if len(places) > 1 else [])

    def fewer(section: str) -> Way:
        now = places[section].max_tokens_per_batch
        tokens = max(now // 4, 256)
        settings = {f"{section}.max_tokens_per_batch": tokens, f"{section}.logits_chunk": tokens}
        return {f"{section}.max_tokens_per_batch = {tokens}": settings} if tokens < now else {}

    def again(section: str) -> Way:
        set_already = places[section].gradient_checkpointing
        key = f"{section}.gradient_checkpointing"
        return {} if set_already else {f"{key} = true": {key: True}}

    def fits(way: Way) -> bool:
        changed = config
        for key, value in (item for settings in way.values() for item in settings.items()):
            changed = _set(changed, key.split("."), value)
        return bool(need(changed) <= free)

    keys = [f"{section}.offload_optimizer" for section in places]
    elsewhere: Way = {f"{key} = true": {key: True} for key in keys} if _can_offload(config) else {}
    half, packed = _adapters(config, "bfloat16"), _adapters(config, "4bit") if _can_pack(config) else {}
    changes = _together(make(section) for make in (fewer, again) for section in places)
    alone = [[_together(map(make, scope)) for scope in scopes] for make in (fewer, again)]
    # never both: adapters have no use for an optimizer elsewhere
    everything = [[{**changes, **last}] for last in (elsewhere, half) if last]
    for ways in ([*alone, [elsewhere], [half]], [[packed]], [[changes]], everything, [[{**changes, **packed}]]):
        enough = [next((way for way in choice if way and fits(way)), {}) for choice in ways]
        if found := [" and ".join(way) for way in enough if way]:
            return found
    return []


def _together(ways: Iterable[Way]) -> Way:
    return {name: settings for way in ways for name, settings in way.items()}


def _adapters(config: Config, dtype: str) -> Way:
    """Adapters in each phase that has none, over a base in `dtype`; empty where that is so already, or cannot be."""
    whole = [SECTIONS[phase] for phase, c in learners(config).items() if c.lora is None]
    if (not whole and dtype == config.model.dtype) or (len(learners(config)) > 1 and config.cluster.learners > 1):
        return {}
    said = " and ".join(f"{section}.lora = {{ rank = 16 }}" for section in whole)
    settings = {f"{section}.lora": LoraConfig() for section in whole}
    return {f"{said}{' with ' if whole else ''}model.dtype = {dtype}": {**settings, "model.dtype": dtype}}


def _set(section: Any, path: list[str], value: Any) -> Any:
    """A copy of `section` in which the key at the end of `path` has that value."""
    key, *rest = path
    return section.model_copy(update={key: _set(getattr(section, key), rest, value) if rest else value})


def _can_pack(config: Config) -> bool:
    """Whether a base in 4 bits is possible."""
    return config.model.path != "build" and len(learners(config)) == 1 and config.cluster.learners == 1


def _can_offload(config: Config) -> bool:
    plain = (
        c.optimizer == "adamw" and c.masters == "float32" and c.moments == "full" and c.lora is None
        for c in learners(config).values()
    )
    return all(plain) and config.cluster.learners == 1
