"""`--dry-run`: what a run will do, in steps, tokens and memory, without computing anything."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from solostream.errors import UserError
from solostream.training.config import Config, colocation
from solostream.training.config.memory import (
    GROWN,
    PASSING,
    SHARE,
    host_memory,
    in_flight,
    larger,
    learned,
    memory,
    named_share,
    of_phases,
    optimizer_bytes,
    peak,
)
from solostream.training.config.memory.lengths import Longest
from solostream.training.config.memory.remedies import remedies
from solostream.training.config.memory.room import available
from solostream.training.config.memory.shape import ModelShape, shape_of
from solostream.training.config.memory.weights import COLD_START, untouched
from solostream.training.config.unused import notices, unused

CARDS = [gigabytes * 10**9 for gigabytes in (8, 12, 16, 24, 32, 48, 80, 141, 192)]  # what GPUs are sold with
GUESSED = Longest()
JSON_BYTES = 40  # a token in trajectories.jsonl: id, mask, logprob, version, text; 28 to 37 were measured


@dataclass(frozen=True, slots=True)
class Plan:
    """Upper bounds: episodes, tokens, bytes.

    base: bytes of the weights under adapters, which a run keeps once where they are its own.
    """

    shape: ModelShape
    in_flight: int
    start: int
    evaluations: int
    held_out: int
    episodes: int
    tokens_a_step: int
    tokens: int
    phases: dict[str, dict[str, int]]  # phase -> part -> bytes on the device
    memory: dict[str, int]  # of the phase that takes the most
    checkpoint: int
    trajectories: int
    base: int
    longest: Longest

    @property
    def most(self) -> str:
        """How a figure begins that grows with the prompt."""
        return "about" if self.longest.guessed else "≤"


def plan(
    config: Config, pool: int, tests: int, device: str = "cpu", total: int = 0, longest: Longest = GUESSED
) -> Plan:
    """pool, tests: problems to train on and held out. device, total: "cpu" or "cuda", and the bytes that it has.

    Raises UserError for an unknown model.
    """
    shape = shape_of(config)
    r, a, c, batch = config.rollout, config.algorithm, config.learner, config.rollout.batch
    start = pool * a.tracker.start_samples if a.uses_tracker else 0
    held_out = tests * (config.eval.samples + config.eval.greedy)
    evaluations = 2 + ((config.run.steps - 1) // config.eval.every if config.eval.every else 0)
    # what is in flight when the last batch is taken stops there; the last evaluation plays once more without the tool
    episodes = start + config.run.steps * batch + evaluations * held_out + tests
    weight = learned(config)  # also of a base in 4 bits, which a checkpoint has whole
    trained = shape.adapters(c) or shape.parameters
    master = 2 if c.masters == "bfloat16" else 4
    reference = master * trained if c.kl_coef else 0
    phases = of_phases(config, shape, in_flight(config), longest.episode(config), device, total, longest.trace or 0)
    own_base = c.lora and not untouched(config)
    return Plan(
        shape=shape,
        in_flight=in_flight(config),
        start=start,
        evaluations=evaluations,
        held_out=held_out,
        episodes=episodes,
        tokens_a_step=r.batch_tokens or batch * config.env.episode_tokens,
        tokens=episodes * config.env.episode_tokens,
        phases=phases,
        memory=larger(config, phases)[1],
        checkpoint=shape.parameters * (weight if c.lora else master)
        + optimizer_bytes(c, shape)
        + (8 * trained if c.lora else 0)
        + reference,
        trajectories=config.run.steps * batch * longest.episode(config) * JSON_BYTES,
        base=shape.parameters * weight if own_base else 0,
        longest=longest,
    )


def refuse_too_large(config: Config, device: str, longest: Longest = GUESSED, *, cold_start_only: bool = False) -> None:
    """Raises UserError, with what would fit, where what must lie in memory at all times is more than the device has.

    cold_start_only: the second phase is not entered.
    """
    shape = shape_of(config)
    kind = device.partition(":")[0]
    _refuse_on_host(config, shape, kind)
    free, total = available(device)

    def resting(c: Config) -> dict[str, dict[str, int]]:
        """Phase -> part -> bytes that lie there whatever an update or a long episode asks for."""
        beside = c.rollout.colocate == "beside" and colocation.takes_the_rest(c)  # vLLM keeps what it takes
        passing = (GROWN,) if beside else (*PASSING, GROWN)
        return {
            phase: {name: size for name, size in parts.items() if name not in passing}
            for phase, parts in _entered(_at_least(c, shape, kind, total, longest), cold_start_only).items()
        }

    def need(c: Config) -> int:
        return max(peak(c, parts) for parts in resting(c).values())

    if need(config) > total:
        found = resting(config)
        most, parts = larger(config, found)
        where = f" in {most}" if len(found) > 1 else ""
        raise UserError(
            f"{config.model.path} does not fit on {device}{where}: {_listed(parts)} take {_bytes(need(config))} "
            f"of {_bytes(total)}; {_would(remedies(config, need, free))}"
        )


def exceeds(config: Config, device: str, longest: Longest = GUESSED, *, cold_start_only: bool = False) -> str:
    """One line with what would fit, where the plan takes more than is free on `device` now; "" where it fits.

    No reason to refuse: the plan is of the longest episodes, and of the larger phase that is entered.
    """
    if config.cluster.learners > 1:
        return ""  # what is free here is not what each of them finds
    shape, kind = shape_of(config), device.partition(":")[0]
    free, total = available(device)

    def need(c: Config) -> int:
        phases = _entered(_at_least(c, shape, kind, total, longest), cold_start_only)
        return max(peak(c, parts) for parts in phases.values())

    needed = need(config)
    if needed <= free:
        return ""
    return (
        f"memory: the plan takes ≤ {_bytes(needed)} on {device}, and {_bytes(free)} of {_bytes(total)} are free: where "
        f"it comes to that, the run ends; {_would(remedies(config, need, free))}"
    )


def _refuse_on_host(config: Config, shape: ModelShape, kind: str) -> None:
    parts, total = host_memory(config, shape), available("cpu")[1]
    wanted = sum(parts.values())
    if kind != "cpu" and wanted > total:
        raise UserError(
            f"{config.model.path} on {kind} needs {_bytes(wanted)} of the CPU's memory, too ({_listed(parts)}), "
            f"which is {_bytes(total)}: take adapters (learner.lora), or a smaller model"
        )


def shared_device(config: Config, device: str, longest: Longest = GUESSED) -> dict[str, Any]:
    """vLLM's engine arguments that follow from `rollout.colocate`.

    gpu_memory_utilization: the share of the whole GPU that the learner leaves, rounded down to a thousandth.
    """
    if not colocation.takes_the_rest(config):
        return colocation.sleeping(config)
    total = available(device)[1]
    parts = memory(
        config, shape_of(config), in_flight(config), longest.episode(config), "cuda", total, longest.trace or 0
    )
    share = math.floor(1000 * parts[SHARE] / total) / 1000
    return {"gpu_memory_utilization": share, **colocation.sleeping(config)}


def _at_least(config: Config, shape: ModelShape, kind: str, total: int, longest: Longest) -> dict[str, dict[str, int]]:
    """Phase -> part -> bytes, where vLLM takes no more than it must of what the learner leaves it."""
    wanted = 0 if colocation.takes_the_rest(config) else total
    return of_phases(config, shape, in_flight(config), longest.episode(config), kind, wanted, longest.trace or 0)


def _entered(phases: dict[str, dict[str, int]], cold_start_only: bool) -> dict[str, dict[str, int]]:
    return {COLD_START: phases[COLD_START]} if cold_start_only else phases


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items())


def _would(found: list[str]) -> str:
    return f"set {', or '.join(found)}" if found else "take a smaller model, or a larger device"


def _memory_rows(
    config: Config, p: Plan, device: str, free: int, total: int, chosen: Collection[str]
) -> list[tuple[str, str]]:
    """The parts on the device, their sum, and whether that fits. chosen: of the phases."""
    kind = device.partition(":")[0]

    def by_phase(c: Config) -> dict[str, int]:
        found = _at_least(c, p.shape, kind, total, p.longest)
        return {phase: peak(c, parts) for phase, parts in found.items() if phase in chosen}

    def need(c: Config) -> int:
        return max(by_phase(c).values())

    needed, learners = need(config), config.cluster.learners
    if learners > 1 and kind == "cpu":
        free, total = free // learners, total // learners  # on this machine they share it
    most, parts = larger(config, {phase: parts for phase, parts in p.phases.items() if phase in chosen})
    others = [f"{phase} {p.most} {_bytes(size)}" for phase, size in by_phase(config).items() if phase != most]
    when = f"; this is {most}, {others[0]}" if others else ""
    beside = _host_rows(config, p.shape, kind)
    listed = f"each of {learners} learners: {_listed(parts)}" if learners > 1 else _listed(parts)
    if not total:
        vllm = _beside_vllm(config, kind, needed)
        card = "" if vllm else f": {_card_for(needed) or _would(remedies(config, need, max(CARDS)))}"
        said = f"{p.most} {_bytes(needed)}{vllm}; there is no {device} here to compare with{card}{when}"
        return [(f"memory {device}", listed), ("", said), *beside]
    rest = ", and vLLM takes the rest" if SHARE in parts and colocation.takes_the_rest(config) else ""
    verdict = f"fits{rest}" if needed <= free else f"does not fit: {_would(remedies(config, need, free))}"
    return [
        (f"memory {device}", listed),
        ("", f"{p.most} {_bytes(needed)} of {_bytes(free)} free ({_bytes(total)} in all): {verdict}{when}"),
        *beside,
    ]


def _card_for(needed: int) -> str:
    """The smallest GPU on which so many bytes fit; "" where they fit on none."""
    card = next((card for card in CARDS if needed <= card), 0)
    return f"a card of {card // 10**9} GB takes it" if card else ""


def _beside_vllm(config: Config, kind: str, needed: int) -> str:
    """What vLLM takes of a GPU that is not here, which is no number of bytes."""
    share = named_share(config)
    if config.run.engine != "vllm" or kind != "cuda" or colocation.takes_the_rest(config) or share >= 1:
        return ""
    return f" and {100 * share:.0f} % of the GPU for vLLM: one of {_bytes(needed / (1 - share))} or more"


def _host_rows(config: Config, shape: ModelShape, kind: str) -> list[tuple[str, str]]:
    """What a model on a GPU takes on the host: its optimizer, and weights on their way to vLLM."""
    if kind == "cpu":
        idle = config.learner.offload_optimizer
        return [("", "learner.offload_optimizer has nothing to move here: the optimizer is on the CPU")] if idle else []
    parts, (free, _) = host_memory(config, shape), available("cpu")
    if not parts:
        return []
    needed = sum(parts.values())
    verdict = "fits" if needed <= free else "does not fit: take adapters (learner.lora), or a smaller model"
    return [("memory cpu", _listed(parts)), ("", f"≤ {_bytes(needed)} of {_bytes(free)} free: {verdict}")]


def _processes(config: Config) -> list[tuple[str, str]]:
    """Of `[cluster]`; none where everything is in one process."""
    c, urls = config.cluster, config.engine.get("server", {}).get("urls", ())
    if not c.used:
        return []
    place = f"the Ray cluster at {c.address}" if c.address else "Ray on this machine"
    sample = f"{len(urls)} servers sample" if config.run.engine == "server" and urls else f"{c.replicas} sample"
    rest = f"memory below is of one learner{'' if _on_gpu(config) else ' and what samples'}"
    return [("processes", f"{c.learners} learn, {sample}, {c.players} play, by {place}; {rest}")]


def _on_gpu(config: Config) -> bool:
    return _device(config.model.device)[0] != "cpu"


def _device(name: str) -> tuple[str, int, int]:
    """The device that a run would take, its free bytes and all of them; 0 of a GPU that is not on this machine."""
    import torch

    from solostream.training.learner.device import device_named, device_of

    if device_named(name).type == "cuda" and not torch.cuda.is_available():
        return name, 0, 0
    device = str(device_of(name))
    return device, *available(device)


def describe(config: Config, *, cold_start_only: bool = False) -> str:
    """The plan as a text for a person. Raises UserError for whatever the run would refuse before it computes.

    cold_start_only: of what `solostream sft` does.
    """
    from solostream.training.cluster.crew import refuse_sampler
    from solostream.training.run import setup
    from solostream.training.sft.cold_start import problems_of, sft_batches
    from solostream.training.sft.trace_set import refuse_bad

    of_cold_start = problems_of(sft_batches(config))
    setup.refuse_learning(config)
    train, test = setup.problems(config, lambda remark: None)
    refuse_bad(config, test)
    setup.environment(config, test, None).close()
    device, free, total = _device(config.model.device)
    refuse_sampler(config)
    colocation.check_device(config, device)
    setup.refuse_modules(config, config.model)
    longest = setup.planned_longest(config, train, test, of_cold_start)
    p = plan(config, len(train), len(test), device.partition(":")[0], total, longest)
    chosen = [COLD_START] if cold_start_only else [*p.phases]
    memory_rows = _memory_rows(config, p, device, free, total, chosen)
    rows = [
        ("model", f"{config.model.path}, {_count(p.shape.parameters)} parameters, {config.model.dtype}"),
        ("data", f"{len(train)} problems to train on, {len(test)} held out; {setup.described(config)}"),
        ("environment", f"{config.env.id} in {config.env.sandbox}, {config.env.max_turns} turns at most"),
        ("cold start", config.cold_start.planned),
        *_processes(config),
        *([] if cold_start_only else _reinforcement(config, p)),
        ("evaluation", _evaluations(config, p, len(test), cold_start_only)),
        *([] if cold_start_only else _episodes(p)),
        *memory_rows,
        ("disk", _disk(config, p) + ("" if cold_start_only else _logged(p))),
        *(("not used", line) for line in unused(config)),
        *(("notice", line) for line in notices(config)),
    ]
    return "\n".join(f"{name:<14} {what}" for name, what in rows)


def _reinforcement(config: Config, p: Plan) -> list[tuple[str, str]]:
    r, a = config.rollout, config.algorithm
    batch = f"{_count(r.batch_tokens)} action tokens" if r.batch_tokens else f"{r.batch} trajectories"
    # lockstep plays a batch while the one before it is learnt, sync when it has been
    stale = {"sync": "", "lockstep": ", one update old", "async": f", staleness at most {r.max_staleness}"}[r.mode]
    return [
        ("tracker start", f"{p.start} episodes ({a.tracker.start_samples} a prompt)" if p.start else "none"),
        ("rollouts", f"{r.mode}, {p.in_flight} in flight, batches of {batch}{stale}"),
        ("learning", f"{config.run.steps} steps, {' + '.join(a.components)}, {config.learner.loss}"),
    ]


def _evaluations(config: Config, p: Plan, tests: int, cold_start_only: bool) -> str:
    often = config.cold_start.eval_every if config.cold_start.begun else 0
    between = f"; every {often} steps of the cold start {p.held_out} more" if often else ""
    if cold_start_only:
        return f"once {p.held_out} episodes{between}"
    return f"{p.evaluations} times {p.held_out} episodes, and {tests} without the tool{between}"


def _episodes(p: Plan) -> list[tuple[str, str]]:
    return [
        ("episodes", f"{p.episodes:,} in all"),
        ("tokens", f"≤ {_count(p.tokens_a_step)} a step, ≤ {_count(p.tokens)} in all"),
    ]


def _disk(config: Config, p: Plan) -> str:
    base = f", base {_bytes(p.base)}" if p.base else ""
    # A checkpoint is whole before an old one goes.
    return f"checkpoints {config.run.keep} + 1 while one is written, {_bytes(p.checkpoint)} each{base}"


def _logged(p: Plan) -> str:
    return f", trajectories {p.most} {_bytes(p.trajectories)}"


def _count(n: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:g}"


def _bytes(n: float) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n / 2**10:.3g} KiB"
