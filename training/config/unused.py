"""What is told in one line each at the start, and is no mistake: what nothing reads, and what is not as one may think.

A sweep over names keeps the options of each, and one over `learner.schedule` its `total_steps`: so nothing is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from solostream import registry
from solostream.training.config.algorithm import AlgorithmConfig, TrackerConfig
from solostream.training.config.memory.weights import small_base
from solostream.training.config.models import Config


def unused(config: Config) -> list[str]:
    """A line for each section of a component that the run does not use, and for each key whose switch is off."""
    return [*_sections(config), *_keys(config), *_of_tracker(config.algorithm)]


def notices(config: Config) -> list[str]:
    """A line for each choice that takes something away in silence."""
    c, found = config.learner, []
    # π_old is then the policy of this very step, so every ratio is 1; the cap weighs tokens and leaves none out.
    bounded = c.mask_outside is not None or c.reject_outside is not None
    if c.decoupled and c.num_mini_batches * c.epochs == 1 and not bounded:
        found.append(
            "learner.tis_cap with one optimizer step a batch: every ratio of the loss is 1, its clip never acts, and "
            "no trust region bounds a stale token; learner.mask_outside = [0.5, 5.0] does"
        )
    # All tokens of a sequence share one ratio: their mean over the batch weighs a sequence by its length.
    if c.loss == "gspo" and c.aggregation == "token_mean":
        found.append(
            'loss gspo under learner.aggregation = "token_mean" weighs a sequence by its length; the paper\'s '
            'objective is learner.aggregation = "seq_mean_token_mean"'
        )
    if config.model.dtype == "bfloat16" and not small_base(config):
        found.append(
            "model.dtype is of a base that is never trained, and here all weights are: leave it out; on a CPU it is "
            "that of what samples, for which there is model.sampler_dtype"
        )
    return [*found, *_ended_schedules(config)]


def _ended_schedules(config: Config) -> list[str]:
    """Of learners that go on when their rate has become 0, such as one of a run that is made longer on resume."""
    c, cold = config.learner, config.cold_start
    steps = {"learner": (c, config.run.steps * c.num_mini_batches * c.epochs)}
    if cold.begun:  # on traces it may not be known
        steps["cold_start.learner"] = cold.learner, cold.steps or sum(phase.steps for phase in cold.phases)
    return [
        f"{section}.total_steps = {learner.total_steps} ends the {learner.schedule} schedule before the last of {n} "
        f"optimizer steps: from there on the rate is 0 and nothing is learnt; {section}.total_steps={n} goes to the end"
        for section, (learner, n) in steps.items()
        if learner.schedule != "constant" and learner.total_steps < n
    ]


def _sections(config: Config) -> list[str]:
    r, a, o = config.run, config.algorithm, config.rollout
    # section of the configuration -> its components, those that are used, and the keys that would name another
    kinds: dict[str, tuple[Mapping[str, Any], Collection[str], str]] = {
        "algorithm": (a.options, a.components, "algorithm.advantage or algorithm.stages"),
        "loss": (config.loss, [config.learner.loss], "learner.loss"),
        "sampler": (config.sampler, [a.task_sampler], "algorithm.sampler"),
        "rollout": (o.model_extra or {}, [o.strategy], "rollout.strategy"),
        "engine": (config.engine, [r.engine], "run.engine"),
        "tracker": (config.tracker, r.trackers, "run.trackers"),
        "metric": (config.metric, r.metrics, "run.metrics"),
        "callback": (config.callback, r.callbacks, "run.callbacks"),
    }
    return [
        f"[{section}.{name}] is not used: {key} does not name it"
        for section, (given, used, key) in kinds.items()
        for name in given
        if name not in used
    ]


def _keys(config: Config) -> list[str]:
    c, o, m = config.learner, config.rollout, config.model
    waits = o.mode != "async"
    # section and key, whether something reads it, and what would make it do so
    switches = (
        (c, "learner", "muon_lr", c.optimizer == "muon", 'learner.optimizer = "muon"'),
        (c, "learner", "total_steps", c.schedule != "constant", 'learner.schedule = "linear" or "cosine"'),
        (c, "learner", "length_norm", c.aggregation == "seq_mean_token_sum", 'aggregation = "seq_mean_token_sum"'),
        (c, "learner", "entropy_band_weight", c.entropy_band is not None, "learner.entropy_band"),
        (c, "learner", "kl_estimator", c.kl_coef > 0, "learner.kl_coef above 0"),
        (o, "rollout", "over_provision", not waits, 'rollout.mode = "async"'),
        (o, "rollout", "max_staleness", not waits, 'rollout.mode = "async"'),
        (o, "rollout", "stale", not waits, 'rollout.mode = "async"'),
        (m, "model", "build", m.path == "build", 'model.path = "build"'),
        (config.algorithm, "algorithm", "tracker", config.algorithm.uses_tracker, "an advantage that keeps a tracker"),
    )
    return [
        f"{section}.{key} does nothing here: it needs {needs}"
        for model, section, key, read, needs in switches
        if not read and getattr(model, key) != type(model).model_fields[key].default
    ]


def _of_tracker(a: AlgorithmConfig) -> list[str]:
    """Options of the tracker and of SPO that others leave unread."""
    if not a.uses_tracker:
        return []
    usual = {"tracker": TrackerConfig().model_dump(), "spo": registry.defaults("advantage", "spo")}
    chosen = a.options.get("spo", {}) if a.advantage == "spo" else {}
    now = {"tracker": a.tracker.model_dump(), "spo": {**usual["spo"], **chosen}}
    spo, snapshot = now["spo"], a.tracker.forgetting == "snapshot"
    constant = a.tracker.rho_min == a.tracker.rho_max
    # A calibrated ρ is told as the D that gives it: d_half cancels. What dynamic sampling discards has the drift's D.
    cancels = spo["divergence"] == "calibrated" and not a.dynamic_sampling
    by_distance, apart = 'algorithm.tracker.forgetting = "divergence"', "algorithm.tracker.rho_min below rho_max"
    measured = 'algorithm.spo.scale = "deviation", "centred", "fixed" or "running", or slope = "fitted"'
    # section and key, whether something reads it, and what would make it do so
    switches = (
        ("tracker", "rho_max", not snapshot, by_distance),
        ("tracker", "d_half", not snapshot, by_distance),
        ("tracker", "d_half", snapshot or not constant, apart),
        ("tracker", "d_half", constant or not cancels, 'algorithm.spo.divergence = "drift" or "rescore"'),
        ("spo", "divergence", not constant, apart),
        ("spo", "measure", spo["scale"] != "none" or spo["slope"] != "one", measured),
    )
    return [
        f"algorithm.{section}.{key} does nothing here: it needs {needs}"
        for section, key, read, needs in switches
        if not read and now[section][key] != usual[section][key]
    ]
