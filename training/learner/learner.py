"""The learner: one batch of trajectories and their advantages in, optimizer steps and metrics out.

    loss = Σ_tokens w · (correction · policy loss − entropy bonus · H + KL coefficient · KL)

with the weights w of `losses.aggregation`, fixed from the whole optimizer batch: micro-batches only add up.
π_old is the sampler's own log-probabilities; with `tis_cap` or `reject_outside` it is the learner's policy at the start
of the batch, and the distance to the sampler is corrected by weights (`solostream.training.learner.correction`).
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
from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantages
from solostream.training.batch import Batch
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner import lora
from solostream.training.learner.compile import compile_layers
from solostream.training.learner.correction import importance_weights, kept
from solostream.training.learner.device import compute_dtype
from solostream.training.learner.guards import NotFinite, check_advantages, memory_advice, refuse
from solostream.training.learner.logprobs import LogprobComputer
from solostream.training.learner.mfu import flops, peak_of, shape_of
from solostream.training.learner.optimizer import Optimizer
from solostream.training.learner.packing import PackedBatch, pack, plan
from solostream.training.learner.update_metrics import UpdateMetrics
from solostream.training.losses import Loss, SelectsTokens
from solostream.training.losses.aggregation import token_weights
from solostream.training.losses.clip_cov import covariance
from solostream.training.losses.kl import kl_penalty
from solostream.training.losses.tokens import Tokens

Demonstration = tuple[np.ndarray, np.ndarray]  # token ids, mask of the tokens to learn


@dataclass(slots=True)
class _Update:
    """What one update works on, a row a trajectory, and what it has seen so far."""

    batch: Batch
    advantages: Sequence[np.ndarray]  # of the action tokens
    keep: Sequence[bool]
    sampler: list[np.ndarray]  # log-probabilities of the action tokens, as sampled
    old: list[np.ndarray]  # under π_old
    rng: np.random.Generator
    measures: UpdateMetrics = field(default_factory=UpdateMetrics)
    norms: list[float] = field(default_factory=list)  # of the gradient, one an optimizer step
    start: dict[int, np.ndarray] = field(default_factory=dict)  # row -> log-probabilities before the first step


@dataclass(slots=True)
class _Step:
    """One optimizer step's share of an update: its rows, and what their tokens weigh."""

    rows: list[int]  # kept trajectories, as places in the batch
    weights: dict[int, float]
    picked: dict[int, np.ndarray]


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
        self.config, self.temperature, self.seed, self.dump_dir = config, temperature, seed, dump_dir
        self.loss: Loss = registry.make("loss", config.loss) if loss is None else loss
        # float32: a step of 1e-6 is lost on bfloat16 weights (adapters are float32 by themselves)
        self.model: Any = lora.wrap(model, config.lora) if config.lora else model.float()
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # a ratio of two policies has no room for a random one
        self.model.train()
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.compile:
            compile_layers(self.model)
        self.scorer = self._scorer(self.model)
        self.optimizer = Optimizer(self.model, config)
        self.shape, self.peak = shape_of(self.scorer.model, adapters=bool(config.lora)), peak_of(self.scorer.device)
        self._reference: LogprobComputer | None = None
        if config.kl_coef:
            self.set_reference()

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.optimizer.step

    def set_reference(self) -> None:
        """The KL penalty pulls towards the weights of this moment from now on."""
        frozen = copy.deepcopy(self.model).requires_grad_(False)
        self._reference = self._scorer(frozen)

    def update(
        self, batch: Batch, advantages: Advantages, *, version: int | None = None, drift: bool = True
    ) -> dict[str, float]:
        """Train on one batch. `version`: of the learner's policy, for the mismatch on tokens of that policy.

        drift: measure how far the update moved the policy; it costs a forward pass.

        Raises NotFinite, with the batch dumped and the task ids named, for advantages or gradients that are not finite
        (the step is not taken), and UserError with a token budget to try when memory ran out.
        """
        started, config = time.perf_counter(), self.config
        check_advantages(batch, advantages.values, self.dump_dir, self.step)
        keep, dropped = kept(batch, config)
        sampler = [t.logprobs[t.action_mask] for t in batch]
        rng = np.random.default_rng((self.seed, self.step))
        with memory_advice(config.max_tokens_per_batch), self.scorer.active():
            rescored = config.decoupled and config.num_mini_batches * config.epochs > 1
            old = self.logprobs(batch) if rescored else sampler
            job = _Update(batch, advantages.values, keep, sampler, old, rng)
            for _ in range(config.epochs):
                order = rng.permutation(len(batch)) if config.num_mini_batches > 1 else np.arange(len(batch))
                for members in np.array_split(order, config.num_mini_batches):
                    self._take_step(job, members.tolist())
            moved = {"drift": self._drift(job)} if drift else {}
        seconds = time.perf_counter() - started
        used = [t for t, k in zip(batch, keep, strict=True) if k]
        tokens = config.epochs * sum(map(len, used))
        needed = config.epochs * flops(self.shape, [len(t) for t in used], sum(t.n_action_tokens for t in used))
        return {
            **({"mfu": needed / (seconds * self.peak)} if self.peak else {}),
            **dropped,
            **job.measures.result(version),
            **moved,
            "grad_norm": float(np.mean(job.norms)) if job.norms else 0.0,
            "lr": self.optimizer.lr,
            "optimiser_steps": float(len(job.norms)),
            "tokens": float(tokens),
            "tokens_per_s": tokens / seconds,
        }

    def sft_step(self, sequences: Sequence[Demonstration]) -> dict[str, float]:
        """One optimizer step of cross-entropy, the mean over all masked tokens. Raises UserError as `update` does."""
        started = time.perf_counter()
        total = max(sum(int(mask.sum()) for _, mask in sequences), 1)
        loss = torch.zeros((), device=self.scorer.device)
        self.optimizer.zero()  # of a step that an error cut short
        with memory_advice(self.config.max_tokens_per_batch), self.scorer.active():
            for packed in self._packs(sequences):
                part = -self.scorer(packed)[0].sum() / total
                part.backward()
                loss += part.detach()
        norm = self.optimizer.clip()
        if not torch.isfinite(norm):
            self.optimizer.zero()
            raise UserError("the gradient of a supervised step is not finite; lower the learning rate")
        lr = self.optimizer.lr
        self.optimizer.apply()
        tokens = sum(len(ids) for ids, _ in sequences)
        seconds = time.perf_counter() - started
        return {"loss": float(loss), "grad_norm": float(norm), "lr": lr, "tokens_per_s": tokens / seconds}

    @torch.no_grad()
    def sft_loss(self, sequences: Sequence[Demonstration]) -> float:
        """Cross-entropy in nats, the mean over all masked tokens, of what is not trained on."""
        total = max(sum(int(mask.sum()) for _, mask in sequences), 1)
        with self.scorer.active():
            return -sum(float(self.scorer(packed)[0].sum()) for packed in self._packs(sequences)) / total

    @torch.no_grad()
    def logprobs(self, batch: Sequence[Trajectory]) -> list[np.ndarray]:
        """Log-probabilities of each trajectory's action tokens under the weights of now, float32."""
        found: list[np.ndarray] = [np.empty(0, np.float32)] * len(batch)
        for packed in self._packs([(t.token_ids, t.action_mask) for t in batch]):
            parts = self.scorer(packed)[0].cpu().split([batch[i].n_action_tokens for i in packed.members])
            for i, part in zip(packed.members, parts, strict=True):
                found[i] = part.numpy()
        return found

    def weights(self) -> Mapping[str, Tensor]:
        """Every weight under its Hugging Face name (tied heads too, adapters merged in): a live view, copy to keep."""
        if self.config.lora:
            return lora.merged(self.model)
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}

    def merge_adapters(self) -> None:
        """Merge the adapters into the model for good, so that another learner can train it; the end of this one."""
        if self.config.lora:
            lora.merge_adapters(self.model)

    def state_dict(self, *, weights: bool = True) -> dict[str, Any]:
        """What is trained, the optimizer, its step, the base under adapters, and the reference where there is one.

        weights: False leaves out those of a model that is trained whole, for a folder beside it holds them.
        """
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if weights or self.config.lora:
            state["model"] = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        if self.config.lora:  # the weights in the checkpoint's folder have the adapters merged in
            state["base"] = {n: p.detach() for n, p in self.model.named_parameters() if not p.requires_grad}
        if self._reference is not None:
            state["reference"] = dict(self._reference.model.named_parameters())
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError when the state is of another model or another configuration."""
        if "model" in state:
            _copy(state["model"], {n: p for n, p in self.model.named_parameters() if p.requires_grad})
        elif self.config.lora:
            raise UserError("the checkpoint has no adapters: resume with the learner.lora that it was written with")
        if self.config.lora:
            _copy(state.get("base", {}), {n: p for n, p in self.model.named_parameters() if not p.requires_grad})
        if self._reference is not None:
            if "reference" not in state:
                raise UserError("the checkpoint has no KL reference; resume with the kl_coef it was written with")
            _copy(state["reference"], dict(self._reference.model.named_parameters()))
        self.optimizer.load_state_dict(state["optimizer"])

    def _take_step(self, job: _Update, members: Sequence[int]) -> None:
        """One optimizer step on the trajectories `members` of the batch; none when all of them were filtered."""
        lengths = [len(job.sampler[i]) for i in members]
        weights = token_weights(self.config.aggregation, lengths, self.config.length_norm)
        rows = [i for i in members if job.keep[i]]
        if not rows:
            return
        step = _Step(rows, dict(zip(members, weights, strict=True)), self._picks(job, rows))
        sequences = [(t.token_ids, t.action_mask) for t in (job.batch[i] for i in rows)]
        packs = self._packs(sequences)
        self.optimizer.zero()  # of a step that an error cut short
        for packed in packs:
            self._accumulate(job, step, packed)
        norm = self.optimizer.clip()
        if not torch.isfinite(norm):
            self._refuse_gradient(job, step, packs)
        self.optimizer.apply()
        job.norms.append(float(norm))

    def _accumulate(self, job: _Update, step: _Step, packed: PackedBatch) -> None:
        """Forward and backward of one micro-batch: its share of the step's loss, and its metrics."""
        config, rows = self.config, [step.rows[place] for place in packed.members]
        counts = torch.tensor([len(job.sampler[i]) for i in rows], device=self.scorer.device)
        logprob, entropy = self.scorer(packed, entropy_grad=config.entropy_coef != 0)
        sampler = self._column([job.sampler[i] for i in rows])
        in_place = config.decoupled and job.old is job.sampler  # one step a batch: π_old is the policy of now
        tokens = Tokens(
            logprob=logprob,
            old=logprob.detach() if in_place else self._column([job.old[i] for i in rows]),
            advantage=self._column([job.advantages[i] for i in rows]),
            segment=packed.segment,
            sequences=len(rows),
            picked=self._column([step.picked[i] for i in rows]).bool()
            if step.picked
            else torch.zeros_like(sampler).bool(),
        )
        losses, sums = self.loss(tokens)
        if config.decoupled:
            weight, more = importance_weights(tokens.old, sampler, packed.segment, len(rows), config)
            losses, sums = losses * weight, {**sums, **more}
        if config.entropy_coef:
            losses = losses - config.entropy_coef * entropy
        if self._reference is not None:
            with torch.no_grad():
                reference = self._reference(packed)[0]
            penalty = kl_penalty(config.kl_estimator, logprob, reference, tokens.log_ratio.exp())
            losses, sums = losses + config.kl_coef * penalty, {**sums, "kl/reference": penalty.sum()}
        losses = losses * self._each([step.weights[i] for i in rows], counts)
        losses.sum().backward()
        job.measures.tokens({**sums, "loss": losses.sum()}, logprob, tokens.old, entropy)
        if not job.norms:
            versions = np.concatenate([job.batch[i].versions[job.batch[i].action_mask] for i in rows])
            job.measures.mismatch(logprob - sampler, versions)
            parts = logprob.detach().cpu().split(counts.tolist())
            job.start.update((i, part.numpy()) for i, part in zip(rows, parts, strict=True))

    def _picks(self, job: _Update, rows: Sequence[int]) -> dict[int, np.ndarray]:
        """The tokens that the loss treats apart, chosen over the whole optimizer batch; empty for most losses."""
        if not isinstance(self.loss, SelectsTokens):
            return {}
        counts = [len(job.sampler[i]) for i in rows]
        logprobs = np.concatenate([job.sampler[i] for i in rows]).astype(np.float64)
        cov = covariance(logprobs, np.concatenate([job.advantages[i] for i in rows]))
        return dict(zip(rows, np.split(self.loss.select(cov, job.rng), np.cumsum(counts)[:-1]), strict=True))

    def _refuse_gradient(self, job: _Update, step: _Step, packs: Sequence[PackedBatch]) -> None:
        """Find the micro-batches whose gradient is not finite, name their tasks, dump the batch, raise NotFinite."""
        guilty: list[str] = []
        for packed in packs:
            self.optimizer.zero()
            self._accumulate(job, step, packed)
            if not torch.isfinite(self.optimizer.clip()):
                guilty += [job.batch[step.rows[place]].task_id for place in packed.members]
        self.optimizer.zero()
        refuse("gradients", guilty or [job.batch[i].task_id for i in step.rows], job.batch, self.dump_dir, self.step)

    def _drift(self, job: _Update) -> float:
        """Mean |log π after − log π before| over the action tokens that the first step was made of, nats a token.

        That is every action token of the batch, or of its first mini-batch, which is a random share of it. The measure
        is the one of SPO's code (`_get_spo_rho`), which D_half = 0.06 belongs to; a KL would be about half its square.
        """
        if not job.norms:  # everything was filtered: the policy has not moved
            return 0.0
        rows = sorted(job.start)
        after = np.concatenate(self.logprobs([job.batch[i] for i in rows])).astype(np.float64)
        if not np.isfinite(after).all():
            raise NotFinite("the update left log-probabilities that are not finite: lower learner.lr, then --resume")
        return float(np.mean(np.abs(after - np.concatenate([job.start[i] for i in rows]))))

    def _scorer(self, model: nn.Module) -> LogprobComputer:
        dtype = compute_dtype(self.config.dtype, next(model.parameters()).device)
        return LogprobComputer(model, chunk=self.config.logits_chunk, temperature=self.temperature, dtype=dtype)

    def _packs(self, sequences: Sequence[Demonstration]) -> list[PackedBatch]:
        cut = plan([len(ids) for ids, _ in sequences], self.config.max_tokens_per_batch)
        return [pack(sequences, members, self.scorer.device) for members in cut]

    def _column(self, parts: Sequence[np.ndarray]) -> Tensor:
        """Rows of token values, end to end as a float32 tensor."""
        return torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(self.scorer.device)

    def _each(self, values: Sequence[float], counts: Tensor) -> Tensor:
        """One value a trajectory, repeated over its tokens."""
        return torch.tensor(values, dtype=torch.float32, device=self.scorer.device).repeat_interleave(counts)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    if source.keys() != target.keys():
        odd = sorted(source.keys() ^ target.keys())[:3]
        raise UserError(
            f"the checkpoint belongs to another model: {', '.join(odd)} do not match; resume with the same one"
        )
    for name, tensor in target.items():
        tensor.copy_(source[name])
