"""What would make a run fit that does not: settings, the mildest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from solostream.training.config.learner import LoraConfig
from solostream.training.config.memory import in_flight
from solostream.training.config.memory.weights import SECTIONS, learners
from solostream.training.config.models import Config


@dataclass(frozen=True, slots=True)
class Remedy:
    """`said`: what to set, as TOML. settings: the keys and their values."""

    said: str
    settings: dict[str, Any] = field(default_factory=dict)

    def applied(self, config: Config) -> Config:
        """`config` with these settings."""
        for key, value in self.settings.items():
            config = _set(config, key.split("."), value)
        return config


Ladder = Sequence[Remedy]  # of the same kind, the mildest first


def remedies(config: Config, need: Callable[[Config], int], free: int) -> list[str]:
    """Settings that would make the run fit, each alone, the mildest first; several together where none does.

    need: from a configuration to its bytes. Empty where not even all would.
    """
    tokens, again, slots = _fewer_tokens(config), _computed_again(config), _fewer_episodes(config)
    elsewhere, half, packed = _offloaded(config), _adapters(config, "bfloat16"), _packed(config)
    cut = _together(tokens[-1:], again[-1:])
    # never an optimizer elsewhere and adapters, which have no use for it
    attempts: list[list[Ladder]] = [
        [tokens, again, slots, elsewhere, half],
        [packed],
        [cut],
        [_together(cut, elsewhere), _together(cut, half)],
        [_together(cut, packed)],
        [_together(cut, slots)],
        [_together(cut, elsewhere, slots), _together(cut, half, slots)],
        [_together(cut, packed, slots)],
    ]
    for ladders in attempts:
        enough = (next((one for one in ladder if need(one.applied(config)) <= free), None) for ladder in ladders)
        if found := [one.said for one in enough if one]:
            return list(dict.fromkeys(found))
    return []


def _together(*ladders: Ladder) -> Ladder:
    """Each way to take one remedy of every ladder; those that are empty, as all is set already, are left out."""
    ways = [Remedy("")]
    for ladder in filter(None, ladders):
        ways = [_both(one, other) for one in ways for other in ladder]
    return [way for way in ways if way.settings]


def _both(one: Remedy, other: Remedy) -> Remedy:
    return Remedy(" and ".join(filter(None, (one.said, other.said))), {**one.settings, **other.settings})


def _in_phases(of_one: dict[str, Remedy]) -> Ladder:
    """In one phase where that is enough, else in both. of_one: by the section that says how the phase trains."""
    alone = list(reversed(of_one.values()))
    return [*alone, *(_together(*([one] for one in of_one.values())) if len(alone) > 1 else ())]


def _fewer_tokens(config: Config) -> Ladder:
    found = {}
    for phase, c in learners(config).items():
        section, tokens = SECTIONS[phase], max(c.max_tokens_per_batch // 4, 256)
        if tokens < c.max_tokens_per_batch:
            key = f"{section}.max_tokens_per_batch"
            found[section] = Remedy(f"{key} = {tokens}", {key: tokens, f"{section}.logits_chunk": tokens})
    return _in_phases(found)


def _computed_again(config: Config) -> Ladder:
    keys = {
        SECTIONS[phase]: f"{SECTIONS[phase]}.gradient_checkpointing"
        for phase, c in learners(config).items()
        if not c.gradient_checkpointing
    }
    return _in_phases({section: Remedy(f"{key} = true", {key: True}) for section, key in keys.items()})


def _fewer_episodes(config: Config) -> Ladder:
    """At one time in the hf engine: no more than a batch, then half as many, and so on."""
    if config.run.engine != "hf":
        return []
    found, options = [], config.engine.get("hf", {})
    if in_flight(config) > config.rollout.batch:
        found.append(Remedy("rollout.over_provision = 1.0", {"rollout.over_provision": 1.0}))
    slots = min(in_flight(config), options.get("concurrency") or in_flight(config)) // 2
    while slots:
        engine = {**config.engine, "hf": {**options, "concurrency": slots}}
        found.append(Remedy(f"engine.hf.concurrency = {slots}", {"engine": engine}))
        slots //= 2
    return found


def _offloaded(config: Config) -> Ladder:
    """The optimizer elsewhere, in all phases; empty where that is so already, or cannot be."""
    plain = (
        c.optimizer == "adamw" and c.masters == "float32" and c.moments == "full" and c.lora is None
        for c in learners(config).values()
    )
    if config.learner.offload_optimizer or not all(plain) or config.cluster.learners > 1:
        return []
    keys = [f"{SECTIONS[phase]}.offload_optimizer" for phase in learners(config)]
    return [Remedy(" and ".join(f"{key} = true" for key in keys), dict.fromkeys(keys, True))]


def _adapters(config: Config, dtype: str) -> Ladder:
    """Adapters in each phase that has none, over a base in `dtype`; empty where that is so already, or cannot be."""
    whole = [SECTIONS[phase] for phase, c in learners(config).items() if c.lora is None]
    if (not whole and dtype == config.model.dtype) or (len(learners(config)) > 1 and config.cluster.learners > 1):
        return []
    said = " and ".join(f"{section}.lora = {{ rank = 16 }}" for section in whole)
    settings = {f"{section}.lora": LoraConfig() for section in whole}
    return [Remedy(f'{said}{" with " if whole else ""}model.dtype = "{dtype}"', {**settings, "model.dtype": dtype})]


def _packed(config: Config) -> Ladder:
    """Adapters over a base in 4 bits; empty where that cannot be."""
    if config.model.path == "build" or len(learners(config)) > 1 or config.cluster.learners > 1:
        return []
    needs = "(after pip install 'solostream[4bit]')"
    return [Remedy(f"{one.said} {needs}", one.settings) for one in _adapters(config, "4bit")]


def _set(section: Any, path: list[str], value: Any) -> Any:
    """A copy of `section` in which the key at the end of `path` has that value."""
    key, *rest = path
    return section.model_copy(update={key: _set(getattr(section, key), rest, value) if rest else value})
