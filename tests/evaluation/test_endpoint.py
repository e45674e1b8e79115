"""`solostream eval chat:…` against a local server: real environment, real sandbox, native calls in both directions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, call, message, serving

from solostream.agent.engine import EngineError
from solostream.agent.engines import chat_endpoint
from solostream.agent.trajectory_file import read_lines
from solostream.errors import UserError
from solostream.evaluation import players
from solostream.evaluation.evaluate import Progress, evaluate
from solostream.evaluation.options import EvalOptions

PROBLEMS = [(f"What is {a} * {b}?", a * b) for a, b in [(6, 7), (12, 12), (31, 9), (8, 8), (5, 13), (4, 4)]]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(chat_endpoint, "ODD_PAUSE_S", 0.001)
    monkeypatch.setattr(players, "PAUSE_S", 0.001)


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "problems.jsonl"
    rows = [{"id": f"p{i}", "prompt": prompt, "answer": str(answer)} for i, (prompt, answer) in enumerate(PROBLEMS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def calculator(body: Any, n: int = 0) -> Answer:
    """Two parallel calls, then the answer from what the second one printed."""
    messages = body["messages"]
    if messages[-1]["role"] == "tool":
        usage = {"prompt_tokens": 60, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 40}}
        return message(f"It is \\boxed{{{messages[-1]['content']}}}.", usage=usage)
    a, b = re.findall(r"\d+", messages[-1]["content"])
    calls = [call(f"x = {a}", "one"), call(f"print(x * {b})", "two")]
    usage = {"prompt_tokens": 30, "completion_tokens": 20, "completion_tokens_details": {"reasoning_tokens": 8}}
    return message("Let me see.", tool_calls=calls, finish="tool_calls", reasoning_content="hmm", usage=usage)


async def play(tmp_path: Path, data: str, say: Any, **fields: Any) -> tuple[dict[str, Any], Any]:
    report = fields.pop("report", lambda progress: None)
    async with serving(say) as server:
        options = EvalOptions(f"chat:{server.url}#m", data=data, out=tmp_path / "out", **fields)
        return await evaluate(options, report), server


async def test_native_calls_in_both_directions(tmp_path: Path, data: str) -> None:
    summary, server = await play(tmp_path, data, calculator)
    assert summary["metrics"]["avg"]["mean"] == 1.0
    first = next(body for body in server.bodies if len(body["messages"]) == 2)
    assert set(first) == {"model", "messages", "tools"}  # nothing that was not asked for
    assert [tool["function"]["name"] for tool in first["tools"]] == ["python"]
    assert "<tool_call>" not in first["messages"][0]["content"]
    second = next(b["messages"] for b in server.bodies if len(b["messages"]) > 2 and "6 * 7" in str(b))
    assert [m["role"] for m in second] == ["system", "user", "assistant", "tool", "tool"]
    assert second[2]["content"] == "Let me see."
    assert second[2]["reasoning_content"] == "hmm"
    assert [c["id"] for c in second[2]["tool_calls"]] == ["one", "two"]
    assert [json.loads(c["function"]["arguments"])["code"] for c in second[2]["tool_calls"]] == [
        "x = 6",
        "print(x * 7)",
    ]
    assert second[3:] == [
        {"role": "tool", "tool_call_id": "one", "content": "(no output)"},
        {"role": "tool", "tool_call_id": "two", "content": "42"},
    ]


async def test_the_record_counts_what_the_endpoint_counted(tmp_path: Path, data: str) -> None:
    summary, _ = await play(tmp_path, data, calculator, prices=(2.0, 10.0, 0.5))
    played = [line.trajectory for line in read_lines(tmp_path / "out" / "samples.jsonl")]
    assert len(played) == len(PROBLEMS)
    for one in played:
        assert one.unit == "tokens"
        assert [(t.role, t.end - t.start) for t in one.turns] == [
            ("user", 30), ("assistant", 20), ("tool", 10), ("assistant", 9)
        ]  # fmt: skip
        assert (one.token_ids == -1).all()  # lengths are known, tokens are not
        assert not one.action_mask.any()
        assert one.turns[1].reasoning == "hmm"
        assert "hmm" not in one.turns[1].text
        assert one.n_calls == 2
        assert 0 < one.first_call_token < one.turns[1].call_tokens[1] - 30 < 20
    usage = summary["metrics"]["usage"]
    n = len(PROBLEMS)
    assert usage == {
        "requests": 2 * n, "prompt_tokens": 90 * n, "cached_tokens": 40 * n,
        "completion_tokens": 29 * n, "reasoning_tokens": 8 * n,
    }  # fmt: skip
    assert summary["cost"] == pytest.approx(n * (50 * 2.0 + 40 * 0.5 + 29 * 10.0) / 1e6)
    assert summary["metrics"]["unit"] == "tokens"
    assert summary["metrics"]["behaviour"]["response_length"]["mean"] == 39


async def test_an_endpoint_that_counts_nothing_is_measured_in_bytes(tmp_path: Path, data: str) -> None:
    summary, _ = await play(tmp_path, data, lambda b, n: message("Hé \\boxed{42}", usage=None), limit=1)
    assert summary["metrics"]["unit"] == "bytes"
    assert summary["metrics"]["usage"] is None
    assert summary["metrics"]["behaviour"]["response_length"]["mean"] == len("Hé \\boxed{42}".encode())


async def test_a_call_that_cannot_be_read_and_one_of_no_tool_are_answered(tmp_path: Path, data: str) -> None:
    def say(body: Any, n: int) -> Answer:
        told = [m["content"] for m in body["messages"] if m["role"] == "tool"]
        if told:
            assert "could not be read" in told[0]
            assert "no such tool" in told[1]
            assert "'code' is missing" in told[2]
            assert told[3] == "'</tool_call>'"
            return message("\\boxed{42}")
        calls = [
            call("", "a", arguments='{"code": "1'),
            call("1", "b", name="browser"),
            call("", "c", arguments="{}"),
            call("'</tool_call>'", "d"),  # the end of a call within one
        ]
        return message(None, tool_calls=calls)

    summary, _ = await play(tmp_path, data, say, limit=1)
    assert summary["metrics"]["avg"]["mean"] == 1.0


async def test_calls_beyond_the_limit_are_answered_too(tmp_path: Path, data: str) -> None:
    def say(body: Any, n: int) -> Answer:
        told = [m for m in body["messages"] if m["role"] == "tool"]
        if not told:
            return message(None, tool_calls=[call(f"print({i})", f"c{i}") for i in range(5)])
        assert [m["tool_call_id"] for m in told] == [f"c{i}" for i in range(5)]
        assert [m["content"].split("\n")[0] for m in told] == ["0", "1", *["Error: this call was not executed"] * 3]
        return message("\\boxed{42}")

    summary, _ = await play(tmp_path, data, say, limit=1, env_options='{"max_calls_per_turn": 2}')
    assert summary["metrics"]["avg"]["mean"] == 1.0


async def test_a_text_syntax_needs_no_native_calls(tmp_path: Path, data: str) -> None:
    """What the model dreams up behind its first call is neither read nor sent back."""

    def say(body: Any, n: int) -> Answer:
        assert "tools" not in body
        last = body["messages"][-1]
        if len(body["messages"]) == 4:
            assert body["messages"][2]["content"] == "So:\n```python\n6 * 7\n```\n"
            return message(f"\\boxed{{{last['content']}}}")
        return message("So:\n```python\n6 * 7\n```\n41, so \\boxed{41}")

    summary, _ = await play(tmp_path, data, say, limit=1, env_options='{"syntax": "fence"}')
    assert summary["metrics"]["avg"]["mean"] == 1.0


async def test_calls_written_as_text_by_a_server_that_parses_none(tmp_path: Path, data: str) -> None:
    def say(body: Any, n: int) -> Answer:
        if len(body["messages"]) > 2:
            assert body["messages"][-1] == {"role": "user", "content": "42"}
            return message("\\boxed{42}")
        return message('<tool_call>\n{"name": "python", "arguments": {"code": "6 * 7"}}\n</tool_call>')

    summary, _ = await play(tmp_path, data, say, limit=1)
    assert summary["metrics"]["avg"]["mean"] == 1.0


async def test_without_tools_none_are_sent(tmp_path: Path, data: str) -> None:
    summary, server = await play(tmp_path, data, lambda b, n: message("\\boxed{42}"), tools=False)
    assert summary["metrics"]["avg"]["mean"] == pytest.approx(1 / 6)
    assert all("tools" not in body for body in server.bodies)


async def test_what_is_asked_for_is_sent(tmp_path: Path, data: str) -> None:
    fields = {"temperature": 0.3, "turn_tokens": 77, "seed": 3, "extra_body": '{"reasoning_effort": "low"}'}
    _, server = await play(tmp_path, data, calculator, k=2, preset="sampled", **fields)
    for body in server.bodies:
        sent = {name: body[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "reasoning_effort")}
        assert list(sent.values()) == [0.3, 0.95, 20, 77, "low"]
    assert len({body["seed"] for body in server.bodies}) == 2 * len(PROBLEMS)


async def test_a_budget_of_an_episode(tmp_path: Path, data: str) -> None:
    """After the first turn 50 tokens are used: of 50 none are left, of 55 five are."""
    summary, _ = await play(tmp_path, data, calculator, max_tokens=50)
    assert summary["metrics"]["endings"] == {"token_limit": 6}
    _, server = await play(tmp_path / "more", data, calculator, max_tokens=55, turn_tokens=40)
    assert sorted({(len(body["messages"]), body["max_tokens"]) for body in server.bodies}) == [(2, 40), (5, 5)]


async def test_only_the_episode_that_overflows_ends_as_token_limit(tmp_path: Path, data: str) -> None:
    def say(body: Any, n: int) -> Answer:
        if "12 * 12" in str(body) and len(body["messages"]) > 2:
            return Answer({"error": {"message": "This model's maximum context length is 60 tokens."}}, 400)
        return calculator(body)

    summary, server = await play(tmp_path, data, say)
    assert summary["complete"]
    assert summary["metrics"]["endings"] == {"answered": 5, "token_limit": 1}
    assert summary["metrics"]["avg"]["mean"] == pytest.approx(5 / 6)
    asked = len(server.bodies)
    assert asked == 12  # the full one was not asked again


async def test_one_sample_that_is_never_answered_does_not_end_the_others(tmp_path: Path, data: str) -> None:
    refused = {"error": {"message": "the prompt was flagged", "code": "content_policy"}}
    for answer in (Answer(refused, 400), Answer({"choices": []}), Answer("no", 500), Answer(refused)):
        folder = tmp_path / f"{answer.status}-{len(str(answer.body))}"
        summary, _ = await play(folder, data, lambda b, n, a=answer: a if "12 * 12" in str(b) else calculator(b))
        assert (summary["infra"], summary["complete"], summary["metrics"]["samples"]) == (1, False, 5)
        assert summary["metrics"]["avg"]["mean"] == 1.0  # no reward of 0 for what was no answer
        assert summary["trouble"]


async def test_a_request_that_is_always_refused_ends_it_with_the_reason(tmp_path: Path, data: str) -> None:
    answer = Answer({"error": {"message": "Unrecognized request argument: top_k"}}, 400)
    with pytest.raises((UserError, EngineError), match=r"refuses the request \(400\): Unrecognized.*top_k"):
        await play(tmp_path, data, lambda b, n: answer, k=3)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"refuses the key \(401\).*--api-key-env"):
        await play(tmp_path, data, lambda b, n: Answer({"error": {"message": "bad key"}}, 401))


async def test_an_endpoint_that_dies_keeps_what_was_finished(tmp_path: Path, data: str) -> None:
    with pytest.raises(EngineError, match="answered"):
        await play(tmp_path, data, lambda b, n: calculator(b) if n < 10 else Answer("down", 500), k=3, concurrency=2)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["metrics"]["samples"] >= 4  # of ten replies two or none may have been first turns of unfinished ones
    assert summary["metrics"]["avg"]["mean"] == 1.0


async def test_progress_says_that_it_waits(tmp_path: Path, data: str) -> None:
    waits: list[int] = []

    def report(progress: Progress) -> None:
        waits.append(progress.waiting)

    def say(body: Any, n: int) -> Answer:
        return Answer({}, 429, {"Retry-After": "0.05"}) if n % 3 == 1 else calculator(body)

    summary, _ = await play(tmp_path, data, say, report=report, k=4)
    assert summary["metrics"]["samples"] == 24
    assert summary["metrics"]["avg"]["mean"] == 1.0
    assert max(waits) > 0
    assert waits[-1] == 0


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": ""}]])
async def test_an_empty_turn_is_no_reward(tmp_path: Path, data: str, content: Any) -> None:
    summary, _ = await play(tmp_path, data, lambda b, n: message(content))
    assert summary["metrics"]["avg"]["mean"] == 0.0
    assert summary["metrics"]["void_ratio"] == 1.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prices": (1.0,)}, "--prices takes two numbers"),
        ({"prices": (1.0, -2.0)}, "--prices"),
        ({"extra_body": "low"}, "--extra-body is not JSON"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 0.0, "k": 2}, "use -k 1"),
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        ({"max_tokens": 0}, "--max-tokens"),
    ],
)
async def test_bad_options_are_one_line(tmp_path: Path, data: str, fields: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        await play(tmp_path, data, calculator, **fields)


async def test_the_command_line(tmp_path: Path, data: str) -> None:
    """In a process of its own: numbers with their unit, the cost; a second call plays nothing."""
    import asyncio

    async with serving(calculator) as server:
        command = [sys.executable, "-m", "solostream", "eval", f"chat:{server.url}#org/tiny-model", "--data", data]
        command += ["--prices", "2", "10", "--api-key-env", "K"]
        where: dict[str, Any] = {"cwd": tmp_path, "env": {"PYTHONPATH": str(Path(__file__).parents[2]), "K": "sesame"}}
        for _ in range(2):
            child = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **where
            )
            out, errors = (text.decode() for text in await child.communicate())
            assert child.returncode == 0, errors
            assert "avg@1              100.0 %" in out
            assert "response, tokens" in out
            assert "usage, tokens     540 prompt (240 cached), 174 completion (48 reasoning), 12 requests" in out
            assert "cost              0.0028 at the given prices" in out
            assert (tmp_path / "evals" / "tiny-model-problems" / "report.html").exists()
        assert len(server.bodies) == 12
        assert set(server.keys) == {"Bearer sesame"}


async def test_examples_go_as_native_calls_or_as_text(tmp_path: Path, data: str) -> None:
    shown = json.dumps({"few_shot": 2})
    summary, server = await play(tmp_path / "native", data, calculator, env_options=shown)
    assert summary["metrics"]["avg"]["mean"] == 1.0
    first = min(server.bodies, key=lambda body: len(body["messages"]))["messages"]
    roles = ["user", "assistant", "tool", "assistant"]
    assert [m["role"] for m in first] == ["system", *roles, *roles, "user"]
    (made,) = first[2]["tool_calls"]
    assert made["function"]["name"] == "python"
    assert json.loads(made["function"]["arguments"]) == {"code": "print(48 * 37)"}
    assert (first[3]["tool_call_id"], first[3]["content"]) == (made["id"], "1776")
    assert first[4] == {"role": "assistant", "content": "The answer is \\boxed{1776}."}

    def fenced(body: Any, n: int) -> Answer:
        return message(f"\\boxed{{{eval(re.search('What is (.*)[?]', body['messages'][-1]['content'])[1])}}}")

    shown = json.dumps({"few_shot": 1, "syntax": "fence"})
    summary, server = await play(tmp_path / "text", data, fenced, env_options=shown)
    assert summary["metrics"]["avg"]["mean"] == 1.0
    first = server.bodies[0]["messages"]
    assert [m["role"] for m in first] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert first[2]["content"] == "```python\nprint(48 * 37)\n```\n"
    assert first[3]["content"] == "1776"


async def test_another_file_of_examples_is_another_evaluation(tmp_path: Path, data: str) -> None:
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"prompt": "1 + 1?", "completion": "\\\\boxed{2}"}\n')
    shown = json.dumps({"few_shot": str(examples)})
    await play(tmp_path, data, calculator, env_options=shown)
    examples.write_text('{"prompt": "1 + 2?", "completion": "\\\\boxed{3}"}\n')
    with pytest.raises(UserError, match="few_shot was"):
        await play(tmp_path, data, calculator, env_options=shown)


async def test_a_fold_takes_the_earlier_turns_from_the_messages(tmp_path: Path, data: str) -> None:
    """The endpoint is shown the question, the turn that it kept and its summary; the record has a segment for it."""

    def say(body: Any, n: int) -> Answer:
        arguments = ['{"code": "print(6)"}', '{"code": "print(7)"}', '{"summary": "6 and 7 were printed", "keep": 1}']
        prompt = [30, 60, 90, 95][n]
        counts = {"prompt_tokens": prompt, "completion_tokens": 20, "total_tokens": prompt + 20}
        if n == 3:
            return message("\\boxed{42}", usage=counts)
        made = call("", f"c{n}", "fold" if n == 2 else "python", arguments[n])
        return message(None, tool_calls=[made], finish="tool_calls", usage=counts)

    options = json.dumps({"tools": ["python", "fold"], "syntax": "hermes"})
    summary, server = await play(tmp_path, data, say, limit=1, env_options=options)
    assert summary["metrics"]["avg"]["mean"] == 1.0
    roles = [message["role"] for message in server.bodies[3]["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool"]
    seen = server.bodies[3]["messages"]
    assert [m["tool_calls"][0]["id"] for m in seen if m["role"] == "assistant"] == ["c1", "c2"]
    assert seen[-1]["content"].startswith("Folded: you now see the question, your last turn before this one")
    one = next(line.trajectory for line in read_lines(tmp_path / "out" / "samples.jsonl"))
    # 30 + 20, 10 + 20, 10 + 20; then the opening, the turn that stays and the fold (30 + 20 + 10 + 20) and 15 more.
    assert [(turn.role, turn.end - turn.start) for turn in one.turns] == [
        ("user", 30), ("assistant", 20), ("tool", 10), ("assistant", 20), ("tool", 10), ("assistant", 20),
        ("context", 80), ("tool", 15), ("assistant", 20),
    ]  # fmt: skip
    assert one.segments == ((0, 110), (110, 225))
    assert one.response_length == 225 - 30 - 80


async def test_a_fold_is_measured_in_bytes_where_nothing_is_counted(tmp_path: Path, data: str) -> None:
    def say(body: Any, n: int) -> Answer:
        text = ["print(6)", "fold", "answer"][n]
        if n == 2:
            return message("\\boxed{42}", usage=None)
        arguments = '{"code": "print(6)"}' if n == 0 else '{"summary": "6"}'
        made = call("", text, "fold" if n else "python", arguments)
        return message(None, tool_calls=[made], finish="tool_calls", usage=None)

    options = json.dumps({"tools": ["python", "fold"], "syntax": "hermes"})
    await play(tmp_path, data, say, limit=1, env_options=options)
    one = next(line.trajectory for line in read_lines(tmp_path / "out" / "samples.jsonl"))
    assert one.unit == "bytes"
    sizes = {turn.role: turn.end - turn.start for turn in one.turns}
    user, fold, told = one.turns[0], one.turns[3], one.turns[5]
    assert sizes["context"] == (user.end - user.start) + (fold.end - fold.start)
    assert told.end - told.start == len(told.text.encode())
    assert one.segments == ((0, fold.end), (fold.end, len(one)))
