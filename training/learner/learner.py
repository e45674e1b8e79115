"""The learner: one batch of trajectories and their advantages in, optimizer steps and metrics out.

    loss = Σ_tokens w · (correction · policy loss − entropy bonus · H + KL coefficient · KL)

with the weights w of `losses.aggregation`, fixed from the whole optimizer batch: micro-batches only add up.
π_old is the sampler's own log-probabilities; with `tis_cap`, `mask_outside` or `reject_outside` it is the learner's
policy at the start of the batch, and the distance to the sampler is corrected by weights (`learner.corrections`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solostream import registry
from solostream.agent.engines.allocator import trim
from solostream.agent.engines.hf.device import DTYPES
from solostream.agent.engines.live_weights import LiveWeights
from solostream.agent.trajectory import Trajectory
from solostream.training.advantages.base import Advantages
from solostream.training.batch import Batch
from solostream.training.cluster.rank_group import ALONE, RankGroup
from solostream.training.cluster.rank_sharding import base_of, frozen_copy, shard, whole_tensors
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner import lora
from solostream.training.learner.corrections import kept
from solostream.training.learner.device import cast, compile_layers, compute_dtype
from solostream.training.learner.gradient import Gradient
from solostream.training.learner.guards import check_advantages, memory_advice, refuse
from solostream.training.learner.logprobs import LogprobComputer
from solostream.training.learner.mfu import peak_of, shape_of, throughput
from solostream.training.learner.optimizer import Optimizer
from solostream.training.learner.optimizer.on_host import HostMasters
from solostream.training.learner.packing import MaskedTokens, PackedBatch, Piece, by_member, idle, pack, pieces_of, plan
from solostream.training.learner.state import load_state, read_state, state_of, write_model, write_state
from solostream.training.learner.terms.entropy_band import EntropyBand
from solostream.training.learner.terms.imitation import beside
from solostream.training.learner.update import OptimizerStep, Update, picks
from solostream.training.losses import Loss
from solostream.training.losses.aggregation import token_weights

LOGPROBS, ENTROPIES = 0, 1  # what a scorer gives


class Learner:
    """Trains `model`, a causal language model of transformers, in place.

    loss: default the one that `config.loss` names, with its default options. temperature: of the sampler, whose logits
    are divided by it before the softmax. seed: of the order of mini-batches and of what is drawn from a batch.
    dump_dir: where a batch that cannot be trained on is written. group: the ranks that share the model out among them;
    each calls every method, with the same arguments, and gets the same numbers. masters: of the model, where they are
    on the host. Raises UserError when the model cannot be packed, or not be shared out.
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
        group: RankGroup = ALONE,
        masters: HostMasters | None = None,
    ) -> None:
        self.config = config
        self.group = group
        self._masters = masters
        self.temperature = temperature
        self.seed = seed
        self.dump_dir = dump_dir
        self.loss: Loss = registry.make("loss", config.loss) if loss is None else loss

        # What is trained is float32: a step of 1e-6 is lost on bfloat16 weights that are rounded to the nearest (the
        # setting `masters` rounds otherwise). Adapters are float32 by themselves, and the base under them may stay as
        # small as it is; so may the copy that masters on the host have left here.
        if masters is None and config.lora is None:
            cast(model, DTYPES[config.masters])
        self.model: Any = lora.wrap(model, config.lora)
        # A ratio of two policies has no room for a random one: dropout is off, in training too.
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.model.train()

        # Two ways to trade time for memory, or memory for time.
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.compile:
            compile_layers(self.model)

        # What a utilisation of the hardware is computed from.
        self.shape = shape_of(base_of(self.model), adapters=bool(config.lora))

        # The forward pass, and the steps that follow from it.
        shard(self.model, group)
        self.scorer = self._scorer(self.model)
        self.optimizer = Optimizer(self.model, config, masters)

        # A sampler in this process may read these very parameters: a step is taken while nobody reads.
        self._live = LiveWeights(self.scorer.model)

        # Where the entropies of earlier updates hold those of the next.
        self.band = EntropyBand(*config.entropy_band) if config.entropy_band else None

        # What adds up the gradient of a step. The policy that the KL penalty pulls towards is a second model in memory:
        # only where it is asked for.
        self.gradient = Gradient(self.scorer, self.loss, config, self.band)
        if config.kl_coef:
            self.set_reference()

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.optimizer.step

    def set_reference(self) -> None:
        """The KL penalty pulls towards the weights of this moment from now on."""
        wrap = partial(lora.wrap, config=self.config.lora)
        frozen = frozen_copy(self.model, self.group, wrap)
        self.gradient.reference = self._scorer(frozen)

    def update(
        self,
        batch: Batch,
        advantages: Advantages,
        *,
        version: int | None = None,
        drift: bool = True,
        demonstrations: Sequence[MaskedTokens] = (),
    ) -> dict[str, float]:
        """Train on one batch. `version`: of the learner's policy, for the mismatch on tokens of that policy.

        drift: measure how far the update moved the policy; it costs a forward pass. demonstrations: what
        `config.imitation` imitates beside the batch.

        Raises NotFinite, with the batch dumped and the task ids named, for advantages or gradients that are not finite
        (the step is not taken), and UserError with a token budget to try when memory ran out.
        """
        started = time.perf_counter()
        config = self.config
        # Nothing is touched before the advantages are known to be numbers, one an action token.
        check_advantages(batch, advantages.values, self.dump_dir, self.step)
        keep, dropped = kept(batch, config)
        sampler = [trajectory.logprobs[trajectory.action_mask] for trajectory in batch]
        # By the step, so that a resumed run draws what the uninterrupted one would have drawn.
        rng = np.random.default_rng((self.seed, self.step))

        with memory_advice(config), self.scorer.active():
            # π_old as the learner computes it is only worth a forward pass where the policy moves within the batch;
            # with one step it is the policy of that step, and the gradient has it anyway.
            several_steps = config.num_mini_batches * config.epochs > 1
            own_old = config.decoupled and several_steps
            old = self.logprobs(batch) if own_old else sampler
            update = Update(batch, advantages.values, keep, sampler, old, rng)
            update.imitation = beside(config.imitation, demonstrations, self.step)

            self._take_steps(update)
            # How far the policy went is what the tracker forgets by.
            moved = {"drift": update.drift(self._scored(update.first), self.group)} if drift else {}

        # What the update was like, over all its tokens; the band holds the next one by this one's entropy.
        found = update.metrics.result(version, len(update.norms), self.group)
        if self.band is not None and update.norms:
            self.band.record(found["entropy"])
        if update.imitation is not None:
            found |= update.imitation.metrics(self.group)

        # What was filtered costs nothing, and counts for nothing in the utilisation.
        seconds = time.perf_counter() - started
        used = [trajectory for trajectory, wanted in zip(batch, keep, strict=True) if wanted]
        peak = peak_of(self.scorer.device, self.group.world)
        return {
            **throughput(used, config.epochs, seconds, self.shape, peak),
            **dropped,
            **found,
            **moved,
            "grad_norm": float(np.mean(update.norms)) if update.norms else 0.0,
            "lr": self.optimizer.lr,
            "optimizer_steps": float(len(update.norms)),
        }

    def _take_steps(self, update: Update) -> None:
        """Each pass cuts the batch anew, so that other trajectories share a step; one step takes it as it is."""
        for _ in range(self.config.epochs):
            order = np.arange(len(update.batch))  # places of trajectories
            if self.config.num_mini_batches > 1:
                order = update.rng.permutation(order)
            for members in np.array_split(order, self.config.num_mini_batches):
                self._take_step(update, members.tolist())
        if getattr(self.model.config, "quantization_config", None) is not None:
            trim()  # each product has made its weights whole for a moment, and the heap kept the room of them

    def logprobs(self, batch: Sequence[Trajectory]) -> list[np.ndarray]:
        """Log-probabilities of each trajectory's action tokens under the weights of now, float32."""
        return self._of_tokens(batch, LOGPROBS)

    def entropies(self, batch: Sequence[Trajectory]) -> list[np.ndarray]:
        """The entropy at each of a trajectory's action tokens under the weights of now, in nats, float32."""
        return self._of_tokens(batch, ENTROPIES)

    def _of_tokens(self, batch: Sequence[Trajectory], what: int) -> list[np.ndarray]:
        # A trajectory may be several pieces, and each rank has computed some of them.
        of_row = [np.empty(trajectory.n_action_tokens, np.float32) for trajectory in batch]
        pieces = pieces_of(batch, range(len(batch)))
        own = self._scored(pieces, what)
        for of_rank in self.group.gather(own):
            for place, values in of_rank.items():
                piece = pieces[place]
                of_row[piece.row][piece.tokens] = values
        return of_row

    @torch.no_grad()
    def _scored(self, pieces: Sequence[Piece], what: int = LOGPROBS) -> dict[int, np.ndarray]:
        """place in `pieces` -> the values of its action tokens, float32, of the packs that are this rank's."""
        found: dict[int, Tensor] = {}
        sequences = [piece.sequence for piece in pieces]
        for packed in self.packs(sequences):
            values = self.scorer(packed)[what]  # float32 [n]
            found |= by_member(packed, pieces, values)
        # Read once everything is on its way: reading each pack would let the device wait for the host.
        return {place: values.cpu().numpy() for place, values in found.items()}

    def packs(self, sequences: Sequence[MaskedTokens]) -> list[PackedBatch]:
        """This rank's micro-batches of at most `max_tokens_per_batch` tokens, without padding; the last may idle."""
        device = self.scorer.device
        lengths = [len(ids) for ids, _ in sequences]
        # The same cut on every rank; they take turns with the packs.
        cut = plan(lengths, self.config.max_tokens_per_batch, self.group.world)
        own = cut[self.group.rank :: self.group.world]
        return [pack(sequences, members, device) if members else idle(device) for members in own]

    def weights(self) -> LiveWeights:
        """Every weight under its Hugging Face name (tied heads too, adapters merged in): a live view, copy to keep."""
        return self._live

    def merge_adapters(self) -> None:
        """Merge the adapters into the model for good, so that another learner can train it; the end of this one."""
        if self.config.lora:
            with self._live.writing():
                lora.merge_adapters(self.model, trained=self.step > 0)

    def save(self, folder: Path, *, weights: bool = False, base: bool = True, on: Path | None = None) -> None:
        """A folder for `from_pretrained`, and beside the model what training goes on from (see `state_dict`).

        on: the base's folder; then the adapters alone are in `adapter/`, which peft loads on top of it.
        """
        # What computes may be rounded, the masters on the host are not.
        exact = self._live if self._masters is None else {**self._live, **self._masters.named}
        write_model(self.scorer.model, exact, folder, self.group)
        state = self.state_dict(weights=weights, base=base)
        write_state(state, folder, self.group)

        # Every rank has a share of the adapters, and the first one writes them.
        if self.config.lora and on is not None:
            adapters = whole_tensors(self.optimizer.named, self.group)
            if self.group.first:
                lora.save(self.model, adapters, folder / "adapter", on)

    def load(self, folder: Path) -> None:
        """What any number of ranks saved. Raises UserError when it is of another model or another configuration."""
        self.load_state_dict(read_state(self.state_dict(), folder))

    def state_dict(self, *, weights: bool = True, base: bool = True) -> dict[str, Any]:
        """What is trained, the optimizer, its step, the base under adapters, and the reference where there is one.

        weights, base: False leaves out what folders hold: the model that is trained whole, the base under adapters.
        """
        reference = None if self.gradient.reference is None else self.gradient.reference.model
        state = state_of(
            self.model,
            self.optimizer,
            reference,
            adapters=bool(self.config.lora),
            weights=weights,
            base=base,
        )
        # What the band holds the entropy to is a mean over all updates so far.
        if self.band is not None:
            state["entropy_band"] = self.band.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises UserError when the state is of another model or another configuration."""
        reference = None if self.gradient.reference is None else self.gradient.reference.model
        load_state(state, self.model, self.optimizer, reference, adapters=bool(self.config.lora))
        if self.band is not None:
            self.band.load_state_dict(state["entropy_band"])

    def _take_step(self, update: Update, members: Sequence[int]) -> None:
        """One optimizer step on the trajectories `members` of the batch; none when all of them were filtered."""
        # Weights before filters: what a filter takes out still counts in the denominator, so that the others weigh the
        # same whatever became of their neighbours.
        lengths = [len(update.sampler[row]) for row in members]
        weights = token_weights(self.config.aggregation, lengths, self.config.length_norm)
        weight_of = dict(zip(members, weights, strict=True))

        # What is left of the step; some losses choose among its tokens as a whole.
        rows = [row for row in members if update.keep[row]]
        if not rows:
            return
        picked = picks(self.loss, update, rows)
        step = OptimizerStep(pieces_of(update.batch, rows), weight_of, picked)

        # The drift is measured on the tokens of the first step.
        if not update.norms:
            update.first = step.pieces

        # Gradients of the micro-batches add up: how the step is cut into packs changes nothing but the memory it needs.
        packs = self.packs([piece.sequence for piece in step.pieces])
        self.optimizer.zero()  # of a step that an error cut short
        for packed in packs:
            self.gradient.add(update, step, packed)

        # Demonstrations add theirs. `update.rng` is that of all ranks; here each draws for its own tokens.
        if update.imitation is not None:
            own_rng = np.random.default_rng((self.seed, self.step, self.group.rank))
            demonstrated = self.packs(update.imitation.sequences)
            update.imitation.backward(demonstrated, self.scorer, own_rng)

        # The last look before the weights change.
        norm = self.optimizer.clip()
        if not torch.isfinite(norm):
            self._refuse_gradient(update, step, packs)
        with self._live.writing():
            self.optimizer.apply()
        update.norms.append(float(norm))

    def _refuse_gradient(self, update: Update, step: OptimizerStep, packs: Sequence[PackedBatch]) -> None:
        """Find the micro-batches whose gradient is not finite, name their tasks, dump the batch, raise NotFinite."""
        guilty: list[str] = []
        # Once more, each micro-batch by itself: the sum does not say whose gradient it was.
        for packed in packs:
            # One rank at a time, while the others idle: the norm is that of all ranks together.
            for rank in range(self.group.world):
                own = rank == self.group.rank
                alone = packed if own else idle(self.scorer.device)
                self.optimizer.zero()
                self.gradient.add(update, step, alone)
                finite = torch.isfinite(self.optimizer.clip())
                if own and not finite:
                    rows = [step.pieces[place].row for place in packed.members]
                    guilty += [update.batch[row].task_id for row in rows]
        self.optimizer.zero()

        # Each may be finite alone while their sum is not: then all of them are named.
        every = [task for of_rank in self.group.gather(guilty) for task in of_rank]
        tasks = every or [update.batch[piece.row].task_id for piece in step.pieces]
        refuse("gradients", tasks, update.batch, self.dump_dir, self.step)

    def _scorer(self, model: nn.Module) -> LogprobComputer:
        name = "bfloat16" if self.config.masters == "bfloat16" else self.config.dtype
        device = next(model.parameters()).device
        return LogprobComputer(
            model,
            chunk=self.config.logits_chunk,
            temperature=self.temperature,
            dtype=compute_dtype(name, device),
            compiled=self.config.compile,
        )
