"""The learner: one batch of trajectories and their advantages in, optimizer steps and metrics out.

    loss = Σ_tokens w · (correction · policy loss − entropy bonus · H + KL coefficient · KL)

with the weights w of `losses.aggregation`, fixed from the whole optimizer batch: micro-batches only add up.
π_old is the sampler's own log-probabilities; with `tis_cap`, `mask_outside` or `reject_outside` it is the learner's
policy at the start of the batch, and the distance to the sampler is corrected by weights (`learner.corrections`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solostream import registry
from solostream.agent.engines.live_weights import LiveWeights
from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantages
from solostream.training.batch import Batch
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner import lora
from solostream.training.learner.corrections import kept, token_corrections
from solostream.training.learner.device import compile_layers, compute_dtype
from solostream.training.learner.guards import NotFinite, check_advantages, memory_advice, refuse
from solostream.training.learner.logprobs import LogprobComputer
from solostream.training.learner.mfu import flops, peak_of, shape_of
from solostream.training.learner.optimizer import Optimizer
from solostream.training.learner.packing import PackedBatch, pack, plan
from solostream.training.learner.state import load_state, state_of
from solostream.training.learner.update_metrics import UpdateMetrics
from solostream.training.losses import Loss, SelectsTokens
from solostream.training.losses.aggregation import token_weights
from solostream.training.losses.clip_cov import covariance
from solostream.training.losses.kl import kl_penalty
from solostream.training.losses.tokens import Tokens

Demonstration = tuple[np.ndarray, np.ndarray]  # token ids, mask of the tokens to learn


@dataclass(slots=True)
class _Update:
    """What one update works on, and what it has seen so far. A list has one row a trajectory of the batch.

    The arrays of a row have one value an action token of its trajectory (n of them), in order.
    """

    batch: Batch
    advantages: Sequence[np.ndarray]  # float [n]
    keep: Sequence[bool]  # False: a filter took the trajectory out of the loss
    sampler: list[np.ndarray]  # float32 [n]: log-probabilities under the policy that sampled
    old: list[np.ndarray]  # float32 [n]: log-probabilities under π_old
    rng: np.random.Generator
    metrics: UpdateMetrics = field(default_factory=UpdateMetrics)
    norms: list[float] = field(default_factory=list)  # of the gradient, one an optimizer step
    start: dict[int, np.ndarray] = field(default_factory=dict)  # row -> log-probabilities before the first step


@dataclass(slots=True)
class _Step:
    """One optimizer step's share of an update: its rows, and what their tokens weigh."""

    rows: list[int]  # places in the batch of the trajectories that were kept
    weights: dict[int, float]  # row -> the weight of each of its tokens
    picked: dict[int, np.ndarray]  # row -> bool [n], the tokens that the loss treats apart; empty for most losses


class Learner:
    """Trains `model`, a causal language model of transformers, in place.

    loss: default the one that `config.loss` names, with its default options. temperature: of the sampler, whose logits
    are divided by it before the softmax. seed: of the order of mini-batches and of what is drawn from a batch.
    dump_dir: where a batch that cannot be trained on is written. Raises UserError when the model cannot be packed.
    """

    def __init__(
        self,
        model: Any,
        config: LearnerConfig,
        *,
        loss: Loss | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        dump_dir: Path = Path(),
    ) -> None:
        self.config = config
        self.temperature = temperature
        self.seed = seed
        self.dump_dir = dump_dir
        self.loss: Loss = registry.make("loss", config.loss) if loss is None else loss

        # float32: a step of 1e-6 is lost on bfloat16 weights (adapters are float32 by themselves).
        self.model: Any = lora.wrap(model, config.lora) if config.lora else model.float()
        # A ratio of two policies has no room for a random one.
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.model.train()
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.compile:
            compile_layers(self.model)

        self.scorer = self._scorer(self.model)
        self.optimizer = Optimizer(self.model, config)
        # A sampler in this process may read these very parameters.
        self._live = LiveWeights(self.scorer.model)
        # What a utilisation of the hardware is computed from.
        self.shape = shape_of(self.scorer.model, adapters=bool(config.lora))
        self.peak = peak_of(self.scorer.device)
        self._reference: LogprobComputer | None = None
        if config.kl_coef:
            self.set_reference()

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.optimizer.step

    def set_reference(self) -> None:
        """The KL penalty pulls towards the weights of this moment from now on."""
        # What is not trained (the base under adapters) is the same in both.
        shared = {id(p): p for p in self.model.parameters() if not p.requires_grad}
        frozen = copy.deepcopy(self.model, shared).requires_grad_(False)
        self._reference = self._scorer(frozen)

    def update(
        self, batch: Batch, advantages: Advantages, *, version: int | None = None, drift: bool = True
    ) -> dict[str, float]:
        """Train on one batch. `version`: of the learner's policy, for the mismatch on tokens of that policy.

        drift: measure how far the update moved the policy; it costs a forward pass.

        Raises NotFinite, with the batch dumped and the task ids named, for advantages or gradients that are not finite
        (the step is not taken), and UserError with a token budget to try when memory ran out.
        """
        started = time.perf_counter()
        config = self.config
        check_advantages(batch, advantages.values, self.dump_dir, self.step)
        keep, dropped = kept(batch, config)
        sampler = [trajectory.logprobs[trajectory.action_mask] for trajectory in batch]
        # By the step, so that a resumed run draws what the uninterrupted one would have drawn.
        rng = np.random.default_rng((self.seed, self.step))

        with memory_advice(config.max_tokens_per_batch), self.scorer.active():
            # π_old as the learner computes it is only worth a forward pass where the policy moves within the batch;
            # with one step it is the policy of that step, and `_accumulate` has it anyway.
            several_steps = config.num_mini_batches * config.epochs > 1
            old = self.logprobs(batch) if config.decoupled and several_steps else sampler
            update = _Update(batch, advantages.values, keep, sampler, old, rng)
            for _ in range(config.epochs):
                order = rng.permutation(len(batch)) if config.num_mini_batches > 1 else np.arange(len(batch))
                for members in np.array_split(order, config.num_mini_batches):
                    self._take_step(update, members.tolist())
            moved = {"drift": self._drift(update)} if drift else {}

        seconds = time.perf_counter() - started
        return {
            **self._throughput(batch, keep, seconds),
            **dropped,
            **update.metrics.result(version),
            **moved,
            "grad_norm": float(np.mean(update.norms)) if update.norms else 0.0,
            "lr": self.optimizer.lr,
            "optimizer_steps": float(len(update.norms)),
        }

    def sft_step(self, sequences: Sequence[Demonstration]) -> dict[str, float]:
        """One optimizer step of cross-entropy, the mean over all masked tokens. Raises UserError as `update` does."""
        started = time.perf_counter()
        # One denominator for all packs: their gradients only add up, however the batch is cut.
        total = max(sum(int(mask.sum()) for _, mask in sequences), 1)
        loss = torch.zeros((), device=self.scorer.device)
        self.optimizer.zero()  # of a step that an error cut short
        with memory_advice(self.config.max_tokens_per_batch), self.scorer.active():
            for packed in self._packs(sequences):
                logprob, _ = self.scorer(packed)
                part = -logprob.sum() / total
                part.backward()
                loss += part.detach()

        norm = self.optimizer.clip()
        if not torch.isfinite(norm):
            self.optimizer.zero()
            raise UserError("the gradient of a supervised step is not finite; lower the learning rate")
        lr = self.optimizer.lr  # of this step: applying it moves the schedule on
        with self._live.writing():
            self.optimizer.apply()
        tokens = sum(len(ids) for ids, _ in sequences)
        seconds = time.perf_counter() - started
        return {"loss": float(loss), "grad_norm": float(norm), "lr": lr, "tokens_per_s": tokens / seconds}

    @torch.no_grad()
    def sft_loss(self, sequences: Sequence[Demonstration]) -> float:
        """Cross-entropy in nats, the mean over all masked tokens, of what is not trained on."""
        total = max(sum(int(mask.sum()) for _, mask in sequences), 1)
        found = 0.0
        with self.scorer.active():
            for packed in self._packs(sequences):
                logprob, _ = self.scorer(packed)
                found -= float(logprob.sum())
        return found / total

    @torch.no_grad()
    def logprobs(self, batch: Sequence[Trajectory]) -> list[np.ndarray]:
        """Log-probabilities of each trajectory's action tokens under the weights of now, float32."""
        found: list[np.ndarray] = [np.empty(0, np.float32)] * len(batch)
        for packed in self._packs(_masked(batch)):
            logprob, _ = self.scorer(packed)
            # A pack is sorted by length: its rows go back to where they stand in the batch.
            counts = [batch[row].n_action_tokens for row in packed.members]
            for row, part in zip(packed.members, logprob.cpu().split(counts), strict=True):
                found[row] = part.numpy()
        return found

    def weights(self) -> LiveWeights:
        """Every weight under its Hugging Face name (tied heads too, adapters merged in): a live view, copy to keep."""
        return self._live

    def merge_adapters(self) -> None:
        """Merge the adapters into the model for good, so that another learner can train it; the end of this one."""
        if self.config.lora:
            with self._live.writing():
                lora.merge_adapters(self.model)

    def save_adapters(self, folder: Path, base: Path) -> None:
        """A folder that peft loads on top of the model `base`; nothing where there are no adapters."""
        if self.config.lora:
            lora.save(self.model, folder, base)

    def state_dict(self, *, weights: bool = True, base: bool = True) -> dict[str, Any]:
        """What is trained, the optimizer, its step, the base under adapters, and the reference where there is one.

        weights, base: False leaves out what folders hold: the model that is trained whole, the base under adapters.
        """
        reference = None if self._reference is None else self._reference.model
        return state_of(
            self.model, self.optimizer, reference, adapters=bool(self.config.lora), weights=weights, base=base
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises UserError when the state is of another model or another configuration."""
        reference = None if self._reference is None else self._reference.model
        load_state(state, self.model, self.optimizer, reference, adapters=bool(self.config.lora))

    def _take_step(self, update: _Update, members: Sequence[int]) -> None:
        """One optimizer step on the trajectories `members` of the batch; none when all of them were filtered."""
        # Weights before filters: what a filter takes out still counts in the denominator, so that the others weigh the
        # same whatever became of their neighbours.
        lengths = [len(update.sampler[row]) for row in members]
        weights = token_weights(self.config.aggregation, lengths, self.config.length_norm)
        rows = [row for row in members if update.keep[row]]
        if not rows:
            return
        weight_of = dict(zip(members, weights, strict=True))
        step = _Step(rows, weight_of, self._picks(update, rows))

        packs = self._packs(_masked([update.batch[row] for row in rows]))
        self.optimizer.zero()  # of a step that an error cut short
        for packed in packs:
            self._accumulate(update, step, packed)
        norm = self.optimizer.clip()
        if not torch.isfinite(norm):
            self._refuse_gradient(update, step, packs)
        with self._live.writing():
            self.optimizer.apply()
        update.norms.append(float(norm))

    def _accumulate(self, update: _Update, step: _Step, packed: PackedBatch) -> None:
        """Forward and backward of one micro-batch: its share of the step's loss, and its metrics.

        Every tensor here is float32 [n], one value an action token of the pack; `losses` becomes a number at the end.
        """
        config = self.config
        rows = [step.rows[place] for place in packed.members]
        counts = torch.tensor([len(update.sampler[row]) for row in rows], device=self.scorer.device)  # int64 [rows]

        # The policy of now, and the one that the ratio is taken to.
        logprob, entropy = self.scorer(packed, entropy_grad=config.entropy_coef != 0)
        sampler = self._column(update.sampler, rows)
        one_step = config.decoupled and update.old is update.sampler  # then π_old is the policy of now
        old = logprob.detach() if one_step else self._column(update.old, rows)
        picked = self._column(step.picked, rows) if step.picked else torch.zeros_like(sampler)
        tokens = Tokens(
            logprob=logprob,
            old=old,
            advantage=self._column(update.advantages, rows),
            segment=packed.segment,
            sequences=len(rows),
            picked=picked.bool(),
        )
        losses, sums = self.loss(tokens)

        # The tokens are the sampler's and not π_old's: that weighs the policy's loss, before the other terms are added.
        weight, of_correction = token_corrections(tokens, sampler, config)
        losses = losses if weight is None else losses * weight
        sums = {**sums, **of_correction}
        if config.entropy_coef:
            losses = losses - config.entropy_coef * entropy
        if self._reference is not None:
            with torch.no_grad():
                reference, _ = self._reference(packed)
            penalty = kl_penalty(config.kl_estimator, logprob, reference, tokens.log_ratio.exp())
            losses = losses + config.kl_coef * penalty
            sums = {**sums, "kl/reference": penalty.sum()}

        # One weight for all tokens of a trajectory, fixed by the whole step and not by this pack.
        of_row = [step.weights[row] for row in rows]
        weights = torch.tensor(of_row, dtype=torch.float32, device=self.scorer.device)  # [rows]
        losses = losses * weights.repeat_interleave(counts)
        losses.sum().backward()

        update.metrics.tokens({**sums, "loss": losses.sum()}, logprob, old, entropy)
        # Before the first step the policy is still the one that should have sampled, up to numerics and staleness.
        if not update.norms:
            trajectories = [update.batch[row] for row in rows]
            versions = np.concatenate([one.versions[one.action_mask] for one in trajectories])
            update.metrics.mismatch(logprob - sampler, versions)
            parts = logprob.detach().cpu().split(counts.tolist())
            for row, part in zip(rows, parts, strict=True):
                update.start[row] = part.numpy()

    def _picks(self, update: _Update, rows: Sequence[int]) -> dict[int, np.ndarray]:
        """The tokens that the loss treats apart, chosen over the whole optimizer batch; empty for most losses."""
        if not isinstance(self.loss, SelectsTokens):
            return {}
        # A share of the batch's tokens is meant: chosen here, because a micro-batch would see too few of them.
        logprobs = np.concatenate([update.sampler[row] for row in rows]).astype(np.float64)
        advantages = np.concatenate([update.advantages[row] for row in rows])
        selected = self.loss.select(covariance(logprobs, advantages), update.rng)
        ends = np.cumsum([len(update.sampler[row]) for row in rows])
        return dict(zip(rows, np.split(selected, ends[:-1]), strict=True))

    def _refuse_gradient(self, update: _Update, step: _Step, packs: Sequence[PackedBatch]) -> None:
        """Find the micro-batches whose gradient is not finite, name their tasks, dump the batch, raise NotFinite."""
        guilty: list[str] = []
        for packed in packs:
            self.optimizer.zero()
            self._accumulate(update, step, packed)
            if not torch.isfinite(self.optimizer.clip()):
                guilty += [update.batch[step.rows[place]].task_id for place in packed.members]
        self.optimizer.zero()
        # Each may be finite alone while their sum is not: then all of them are named.
        tasks = guilty or [update.batch[row].task_id for row in step.rows]
        refuse("gradients", tasks, update.batch, self.dump_dir, self.step)

    def _drift(self, update: _Update) -> float:
        """Mean |log π after − log π before| over the action tokens that the first step was made of, nats a token.

        That is every action token of the batch, or of its first mini-batch, which is a random share of it. The measure
        is the one of SPO's code (`_get_spo_rho`), which D_half = 0.06 belongs to; a KL would be about half its square.
        """
        if not update.norms:  # everything was filtered: the policy has not moved
            return 0.0
        rows = sorted(update.start)
        trajectories = [update.batch[row] for row in rows]
        before = np.concatenate([update.start[row] for row in rows])
        after = np.concatenate(self.logprobs(trajectories)).astype(np.float64)
        if not np.isfinite(after).all():
            raise NotFinite("the update left log-probabilities that are not finite: lower learner.lr, then --resume")
        return float(np.mean(np.abs(after - before)))

    def _throughput(self, batch: Batch, keep: Sequence[bool], seconds: float) -> dict[str, float]:
        """`tokens`, `tokens_per_s`, and `mfu` where the peak of the hardware is known: of what was trained on."""
        used = [trajectory for trajectory, wanted in zip(batch, keep, strict=True) if wanted]
        tokens = self.config.epochs * sum(map(len, used))
        found = {"tokens": float(tokens), "tokens_per_s": tokens / seconds}
        if self.peak:
            needed = flops(self.shape, list(map(len, used)), sum(t.n_action_tokens for t in used))  # of one pass
            found["mfu"] = self.config.epochs * needed / (seconds * self.peak)
        return found

    def _scorer(self, model: nn.Module) -> LogprobComputer:
        dtype = compute_dtype(self.config.dtype, next(model.parameters()).device)
        return LogprobComputer(model, chunk=self.config.logits_chunk, temperature=self.temperature, dtype=dtype)

    def _packs(self, sequences: Sequence[Demonstration]) -> list[PackedBatch]:
        """Micro-batches of at most `max_tokens_per_batch` tokens, without padding."""
        cut = plan([len(ids) for ids, _ in sequences], self.config.max_tokens_per_batch)
        return [pack(sequences, members, self.scorer.device) for members in cut]

    def _column(self, of_row: Sequence[np.ndarray] | Mapping[int, np.ndarray], rows: Sequence[int]) -> Tensor:
        """The token values of `rows`, end to end: float32 [n]."""
        values = np.concatenate([of_row[row] for row in rows]).astype(np.float32)
        return torch.from_numpy(values).to(self.scorer.device)


def _masked(trajectories: Sequence[Trajectory]) -> list[Demonstration]:
    """What a pack is made of: the tokens, and which of them are the policy's own."""
    return [(trajectory.token_ids, trajectory.action_mask) for trajectory in trajectories]
