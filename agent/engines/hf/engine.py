"""`HFEngine`: sequences join and leave the batch as they come and finish; an episode keeps its KV cache across turns.

The step loop runs on the event loop between the callbacks of the episodes (small models) or in one worker thread (large
ones, GPUs); either way sandboxes run their code while the model decodes the others. A token is chosen by its request's
seed and position only, so neighbours change it no more than floating point does: matrix products of another batch size
round differently. `reproducible=True` keeps every product's shape fixed and removes that too, at the cost of speed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from solostream.agent.engine import EngineError, Generation, Sampling, Weights, check_prompt
from solostream.agent.engines.hf.cache import KEY_BLOCK, SlotCache, feed
from solostream.agent.engines.hf.device import told, with_fewer
from solostream.agent.engines.hf.forward import forward_of, load_state
from solostream.agent.engines.hf.graphs import GraphedForward, rounded
from solostream.agent.engines.hf.lean import SMALL
from solostream.agent.engines.hf.prefill import FEED_TOKENS, passes
from solostream.agent.engines.hf.sampling import sample, uniforms
from solostream.agent.engines.live_weights import LiveWeights, version_a_token
from solostream.agent.engines.stops import StopTable, eos_ids
from solostream.errors import UserError

PATIENCE_S = 0.005  # between two looks at weights that are being written
YIELDS = 8  # turns of the event loop after a step: a tool's answer takes several to reach its episode


@dataclass(slots=True, eq=False)
class _Request:
    prompt: np.ndarray
    sampling: Sampling
    seed: int
    future: asyncio.Future[Generation]
    slot: int = -1
    versions: list[tuple[int, int]] = field(default_factory=list)  # (first ledger position, version)


class HFEngine:
    """An `Engine` over a model of transformers, in its dtype and on its device.

    slots: sequences that decode at the same time, and episodes whose cache is kept; more requests wait, and the idle
    episode that spoke longest ago makes room. max_len: tokens of a ledger (default: the model's context, at most
    32,768). The engine owns `model`, unless that is the `module` of the `LiveWeights` which `load_weights` is given:
    then it samples from the parameters of a learner in this process, and copies none. Requests without a seed draw one
    from `seed`. `reproducible` holds while there are at least as many slots as episodes. graphs: on a GPU, Qwen3, Qwen2
    and Llama decode by CUDA graphs. Raises UserError for a model with other than full attention.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        slots: int = 256,
        max_len: int | None = None,
        seed: int = 0,
        version: int = 0,
        reproducible: bool = False,
        graphs: bool = True,
    ) -> None:
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 32_768
        if slots < 1 or (max_len or 1) < 1:
            raise UserError(f"slots and max_len must be positive, not {slots} and {max_len}")
        self.version = version
        self.tokenizer = tokenizer
        self.max_len = min(max_len or 32_768, context)
        self._forward = forward_of(model, graphs=graphs)
        self._reproducible, self._graphs = reproducible, graphs
        vocabulary = model.get_output_embeddings().weight.shape[0]
        if len(tokenizer) > vocabulary:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}: use the model's own tokenizer"
            )
        self._stops = StopTable(tokenizer, vocabulary)
        self._stop_rows: dict[tuple[tuple[str, ...], tuple[int, ...]], int] = {}
        self._stop_masks = np.zeros((0, vocabulary), bool)
        self._eos = eos_ids(model, tokenizer)

        columns = self.max_len + 1 if reproducible else min(self.max_len + 1, 16 * KEY_BLOCK)
        self._cache = SlotCache(slots, columns)
        self._ids = np.zeros((slots, self.max_len + 1), np.int64)
        self._logprobs = np.zeros((slots, self.max_len + 1), np.float32)
        self._cached = np.zeros(slots, np.int64)  # tokens whose keys are in the cache
        self._total = np.zeros(slots, np.int64)  # tokens known
        self._start = np.zeros(slots, np.int64)  # where the turn began
        self._limit = np.zeros(slots, np.int64)
        self._seeds = np.zeros(slots, np.uint64)
        self._temperature = np.ones(slots, np.float32)
        self._top_k = np.zeros(slots, np.int64)
        self._top_p = np.ones(slots, np.float32)
        self._stop_row = np.zeros(slots, np.int64)
        self._active = np.zeros(slots, bool)
        self._requests: list[_Request | None] = [None] * slots

        self._waiting: deque[_Request] = deque()
        self._free = list(range(slots))[::-1]
        self._idle: OrderedDict[str, int] = OrderedDict()  # episode -> slot, least recently used first
        self._seeder = np.random.SeedSequence(seed)
        self._pending_weights: list[tuple[Weights, int, asyncio.Future[None]]] = []
        self._live: LiveWeights | None = None  # of the learner that changes what `_forward` reads
        self._driver: asyncio.Task[None] | None = None
        inline = self._forward.device.type == "cpu" and model.num_parameters() <= SMALL
        self._thread = None if inline else ThreadPoolExecutor(1, "hf-engine")
        self._broken: str | None = None

    @property
    def dtype(self) -> str:
        """Of the weights."""
        return str(self._forward.model.dtype).removeprefix("torch.")

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """See `Engine.generate`. Cancelling the task frees the slot. Raises UserError when the prompt does not fit."""
        check_prompt(prompt_ids, self.max_len)
        if sampling.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
        seed = sampling.seed if sampling.seed is not None else int(self._seeder.spawn(1)[0].generate_state(1)[0])
        request = _Request(np.asarray(prompt_ids, np.int64), sampling, seed, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._drive()
        try:
            return await request.future
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
            request.future.cancel()  # the driver frees its slot before the next step
            raise

    async def release(self, key: str) -> None:
        """The episode's cache slot becomes free; unknown keys are passed over."""
        slot = self._idle.pop(key, None)
        if slot is not None:
            self._free.append(slot)

    async def load_weights(self, weights: Weights, version: int) -> None:
        """See `Engine.load_weights`. Kept caches are computed anew. Raises UserError if the weights do not fit."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending_weights.append((weights, version, done))
        self._drive()
        await done

    async def close(self) -> None:
        """End the driver; requests that still wait raise EngineError."""
        self._broken = self._broken or "the engine is closed"
        if self._driver is not None and not self._driver.done():
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        self._fail(EngineError(self._broken))
        if self._thread is not None:
            self._thread.shutdown()
        self._cache = SlotCache(1, 1)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _drive(self) -> None:
        """See that a driver runs on this event loop; it ends when there is nothing to do."""
        if self._broken:
            self._fail(EngineError(self._broken))
        elif self._driver is None or self._driver.done():
            self._driver = asyncio.get_running_loop().create_task(self._work())
        elif self._driver.get_loop() is not asyncio.get_running_loop():
            self._waiting.pop() if self._waiting else None
            raise UserError("one HFEngine was asked from two event loops at the same time: use one engine a loop")

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._install_weights()
                self._drop_cancelled()
                self._admit()
                if not self._active.any():
                    if not self._waiting and not self._pending_weights:
                        return
                elif self._live is not None and self._live.moved and self._forward.in_place:
                    await asyncio.sleep(PATIENCE_S)
                elif self._thread is None:
                    self._finish(self._step_if_still())
                else:
                    self._finish(await loop.run_in_executor(self._thread, self._step_if_still))
                for _ in range(YIELDS):
                    await asyncio.sleep(0)
        except Exception as error:  # whatever broke, those who wait must hear of it
            said = told(error, with_fewer(len(self._active))) or f"{type(error).__name__}: {error}"
            self._broken = f"the hf engine failed: {said}"
            self._fail(EngineError(self._broken), error)

    def _fail(self, error: EngineError, cause: Exception | None = None) -> None:
        error.__cause__ = cause
        waiting = [*self._waiting, *(r for r in self._requests if r is not None)]
        for future in [r.future for r in waiting] + [done for _, _, done in self._pending_weights]:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()
        self._pending_weights.clear()
        self._requests = [None] * len(self._requests)

    def _install_weights(self) -> None:
        for weights, version, done in self._pending_weights:
            try:
                self._take(weights)
            except UserError as error:
                done.set_exception(error)
                continue
            self.version = version
            self._cached[:] = 0
            for request in self._requests:
                if request is not None:
                    request.versions.append((int(self._total[request.slot]), version))
            done.set_result(None)
        self._pending_weights.clear()

    def _take(self, weights: Weights) -> None:
        """Sample from `weights` from now on. Raises UserError where they do not fit."""
        if isinstance(weights, LiveWeights) and weights.within(self._forward.model):
            weights.settle()
            with weights.reading():
                if weights is self._live:
                    self._forward.refresh()
                else:  # another learner: its model may have adapters, or none any more
                    del self._forward  # with its fused copies, before there are others
                    self._forward, self._live = forward_of(weights.module(), graphs=self._graphs), weights
            return
        load_state(self._forward.model, weights)
        self._live = None
        self._forward.refresh()

    def _drop_cancelled(self) -> None:
        for request in self._requests:
            if request is not None and request.future.cancelled():
                self._vacate(request)

    def _vacate(self, request: _Request) -> None:
        """The slot becomes idle under its episode's key, or free."""
        slot, key = request.slot, request.sampling.key
        self._active[slot] = False
        self._requests[slot] = None
        if key is not None and key not in self._idle:
            self._idle[key] = slot
        else:
            self._free.append(slot)

    def _admit(self) -> None:
        """Move waiting requests into slots, as long as there are any."""
        while self._waiting:
            request = self._waiting[0]
            key = request.sampling.key
            if key is not None and key in self._idle:
                slot = self._idle.pop(key)
            elif self._free or self._idle:
                slot = self._free.pop() if self._free else self._idle.popitem(last=False)[1]
                self._total[slot] = self._cached[slot] = 0
                self._inherit(slot, request.sampling.parent)
            else:
                return
            self._waiting.popleft()
            self._place(request, slot)

    def _inherit(self, slot: int, parent: str | None) -> None:
        """A branch begins as its parent: copy what is cached. Not where that could change the last bits of a sum."""
        busy = (i for i, one in enumerate(self._requests) if one is not None and one.sampling.key == parent)
        source = self._idle.get(parent or "", next(busy, None))
        if parent is not None and source is not None and not self._reproducible:
            self._cached[slot] = n = int(self._cached[source])
            self._ids[slot, :n] = self._ids[source, :n]
            self._cache.copy(source, slot, n)

    def _place(self, request: _Request, slot: int) -> None:
        prompt, sampling = request.prompt, request.sampling
        known = min(len(prompt) - 1, int(self._cached[slot]))  # at least one token is fed, for its logits
        different = np.flatnonzero(prompt[:known] != self._ids[slot, :known])
        self._cached[slot] = different[0] if len(different) else known
        self._ids[slot, : len(prompt)] = prompt
        self._total[slot] = self._start[slot] = len(prompt)
        self._limit[slot] = min(len(prompt) + sampling.max_tokens, self.max_len)
        self._seeds[slot] = np.uint64(request.seed & 0xFFFFFFFFFFFFFFFF)
        self._temperature[slot] = sampling.temperature
        self._top_k[slot], self._top_p[slot] = sampling.top_k, sampling.top_p
        self._stop_row[slot] = self._stop_index(sampling)
        self._active[slot] = True
        request.slot = slot
        request.versions = [(len(prompt), self.version)]
        self._requests[slot] = request

    def _stop_index(self, sampling: Sampling) -> int:
        wanted = (sampling.stop, (*sampling.stop_token_ids, *self._eos))
        if wanted not in self._stop_rows:
            self._stop_rows[wanted] = len(self._stop_masks)
            self._stop_masks = np.vstack([self._stop_masks, self._stops.mask(*wanted)])
        return self._stop_rows[wanted]

    # -- one step ------------------------------------------------------------------------------------------------------

    def _step_if_still(self) -> list[tuple[int, bool]]:
        """A step, unless the weights have moved since the last `load_weights`."""
        if self._live is None or not self._forward.in_place:
            return self._step()
        with self._live.reading() as still:
            return self._step() if still else []

    def _step(self) -> list[tuple[int, bool]]:
        """Give every active row its next token. Returns the rows that ended, and whether by a stop."""
        ended: list[tuple[int, bool]] = []
        rows = np.flatnonzero(self._active)
        behind = self._total[rows] - self._cached[rows]
        late = rows[behind > 1]
        for group in late[:, None] if self._reproducible else passes(late, behind[behind > 1]):
            ended += self._advance(group)
        over = {slot for slot, _ in ended}
        rows = np.asarray([r for r in rows if r not in over] if over else rows, np.int64)
        rows = rows[self._total[rows] - self._cached[rows] == 1]
        if len(rows):
            ended += self._advance(rows)
        return ended

    def _advance(self, rows: np.ndarray) -> list[tuple[int, bool]]:
        """Feed what `rows` (sorted) have not yet fed, then sample where that was everything."""
        end = np.minimum(self._total[rows], self._cached[rows] + FEED_TOKENS)
        self._cache.grow(int(end.max()))
        logits = self._logits(rows, end)
        self._cached[rows] = end
        whole = end == self._total[rows]
        if not whole.all():
            rows, logits = rows[whole], logits[torch.from_numpy(whole)]
        return self._choose(rows, logits) if len(rows) else []

    def _logits(self, rows: np.ndarray, end: np.ndarray) -> torch.Tensor:
        """(rows, vocabulary). Few idle slots among active ones are computed too: cheaper than a copy of the cache."""
        decode = bool((end - self._cached[rows] == 1).all())
        graphed = decode and isinstance(self._forward, GraphedForward)
        span = len(self._active) if decode and self._reproducible else int(rows[-1]) + 1
        n_keys = min(-(-int(end.max()) // KEY_BLOCK) * KEY_BLOCK, self._cache.columns - 1)
        n_keys = self._cache.columns - 1 if self._reproducible else n_keys
        if graphed:
            span, n_keys = rounded(span, n_keys, self._cache)
        device = self._forward.device
        fixed = graphed or (decode and self._reproducible)
        if len(rows) == span or not (fixed or (decode and 4 * len(rows) >= 3 * span)):
            batch = feed(self._ids, self._cached[rows], end, rows, n_keys, self._cache.bin_column, device, fixed)
            return self._forward(batch, self._cache)
        starts, ends = np.zeros((2, span), np.int64)
        starts[rows], ends[rows] = self._cached[rows], end
        batch = feed(self._ids, starts, ends, np.arange(span), n_keys, self._cache.bin_column, device, fixed)
        return self._forward(batch, self._cache)[torch.from_numpy(rows).to(device)]

    def _choose(self, rows: np.ndarray, logits: torch.Tensor) -> list[tuple[int, bool]]:
        position = self._total[rows]
        uniform = uniforms(self._seeds[rows], position.astype(np.uint64))
        columns = (uniform, self._temperature[rows], self._top_k[rows], self._top_p[rows])
        with torch.inference_mode():
            chosen, logprobs = sample(logits, *(torch.from_numpy(c).to(logits.device) for c in columns))
        tokens = chosen.cpu().numpy()
        self._ids[rows, position] = tokens
        self._logprobs[rows, position] = logprobs.cpu().numpy()
        self._total[rows] = position + 1
        hit = self._stop_masks[self._stop_row[rows], tokens]
        full = position + 1 >= self._limit[rows]
        ended = []
        for i in np.flatnonzero(hit | full):
            stopped = bool(hit[i]) and self._stopped(int(rows[i]))
            if stopped or full[i]:
                ended.append((int(rows[i]), stopped))
        return ended

    def _stopped(self, slot: int) -> bool:
        request = self._requests[slot]
        assert request is not None
        sampled = self._ids[slot, self._start[slot] : self._total[slot]].tolist()
        last = sampled[-1]
        return (
            last in request.sampling.stop_token_ids
            or last in self._eos
            or self._stops.ends(sampled, request.sampling.stop)
        )

    def _finish(self, ended: list[tuple[int, bool]]) -> None:
        for slot, stopped in ended:
            request = self._requests[slot]
            if request is None:
                continue
            span = slice(int(self._start[slot]), int(self._total[slot]))
            generation = Generation(
                self._ids[slot, span].tolist(),
                self._logprobs[slot, span].tolist(),
                version_a_token(request.versions, span.start, span.stop),
                "stop" if stopped else "length",
            )
            self._vacate(request)
            if not request.future.done():
                request.future.set_result(generation)
