"""What is compared: each method is a list of settings of the product's own configuration, for the table and for runs.

Starts are counted: a method that plays episodes before its first step gets as many fewer afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUPED = ("algorithm.group_size=8",)
SPO = ("algorithm.advantage=spo", "algorithm.sampler=prioritized")  # the recipe that runs begin from draws uniformly
QUARTER = 'algorithm.stages=["negative_weight"]'
# What the product recommends in place of the published settings; every line has an ablation below.
OURS = {
    "measure": 'algorithm.spo.measure="energy"',
    "baseline": 'algorithm.spo.baseline="energy"',
    "slope": 'algorithm.spo.slope="fitted"',
    "scale": 'algorithm.spo.scale="running"',
    "shared drift": "algorithm.tracker.shared_drift=0.5",
    "pooling": "algorithm.tracker.pooled=true",
    "start": "algorithm.tracker.start_samples=0",
}
PUBLISHED = {"start": "algorithm.tracker.start_samples=8", "measure": 'algorithm.spo.measure="trajectory"'}


@dataclass(frozen=True, slots=True)
class Method:
    """`settings` on top of the protocol's; `baseline`: one that the bars compare with."""

    title: str
    settings: tuple[str, ...]
    baseline: bool = True


def ours(without: str = "") -> tuple[str, ...]:
    """The recommended single stream; `without` one of its options, which then is the published one's."""
    return (*SPO, *(PUBLISHED.get(name, "") if name == without else line for name, line in OURS.items()))


METHODS = {
    "none": Method("none (A = r)", ("algorithm.advantage=none",)),
    "batch": Method("batch mean (REINFORCE++)", ("algorithm.advantage=reinforce_pp",)),
    "rloo": Method("RLOO, G = 8", ("algorithm.advantage=rloo", *GROUPED)),
    "grpo": Method("GRPO, G = 8", ("algorithm.advantage=grpo", *GROUPED)),
    "dr_grpo": Method("Dr. GRPO, G = 8", ("algorithm.advantage=dr_grpo", *GROUPED)),
    "opo": Method("OPO's baseline, over the batch", ("algorithm.advantage=opo",)),
    "opo_groups": Method("OPO, G = 8", ("algorithm.advantage=opo", *GROUPED)),
    "shrinkage": Method("shrinkage, G = 8", ("algorithm.advantage=shrinkage", *GROUPED)),
    "maxrl": Method("MaxRL, G = 8", ("algorithm.advantage=maxrl", *GROUPED)),
    "spo": Method("SPO as published", (*SPO, *PUBLISHED.values())),
    "spo_pp": Method(
        "SPO++",
        (
            *SPO,
            PUBLISHED["start"],
            "algorithm.tracker.forgetting=snapshot",
            "loss.ppo_clip.dual_clip=2.0",
            "learner.weight_decay=0.1",
        ),
    ),
    "ours": Method("ours", ours(), baseline=False),
    **{f"ours-{name}": Method(f"ours without {name}", ours(name), baseline=False) for name in OURS},
    "ours_uniform": Method("ours, uniform prompts", (*ours(), "algorithm.sampler=uniform"), baseline=False),
    "ours_negative": Method("ours + negatives × ¼", (*ours(), QUARTER), baseline=False),
    "ours_negative_uniform": Method(
        "ours + negatives × ¼, uniform prompts",
        (*ours(), QUARTER, "algorithm.sampler=uniform"),
        baseline=False,
    ),
    "ours_tokens": Method("ours + negative tokens", (*ours(), 'algorithm.stages=["negative_tokens"]'), baseline=False),
    "ours_improbable": Method(
        "ours + improbable capped", (*ours(), 'algorithm.stages=["improbable_tokens"]'), baseline=False
    ),
    "spo_negative": Method("SPO + negatives × ¼", (*SPO, *PUBLISHED.values(), QUARTER), baseline=False),
    "spo_no_start": Method(
        "SPO, nothing to start from", (*SPO, PUBLISHED["measure"], "algorithm.tracker.start_samples=0"), baseline=False
    ),
    "batch_negative": Method(
        "batch mean + negatives × ¼", ("algorithm.advantage=reinforce_pp", QUARTER), baseline=False
    ),
    "spo_calibrated": Method(
        "SPO + calibrated forgetting",
        (
            *SPO,
            *PUBLISHED.values(),
            "algorithm.spo.divergence=calibrated",
            "algorithm.tracker.rho_min=0.5",
            "algorithm.tracker.rho_max=0.98",
        ),
        baseline=False,
    ),
}
# what every method is on top of: the published settings, whatever the recipe that runs begin from recommends
PLAIN = ("algorithm.stages=[]", 'algorithm.spo={measure = "token"}', "algorithm.tracker={start_samples = 1}")
PROTOCOL = (*PLAIN, 'rollout.mode="sync"')
