"""`eval chat:…`: equal to `eval vllm:` on the same model, and nothing lost behind a rate limit.

`python benchmarks/first_hour_parts/endpoint.py` prints both. `--model PATH --data FILE` takes a model of one's own and
its problems; else a tiny one that calls its tool is made on the spot.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
SAME = {"temperature": 1.0, "top_p": 1.0}


def rate_limited(requests: int = 1000, refused: float = 1 / 3) -> dict[str, Any]:
    """Episodes of two requests against a server that answers 429 to a random share of all requests."""
    return asyncio.run(_rate_limited(requests, refused))


def equals_vllm(
    model: Path | None = None, data: Path | None = None, k: int = 8, turn_tokens: int | None = None
) -> dict[str, Any]:
    """avg@k of the same model in process and behind vLLM's OpenAI server, and the paired interval of the difference."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if model is None:
            from first_hour_parts import tool_model

            model, data = tool_model.build(folder / "model"), tool_model.problems(folder / "problems.jsonl")
        assert data is not None
        return asyncio.run(_equals_vllm(folder, model, data, k, turn_tokens))


async def _rate_limited(requests: int, refused: float) -> dict[str, Any]:
    from solostream.evaluation.evaluate import evaluate
    from solostream.evaluation.options import EvalOptions

    asked = {"all": 0, "answered": 0}
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "problems.jsonl"
        rows = [{"prompt": f"What is {i} * {i + 7}?", "answer": str(i * (i + 7))} for i in range(3, 3 + requests // 2)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        start = time.perf_counter()
        async with _limiting_server(refused, asked) as url:
            summary = await evaluate(
                EvalOptions(f"chat:{url}#m", data=str(data), out=Path(place) / "out", concurrency=32)
            )
    return {
        "requests": asked["all"],
        "answered": asked["answered"],
        "samples": summary["metrics"]["samples"],
        "expected": len(rows),
        "solved": summary["metrics"]["avg"]["mean"],
        "lost": len(rows) - summary["metrics"]["samples"] + summary["infra"],
        "wall_s": round(time.perf_counter() - start, 1),
    }


@asynccontextmanager
async def _limiting_server(refused: float, asked: dict[str, int]) -> AsyncIterator[str]:
    """Calls the tool, then repeats what it printed; `refused` of all requests get a 429, half with a Retry-After."""
    from aiohttp import web

    rng = random.Random(0)

    async def completions(request: web.Request) -> web.Response:
        asked["all"] += 1
        if rng.random() < refused:
            headers = {"Retry-After": "0.1"} if rng.random() < 0.5 else {}
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers=headers)
        asked["answered"] += 1
        messages = (await request.json())["messages"]
        if messages[-1]["role"] == "tool":
            reply: dict[str, Any] = {"content": f"\\boxed{{{messages[-1]['content']}}}"}
        else:
            a, b = re.findall(r"\d+", messages[-1]["content"])
            function = {"name": "python", "arguments": json.dumps({"code": f"{a} * {b}"})}
            reply = {"content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]}
        choice = {"index": 0, "message": {"role": "assistant", **reply}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 30, "completion_tokens": 12}
        return web.json_response({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def _equals_vllm(folder: Path, model: Path, data: Path, k: int, turn_tokens: int | None) -> dict[str, Any]:
    from engine_parts.server import served

    from solostream.envs.rewards.grading import equivalent
    from solostream.evaluation.compare import compare
    from solostream.evaluation.evaluate import evaluate
    from solostream.evaluation.options import EvalOptions

    # The same words in both: nothing in the prompt says how to call, the chat template does, or the server.
    common: dict[str, Any] = {"data": str(data), "k": k, "concurrency": 16, "max_tokens": 1024, **SAME}
    common["turn_tokens"] = turn_tokens
    hermes = json.dumps({"syntax": "hermes", "parallel_calls": True, "system_prompt": ""})
    inside = EvalOptions(f"vllm:{model}", out=folder / "vllm", env_options=hermes, top_k=0, seed=1, **common)
    one = await evaluate(inside)
    async with served(str(model), 16, 1024, FLAGS) as (url, _):
        native = json.dumps({"system_prompt": ""})
        spec = f"chat:{url}/v1#{model}"
        other = await evaluate(EvalOptions(spec, out=folder / "chat", env_options=native, seed=2, **common))
    found = compare(folder / "vllm", folder / "chat", same=equivalent)
    pick = lambda summary: {
        "avg": summary["metrics"]["avg"],
        "code_ratio": summary["metrics"]["behaviour"]["code_ratio"],
        "response_length": summary["metrics"]["behaviour"]["response_length"]["mean"],
        "samples": summary["metrics"]["samples"],
    }
    return {
        "vllm": pick(one),
        "chat": pick(other),
        "difference": found.difference,
        "within": found.difference["low"] <= 0 <= found.difference["high"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a model folder with a chat template that shows tools")
    parser.add_argument("--data", type=Path, help="its problems")
    parser.add_argument("-k", type=int, default=8)
    parser.add_argument("--turn-tokens", type=int, help="of one turn, for a model that does not stop by itself")
    parser.add_argument("--only", choices=("rate", "vllm"))
    options = parser.parse_args()
    held = True
    if options.only != "vllm":
        kept = rate_limited()
        held = kept["lost"] == 0
        print("429 one time in three:", json.dumps(kept))
    if options.only != "rate":
        found = equals_vllm(options.model, options.data, options.k, options.turn_tokens)
        held = held and found["within"]
        print("eval of vLLM's server against eval vllm:", json.dumps(found))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
