"""ASPO in the setting of its claim: nearly all groups right, a first call that can move by hundreds of tokens.

A policy thinks in sentences of 24 tokens, up to sixteen of them; before each it decides whether to call now. Then it
writes S tokens of code, each right only as token 0, as the table policy does. "free": the answer is right where the
code is. "costly": and where it called after fewer than four sentences, only with probability .8: for such problems the
call must not be too early, whatever is preferred. Accuracy and the mean place of the call are exact.

Everything else is the product's: GRPO in groups of eight, the stage ASPO on it with the paper's (delta, k), the paper's
control, GRPO on shaped rewards (`shaping.py`), and single streams with ASPO and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np

from solostream.agent.trajectory import Dispatch, Trajectory, Turn
from solostream.envs.types import ToolCall
from solostream.training.advantages import estimator
from solostream.training.advantages.base import Advantages
from solostream.training.batch import Batch
from solostream.training.config import assign, validate

from .cells import Cells
from .methods import ours
from .statistics import interval, said
from .table_run import Adam

SENTENCES, LENGTH, CODE, TOKENS = 16, 24, 4, 5  # at most; tokens of one; tokens of code; choices of a code token
CALL, THINK = 0, 1
FIRST_RATE = 0.08  # of calling now, at the start: the first call comes after nine sentences on average
RIGHT = 0.9925  # of a code token, at the start
GROUPS, GROUP = 16, 8  # of a batch; a single stream has as many tasks as both
SETTINGS = {"free": (0, 1.0), "costly": (4, 0.8)}  # sentences that are needed, and what fewer make of a right answer
GRPO = ("algorithm.advantage=grpo", f"algorithm.group_size={GROUP}")
CONSERVATIVE = ('algorithm.stages=["aspo"]', "algorithm.aspo.delta=-2.0", "algorithm.aspo.k=0.7")
AGGRESSIVE = ('algorithm.stages=["aspo"]', "algorithm.aspo.delta=-2.5", "algorithm.aspo.k=0.9")
IN_GROUPS = "algorithm.aspo.compare=group"
METHODS = {
    "grpo": ("GRPO", GRPO),
    "grpo_aspo": ("GRPO + ASPO (−2, .7)", (*GRPO, *CONSERVATIVE, IN_GROUPS)),
    "grpo_aggressive": ("GRPO + ASPO (−2.5, .9)", (*GRPO, *AGGRESSIVE, IN_GROUPS)),
    "shaping": ("GRPO on shaped rewards", (*GRPO, "algorithm.advantage=evidence_parts.shaping:PaperShaping")),
    "ours": ("ours", ours()),
    "ours_aspo": ("ours + ASPO (−2, .7)", (*ours(), *CONSERVATIVE)),
    "ours_aggressive": ("ours + ASPO (−2.5, .9)", (*ours(), *AGGRESSIVE)),
}
COLOURS = {
    "grpo": "#5f6b76",
    "grpo_aspo": "#1f6feb",
    "shaping": "#d1242f",
    "ours": "#9a6700",
    "ours_aspo": "#1a7f37",
}
SEEDS, UPDATES, LR, LAST = range(5), 120, 0.02, 10


@dataclass(slots=True)
class Curve:
    """After each update, the first entry before any."""

    accuracy: list[float] = field(default_factory=list)
    first_call: list[float] = field(default_factory=list)  # token of the response
    all_right: list[float] = field(default_factory=list)  # share of the groups
    punished: list[float] = field(default_factory=list)  # right answers with a negative advantage


class Policy:
    """Logits of calling or thinking at each place [SENTENCES, 2], and of each code token [CODE, TOKENS]."""

    def __init__(self, needed: int, otherwise: float) -> None:
        self.worth = np.where(np.arange(SENTENCES + 1) < needed, otherwise, 1.0)
        decide = np.tile(np.log([FIRST_RATE, 1 - FIRST_RATE]), (SENTENCES, 1))
        code = np.zeros((CODE, TOKENS))
        code[:, 0] = np.log(RIGHT / ((1 - RIGHT) / (TOKENS - 1)))
        self.logits = np.concatenate([decide.ravel(), code.ravel()])

    def probabilities(self) -> tuple[np.ndarray, np.ndarray]:
        """[SENTENCES, 2] and [CODE, TOKENS]."""
        cut = SENTENCES * 2
        decide, code = self.logits[:cut].reshape(SENTENCES, 2), self.logits[cut:].reshape(CODE, TOKENS)
        return _softmax(decide), _softmax(code)

    def exact(self) -> tuple[float, float]:
        """(accuracy, mean token of the first call)."""
        decide, code = self.probabilities()
        thinking = np.concatenate([[1.0], decide[:, THINK].cumprod()])
        place = thinking * np.append(decide[:, CALL], 1.0)  # of a call after so many sentences
        return float(place @ self.worth * code[:, 0].prod()), float(place @ np.arange(SENTENCES + 1) * LENGTH)

    def episode(self, rng: np.random.Generator) -> tuple[int, np.ndarray, float]:
        """(sentences, code tokens, reward)."""
        decide, code = self.probabilities()
        calls = np.append(rng.random(SENTENCES) < decide[:, CALL], True)
        sentences = int(calls.argmax())
        tokens = (code.cumsum(1) < rng.random((CODE, 1))).sum(1).clip(max=TOKENS - 1)
        right = not tokens.any() and rng.random() < self.worth[sentences]
        return sentences, tokens, float(right)

    def logprobs(self, sentences: int, tokens: np.ndarray) -> np.ndarray:
        """Of the tokens of such an episode [n]."""
        decide, code = self.probabilities()
        found = np.zeros((sentences, LENGTH))  # the first token of a sentence decides; the others follow from it
        found[:, 0] = np.log(decide[:sentences, THINK])
        called = np.log(decide[sentences : sentences + 1, CALL])  # none at the last place, where nothing is decided
        return np.concatenate([found.ravel(), called, np.log(code[np.arange(CODE), tokens])])

    def gradient(self, played: Sequence[tuple[int, np.ndarray, float]], advantages: Advantages) -> np.ndarray:
        """Of the objective Σ A log π/Σ T, on the policy that sampled."""
        decide, code = self.probabilities()
        into, written = np.zeros_like(decide), np.zeros_like(code)
        for (sentences, tokens, _), a in zip(played, advantages.values, strict=True):
            for place in range(min(sentences + 1, SENTENCES)):
                choice = CALL if place == sentences else THINK
                into[place] += a[place * LENGTH] * (np.eye(2)[choice] - decide[place])
            written += a[-CODE:, None] * (np.eye(TOKENS)[tokens] - code)
        total = sum(map(len, advantages.values))
        return np.concatenate([into.ravel(), written.ravel()]) / total


def play(setting: str, method: str, seed: int) -> Curve:
    """One run of `UPDATES` batches of groups."""
    a = validate(assign({}, ["algorithm.stages=[]", *(x for x in METHODS[method][1] if x)])).algorithm
    tracker, grouped = a.tracker.make(), a.grouped
    judge = estimator(a.advantage, a.stages, a.options, tracker, lambda batch: [])[-1]
    policy, rng, curve = Policy(*SETTINGS[setting]), np.random.default_rng(seed), Curve()
    adam = Adam(policy.logits.shape, LR)
    for version in range(UPDATES):
        played = [policy.episode(rng) for _ in range(GROUPS * GROUP)]
        names = [f"t{i // GROUP if grouped else i}" for i in range(len(played))]
        dispatches = [
            Dispatch(version * len(played) + i, tracker.value(name), version, i // GROUP if grouped else None)
            for i, name in enumerate(names)
        ]
        given = zip(names, played, dispatches, strict=True)
        batch = Batch([_trajectory(*one, policy.logprobs(*one[1][:2])) for one in given])
        advantages = judge(batch)
        _look(curve, policy)
        rewards = np.array([reward for *_, reward in played]).reshape(GROUPS, GROUP)
        curve.all_right.append(float(rewards.all(1).mean()))
        of_right = [v[-1] for v, t in zip(advantages.values, batch, strict=True) if t.reward == 1]
        curve.punished.append(float(np.mean(np.array(of_right) < -1e-9)))
        adam.step(policy.logits, policy.gradient(played, advantages))
        tracker.record_drift(version + 1, _drift(batch, [policy.logprobs(*one[:2]) for one in played]))
    _look(curve, policy)
    return curve


def _look(curve: Curve, policy: Policy) -> None:
    accuracy, first = policy.exact()
    curve.accuracy.append(accuracy)
    curve.first_call.append(first)


def _drift(batch: Batch, now: Sequence[np.ndarray]) -> float:
    """Mean |Δ log π| of the tokens of `batch`, in nats."""
    moved = [new - t.logprobs[1:] for t, new in zip(batch, now, strict=True)]
    return float(np.abs(np.concatenate(moved)).mean())


def _trajectory(
    name: str, played: tuple[int, np.ndarray, float], dispatch: Dispatch, logprobs: np.ndarray
) -> Trajectory:
    sentences, tokens, reward = played
    called = [1] if sentences < SENTENCES else []  # at the last place nothing is decided: it calls
    ids = [0, *[2] * (sentences * LENGTH), *called, *(3 + int(t) for t in tokens)]
    acted = np.arange(len(ids)) > 0
    turns = (
        Turn("user", 0, 1, ""),
        Turn("assistant", 1, len(ids), "", (ToolCall("python", {}, (0, 1)),), call_tokens=(1 + sentences * LENGTH,)),
    )
    return Trajectory(
        name,
        np.array(ids, np.int32),
        acted,
        np.append(np.nan, logprobs).astype(np.float32),
        np.where(acted, dispatch.version, -1).astype(np.int32),
        turns,
        reward,
        "answered",
        dispatch,
    )


def _softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def curves(cells: Cells) -> dict[str, dict[str, list[dict[str, list[float]]]]]:
    """Setting -> method -> a curve a seed."""

    def one(setting: str, method: str, seed: int) -> dict[str, list[float]]:
        key = ("early calls", setting, method, seed, UPDATES)
        return cells.get(key, lambda: asdict(play(setting, method, seed)))

    return {s: {m: [one(s, m, seed) for seed in SEEDS] for m in METHODS} for s in SETTINGS}


def plot(found: dict[str, dict[str, list[dict[str, list[float]]]]], path: Path) -> None:
    """Accuracy and first call over the updates, a row a setting: means and 95 % intervals over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), dpi=130, layout="constrained")
    panels = figure.subplots(len(found), 2)
    for row, (setting, methods) in zip(panels, found.items(), strict=True):
        for axes, (name, label) in zip(
            row, {"accuracy": "accuracy", "first_call": "first call, token"}.items(), strict=True
        ):
            for (method, colour), dashes in zip(COLOURS.items(), ("-", "-", "-", "--", "--"), strict=True):
                bands = [interval(list(at)) for at in zip(*(one[name] for one in methods[method]), strict=True)]
                mean, half = (np.array(x) for x in zip(*bands, strict=True))
                axes.plot(mean, dashes, color=colour, label=METHODS[method][0], linewidth=1.8)
                axes.fill_between(range(len(mean)), mean - half, mean + half, color=colour, alpha=0.12, linewidth=0)
            axes.set_title(f"{label} ({setting})", size=11, weight="bold")
            axes.set_xlabel("update")
            axes.grid(color="#d9dee3", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0][1].legend(frameon=False, fontsize=9)
    figure.savefig(path)


def table(found: dict[str, dict[str, list[dict[str, list[float]]]]]) -> list[str]:
    """At the start, and the mean of the last updates, with 95 % intervals over the seeds."""
    lines = [
        "| setting | method | accuracy | first call (token) | groups all right | right answers punished |",
        "|---|---|---|---|---|---|",
    ]
    for setting, methods in found.items():
        start = next(iter(methods.values()))[0]
        lines.append(f"| {setting} | at the start | {start['accuracy'][0]:.3f} | {start['first_call'][0]:.0f} | | |")
        for method, seeds in methods.items():
            cells = [
                said([fmean(one[name][-LAST:]) for one in seeds], how)
                for name, how in {"accuracy": ".3f", "first_call": ".0f", "all_right": ".2f", "punished": ".2f"}.items()
            ]
            lines.append(f"| {setting} | {METHODS[method][0]} | {' | '.join(cells)} |")
    return lines
