"""Log-probabilities of action tokens under a causal LM of transformers: packed forward, logits in chunks.

Logits exist only for the rows that predict an action token, `chunk` rows at a time and in float32: the full
[tokens × vocabulary] matrix is never in memory, in the backward pass neither (each chunk is recomputed there).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from solostream.errors import UserError
from solostream.training.cluster.rank_sharding import as_method
from solostream.training.learner.kernels.attention import ATTENTION
from solostream.training.learner.kernels.cross_entropy import fused, gathered
from solostream.training.learner.packing import PackedBatch, pack


class LogprobComputer:
    """Scores packs with `model` (a causal LM, or a peft model around one).

    Creating it checks, on a few tokens, that packing changes nothing for this architecture; where it does, the
    block-diagonal mask of transformers is used in place of the packed kernel. Raises UserError when neither is exact.
    compiled: what follows the logits runs as kernels made for it (`kernels.cross_entropy.fused`).
    """

    def __init__(
        self,
        model: Any,
        *,
        chunk: int,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        # Without peft's wrapper, whose forward pass takes other arguments.
        self.model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.head: Any = self.model.get_output_embeddings()
        self.chunk = chunk
        self.temperature = temperature
        self.dtype = dtype
        self.compiled = compiled
        self.device = next(model.parameters()).device

        # What this architecture does of its own: its attention, and a limit that some put on their logits.
        self.own_attention = self.model.config._attn_implementation
        self.softcap = getattr(self.model.config, "final_logit_softcapping", None)

        # Through the model's own call, where ranks gather the weights that a forward pass needs.
        self._through_model = as_method(self.model, "score", self._score)
        self.packed = self._exact_kernel()

    def __call__(self, packed: PackedBatch, *, entropy_grad: bool = False) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies in nats) of the pack's n action tokens, float32 [n] each."""
        found: tuple[Tensor, Tensor] = self._through_model(packed, entropy_grad)
        return found

    def _score(self, packed: PackedBatch, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        # Only the rows that predict an action token: an observation's logits would be computed for nothing.
        with self.autocast():
            hidden = self._hidden(packed)[0].index_select(0, packed.rows)  # [n, hidden size]

        # One chunk fits as it is; of several, each one's logits are computed once more in the backward pass.
        n_tokens = len(packed.targets)
        recompute = torch.is_grad_enabled() and n_tokens > self.chunk
        parts = []
        for start in range(0, n_tokens, self.chunk):
            end = start + self.chunk
            piece = hidden[start:end], packed.targets[start:end], entropy_grad
            if recompute:
                parts.append(checkpoint(self._chunk, *piece, use_reentrant=False))
            else:
                parts.append(self._chunk(*piece))
        if not parts:
            return hidden.new_zeros(0).float(), hidden.new_zeros(0).float()
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def active(self) -> AbstractContextManager[None]:
        """Held around forward and backward: gradient checkpointing runs the forward pass again in the backward pass."""
        return _attention(self.model, ATTENTION if self.packed else self.own_attention)

    def autocast(self) -> torch.autocast:
        """bfloat16 arithmetic where the learner's dtype says so; nothing in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _hidden(self, packed: PackedBatch) -> Tensor:
        # Only our own attention function knows what to do with a layout.
        extra = {"layout": packed.layout} if self.packed else {}
        with self.active():
            output = self.model.base_model(
                input_ids=packed.token_ids,
                position_ids=packed.position_ids,
                use_cache=False,
                **extra,
            )
        hidden: Tensor = output.last_hidden_state  # [1, T, hidden size]
        return hidden

    def _chunk(self, hidden: Tensor, targets: Tensor, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies), float32 [c] each, of hidden [c, hidden size] and targets int64 [c]."""
        with self.autocast():
            logits = self.head(hidden)
        with_gradient = entropy_grad and torch.is_grad_enabled()  # of the entropy, mostly a metric only
        if self.compiled and not with_gradient and not self.softcap:
            return fused(logits, targets, self.temperature)
        # float32 from here on: a bfloat16 log-probability is off by more than an update moves it.
        logits = logits.float()  # [c, vocabulary]
        if self.softcap:
            logits = self.softcap * (logits / self.softcap).tanh()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if not with_gradient:
            return gathered(logits, targets)
        # Step by step, where the entropy has a gradient too: torch knows its way back.
        every = logits.log_softmax(-1)  # [c, vocabulary]
        logprob = every.gather(-1, targets[:, None])[:, 0]
        entropy = -(every.exp() * every).sum(-1)
        return logprob, entropy

    def _exact_kernel(self) -> bool:
        """Whether the packed kernel computes this architecture. Raises UserError when nothing here does."""
        # Three sequences of unlike lengths, packed and one at a time: if attention or positions leak over a border,
        # their log-probabilities differ.
        vocabulary = self.head.weight.shape[0]
        ids = [
            np.arange(first, first + length) * 7 % vocabulary  # any tokens, no two sequences alike
            for first, length in ((1, 5), (3, 9), (2, 7))
        ]
        # All but the first token of each are learnt; shortest first, as a pack has them.
        sequences = [(tokens, np.arange(len(tokens)) > 0) for tokens in ids]
        probe = pack(sequences, [0, 2, 1], self.device)
        plain = torch.cat([self._plain(ids[place]) for place in probe.members])  # [n]

        # The packed kernel first, then the mask of transformers, which any attention understands and which is slower.
        for self.packed in (True, False):
            try:
                with torch.no_grad():
                    difference = (self(probe)[0] - plain).abs().max().item()
            except (NotImplementedError, TypeError):
                continue
            # Half precision rounds a log-probability in its third digit; a leak changes the first.
            allowed = 0.3 if torch.bfloat16 in (self.dtype, self.model.dtype) else 1e-3
            if difference < allowed:
                return self.packed
        raise UserError(
            f"{type(self.model).__name__} cannot be trained packed: its log-probabilities change by {difference:.2g} "
            "when sequences are laid end to end; use an attention-only causal language model"
        )

    @torch.no_grad()
    def _plain(self, ids: np.ndarray) -> Tensor:
        """The model's own log-probabilities of ids[1:], one sequence at a time."""
        tokens = torch.from_numpy(ids).to(self.device)
        with _attention(self.model, self.own_attention), self.autocast():
            output = self.model(input_ids=tokens[None], use_cache=False)
        # The last token's logits predict what is not there.
        logits: Tensor = output.logits[0, :-1]  # [tokens - 1, vocabulary]
        every = (logits.float() / self.temperature).log_softmax(-1)
        return every.gather(-1, tokens[1:, None])[:, 0]


@contextmanager
def _attention(model: Any, name: str) -> Iterator[None]:
    """Run `model` with another attention function, and leave it as it was (others may generate with it)."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
