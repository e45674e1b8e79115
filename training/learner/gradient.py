"""The gradient of one optimizer step, added up from its micro-batches.

Nothing is read from the device on the way: the host goes on with the next micro-batch while this one is computed.
Every tensor here is float32 [n], one value an action token of the pack, unless it says another shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.device import upload
from solostream.training.learner.logprobs import LogprobComputer
from solostream.training.learner.objective import objective
from solostream.training.learner.packing import PackedBatch, by_member, column
from solostream.training.learner.terms.entropy_band import EntropyBand
from solostream.training.learner.update import OptimizerStep, Update
from solostream.training.losses import Loss
from solostream.training.losses.tokens import Tokens


class Gradient:
    """scorer: computes the policy, and has its weights. band: where the entropy is held, if anywhere.

    `reference`: the weights that the KL penalty pulls towards; None: there is no penalty.
    """

    def __init__(
        self,
        scorer: LogprobComputer,
        loss: Loss,
        config: LearnerConfig,
        band: EntropyBand | None,
    ) -> None:
        self.scorer = scorer
        self.loss = loss
        self.config = config
        self.band = band
        self.reference: LogprobComputer | None = None

    def add(self, update: Update, step: OptimizerStep, packed: PackedBatch) -> None:
        """Forward and backward of one micro-batch: its share of the step's loss, and its metrics."""
        pieces = [step.pieces[place] for place in packed.members]
        if not pieces:
            self._idle(packed)
            return

        def of_pack(of_row: Sequence[np.ndarray] | Mapping[int, np.ndarray]) -> Tensor:
            return column(of_row, pieces, self.scorer.device)

        # The policy of now, under which the gradient is taken; its entropy is mostly a metric.
        logprob, entropy = self.scorer(packed, entropy_grad=self.config.entropy_coef != 0)

        # The policy that the ratio is taken to. `Learner.update` leaves π_old to this place where there is one step:
        # then it is the policy of now.
        sampler = of_pack(update.sampler)
        same_policy = self.config.decoupled and update.old is update.sampler
        old = logprob.detach() if same_policy else of_pack(update.old)

        # The loss of each token, with all that is added to it.
        picked = of_pack(step.picked) if step.picked else torch.zeros_like(sampler)
        tokens = Tokens(
            logprob=logprob,
            old=old,
            advantage=of_pack(update.advantages),
            segment=packed.segment,
            sequences=len(pieces),
            picked=picked.bool(),
        )
        losses, sums = objective(
            tokens,
            sampler,
            entropy,
            self._under_reference(packed),
            loss=self.loss,
            config=self.config,
            band=self.band,
        )

        # One weight for all tokens of a trajectory, fixed by the whole step and not by this pack.
        weights = [np.full(len(piece), step.weights[piece.row], np.float32) for piece in pieces]
        losses = losses * upload(np.concatenate(weights), self.scorer.device)
        # What demonstrations take, the policy's own loss gives up.
        loss = (1 - update.imitated) * losses.sum()  # a number
        loss.backward()

        # Before the first step the policy is still the one that should have sampled, up to numerics and staleness.
        update.metrics.tokens(loss, sums, logprob, old, entropy)
        if not update.norms:
            self._remember_start(update, packed, logprob, sampler)

    def _under_reference(self, packed: PackedBatch) -> Tensor | None:
        """The tokens' log-probabilities under the reference; None without a penalty."""
        if self.reference is None:
            return None
        with torch.no_grad():
            logprob, _ = self.reference(packed)
        return logprob

    def _idle(self, packed: PackedBatch) -> None:
        """A rank that has no more packs takes part in what the ranks do together, and adds nothing."""
        logprob, _ = self.scorer(packed)
        self._under_reference(packed)
        # Nothing, but through the whole graph: in the backward pass the ranks wait for each other too.
        nothing = 0 * logprob.sum()
        nothing.backward()

    def _remember_start(self, update: Update, packed: PackedBatch, logprob: Tensor, sampler: Tensor) -> None:
        """Before anything moves: how far the learner is from the sampler, and where the drift is measured from."""
        pieces = [update.first[place] for place in packed.members]
        # Which policy sampled each token.
        parts = [update.batch[piece.row].versions[piece.span][piece.mask] for piece in pieces]
        versions = np.concatenate(parts)  # int [n]
        update.metrics.mismatch(logprob - sampler, versions)
        update.start |= by_member(packed, update.first, logprob.detach())
