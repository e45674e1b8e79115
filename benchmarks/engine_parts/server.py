"""A vLLM server on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import httpx
import psutil
import torch


@asynccontextmanager
async def served(folder: str, slots: int, max_len: int, flags: Sequence[str] = ()) -> AsyncIterator[tuple[str, int]]:
    """(address, process id) of a server that answers; it and all that it started end with the block."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = f"--host 127.0.0.1 --port {port} --max-model-len {max_len} --max-num-seqs {slots}"
    options += (
        " --dtype float32 --disable-log-stats --logprobs-mode processed_logprobs --distributed-executor-backend uni"
    )
    if not torch.cuda.is_available():
        options += f" --enforce-eager --block-size 32 --no-enable-chunked-prefill --kv-cache-memory-bytes {256 << 20}"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *options.split(), *flags]
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    process = subprocess.Popen(  # noqa: ASYNC220 it lives for the whole block
        command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while not await _healthy(url):
            if process.poll() is not None:
                sys.exit(f"vLLM's server ended with status {process.returncode}")
            await asyncio.sleep(0.3)
        yield url, process.pid
    finally:
        for one in (*psutil.Process(process.pid).children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


async def _healthy(url: str) -> bool:
    try:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{url}/health", timeout=5)).status_code == 200
    except httpx.HTTPError:
        return False
