"""The client of chat endpoints against a local server that answers in every odd way."""

from __future__ import annotations

import asyncio
import json
import math
import random
from email.utils import formatdate
from typing import Any

import pytest
from chat_server import Answer, call, message, serving

from solostream.agent.chat_reply import ContextOverflow, NativeCall, Parameters, Refused, read_reply
from solostream.agent.engine import EngineError, Sampling
from solostream.agent.engines import chat_endpoint
from solostream.agent.engines.chat_endpoint import ChatEndpoint
from solostream.agent.trajectory import Usage
from solostream.errors import UserError

ASK = [{"role": "user", "content": "What is 6 * 7?"}]
TOOL = {"type": "function", "function": {"name": "python", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tries, without the pauses of a real server."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(chat_endpoint, "ODD_PAUSE_S", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


async def ask(say: Any, *, key: str | None = None, tools: Any = (), **parameters: Any) -> tuple[Any, list[Any]]:
    """(reply or exception, the requests' bodies)."""
    async with serving(say) as server:
        endpoint = ChatEndpoint(f"{server.url}#m", key=key)
        try:
            found: Any = await endpoint.reply(ASK, tools, Parameters(**parameters))
        except Exception as error:
            found = error
        finally:
            await endpoint.close()
        return found, server.bodies


async def test_only_what_is_set_is_sent() -> None:
    _, bodies = await ask(lambda body, n: message("hi"))
    assert bodies == [{"model": "m", "messages": ASK}]
    settings = {"temperature": 0.0, "top_p": 0.9, "top_k": 7, "max_tokens": 33, "seed": 5}
    _, bodies = await ask(lambda body, n: message("hi"), tools=[TOOL], extra={"min_p": 0.1}, **settings)
    assert bodies == [{"model": "m", "messages": ASK, "tools": [TOOL], "min_p": 0.1, **settings}]


async def test_a_server_that_renamed_the_limit_gets_the_other_name() -> None:
    def say(body: Any, n: int) -> Answer:
        if "max_tokens" in body:
            text = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return Answer({"error": {"message": text, "code": "unsupported_parameter"}}, 400)
        return message("hi")

    found, bodies = await ask(say, max_tokens=9)
    assert found.text == "hi"
    assert [set(body) & {"max_tokens", "max_completion_tokens"} for body in bodies] == [
        {"max_tokens"}, {"max_completion_tokens"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "text", "reasoning"),
    [
        ({"content": "So 42."}, "So 42.", ""),
        ({"content": None}, "", ""),
        ({"content": [{"type": "text", "text": "So "}, {"type": "text", "text": "42."}]}, "So 42.", ""),
        ({"content": [{"type": "output_text", "text": "So 42."}, "!"]}, "So 42.!", ""),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "42"]},
            "42",
            "hm",
        ),
        ({"content": "42", "reasoning_content": "six sevens"}, "42", "six sevens"),
        ({"content": "42", "reasoning": "six sevens"}, "42", "six sevens"),
        ({"content": None, "refusal": "I would rather not."}, "I would rather not.", ""),
    ],
)  # fmt: skip
def test_text_and_reasoning_in_every_form(fields: dict[str, Any], text: str, reasoning: str) -> None:
    reply = read_reply(json.dumps(message(**fields).body))
    assert (reply.text, reply.reasoning, reply.calls) == (text, reasoning, ())
    assert reply.message() == {"role": "assistant", "content": text}  # without calls reasoning is not sent back


def test_calls_in_every_form() -> None:
    calls = [
        call("1 + 1", "a"),
        call("2", None),
        call("3", "a"),
        call("", "d", arguments={"code": "4"}),
        call("", "e", arguments=""),
        call("", "f", arguments='{"code": '),
        call("", "g", arguments=None) | {"function": {"name": "search", "arguments": None}},
    ]
    reply = read_reply(json.dumps(message(None, tool_calls=calls, reasoning="think", finish="tool_calls").body))
    assert reply.calls == (
        NativeCall("a", "python", '{"code": "1 + 1"}'),
        NativeCall("call_1", "python", '{"code": "2"}'),
        NativeCall("call_2", "python", '{"code": "3"}'),
        NativeCall("d", "python", '{"code": "4"}'),
        NativeCall("e", "python", "{}"),
        NativeCall("f", "python", '{"code": '),
        NativeCall("g", "search", "{}"),
    )
    back = reply.message()
    assert (back["content"], back["reasoning"]) == (None, "think")  # under the name that the server uses
    assert [c["id"] for c in back["tool_calls"]] == ["a", "call_1", "call_2", "d", "e", "f", "g"]
    old = read_reply(json.dumps(message(None, function_call={"name": "python", "arguments": "{}"}).body))
    assert old.calls == (NativeCall("call_0", "python", "{}"),)


def test_what_was_counted() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 5}}
    usage = {"prompt_tokens": 13, "completion_tokens": 8, **details}
    assert read_reply(json.dumps(message("x", usage=usage).body)).usage == Usage(1, 13, 3, 8, 5)
    nulls = {"prompt_tokens": 13, "completion_tokens": 8, "prompt_tokens_details": None}
    assert read_reply(json.dumps(message("x", usage=nulls).body)).usage == Usage(1, 13, 0, 8, 0)
    for none in (None, {"prompt_tokens": None, "completion_tokens": 2}, {"total_tokens": 4}, "7"):
        assert read_reply(json.dumps(message("x", usage=none).body)).usage is None
    assert Usage(1, 2, 3, 4, 5) + Usage(10, 20, 30, 40, 50) == Usage(11, 22, 33, 44, 55)


ODD = {
    "an error": Answer({"error": {"message": "upstream fell over", "code": 502}}),
    "an error that is text": Answer({"error": "upstream fell over"}),
    "no choices": Answer({"id": "x", "choices": []}),
    "null choices": Answer({"choices": None}),
    "no message": Answer({"choices": [{"finish_reason": "stop"}]}),
    "an error in the choice": Answer({"choices": [{"error": {"message": "cut", "code": 502}, "message": {}}]}),
    "broken off": message("half a", finish="error"),
    "a list": Answer([1, 2]),
    "null": Answer("null"),
    "a page": Answer("<html>Bad gateway</html>"),
    "nothing": Answer(""),
    "content of a number": message(17),
    "an image": message([{"type": "image_url", "image_url": {"url": "x"}}]),
    "a call without a function": message(None, tool_calls=[{"id": "c"}]),
    "calls that are text": message(None, tool_calls="python"),
}


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
async def test_a_200_that_is_no_reply_is_asked_again_and_never_a_turn(answer: Answer) -> None:
    found, bodies = await ask(lambda body, n: answer if n < 3 else message("42"))
    assert found.text == "42"
    assert len(bodies) == 4
    found, bodies = await ask(lambda body, n: answer)
    assert type(found) is EngineError, found
    assert len(bodies) == chat_endpoint.RETRIES + 1
    assert "\n" not in str(found)


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503])
async def test_server_errors_are_tried_again(status: int) -> None:
    found, bodies = await ask(lambda body, n: Answer("oops", status) if n < 4 else message("42"))
    assert found.text == "42"
    found, bodies = await ask(lambda body, n: Answer({"error": {"message": "oops"}}, status))
    assert isinstance(found, EngineError)
    assert len(bodies) == chat_endpoint.RETRIES + 1


@pytest.mark.parametrize(
    ("status", "error", "kind", "said"),
    [
        (401, {"message": "Incorrect API key"}, UserError, r"refuses the key \(401\).*OPENAI_API_KEY.*--api-key-env"),
        (403, {"message": "no access"}, UserError, r"\(403\): no access.*--api-key-env"),
        (404, {"message": "The model `m` does not exist"}, UserError, r"no model 'm'"),
        (429, {"message": "quota", "code": "insufficient_quota"}, UserError, "no credit left"),
        (400, {"message": "Unrecognized request argument: top_k"}, Refused, "top_k"),
        (422, {"message": 'auto tool choice requires "x"'}, Refused, "--enable-auto-tool-choice.*syntax"),
        (400, {"message": "max_tokens is too large: 99. This model supports at most 16"}, Refused, "too large"),
    ],
)
async def test_refusals_name_the_remedy(status: int, error: Any, kind: type, said: str) -> None:
    found, bodies = await ask(lambda body, n: Answer({"error": error}, status))
    assert type(found) is kind
    assert len(bodies) == 1
    with pytest.raises(kind, match=said):
        raise found


OVERFLOWS = [
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
    "The decoder prompt (length 2100) is longer than the maximum model length of 2048.",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576).",
    "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000",
    "the request exceeds the available context size, try increasing it",
    "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
    "Please reduce the length of the messages or completion.",
    "Range of input length should be [1, 30720]",
    "too many tokens: total number of tokens in the prompt cannot exceed 4081",
]


@pytest.mark.parametrize("text", OVERFLOWS)
async def test_a_full_context_is_told_apart(text: str) -> None:
    found, bodies = await ask(lambda body, n: Answer({"error": {"message": text}}, 400))
    assert type(found) is ContextOverflow
    assert len(bodies) == 1
    found, _ = await ask(lambda body, n: Answer({"error": {"message": "?", "code": "context_length_exceeded"}}))
    assert type(found) is ContextOverflow  # as an error within a 200


async def test_room_that_was_asked_for_is_not_an_overflow() -> None:
    def say(body: Any, n: int) -> Answer:
        return Answer({"error": {"message": OVERFLOWS[0]}}, 400) if "max_tokens" in body else message("fits")

    found, bodies = await ask(say, max_tokens=32_768)
    assert found.text == "fits"
    assert len(bodies) == 2


@pytest.mark.parametrize(
    ("headers", "status", "low", "high"),
    [
        ({"Retry-After": "1"}, 429, 1.0, 1.0),
        ({"Retry-After": "0.25"}, 429, 0.25, 0.25),
        ({"retry-after-ms": "300", "Retry-After": "9"}, 429, 0.3, 0.3),
        ({"Retry-After": formatdate(4102444800, usegmt=True)}, 429, 1e9, 4e9),  # in the year 2100
        ({"Retry-After": "500"}, 503, 500, 500),
        ({"Retry-After": "soon"}, 429, 0.375, 0.5),
        ({}, 429, 0.375, 0.5),
    ],
)
async def test_a_rate_limit_is_waited_for_as_long_as_it_says(
    headers: Any, status: int, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def at_once(self: ChatEndpoint, delay_s: float) -> None:
        waits.append(delay_s)

    monkeypatch.setattr(ChatEndpoint, "_wait", at_once)
    error = {"error": {"message": "slow down"}}
    found, bodies = await ask(lambda body, n: Answer(error, status, headers) if n < 30 else message("42"))
    assert found.text == "42"
    assert len(bodies) == 31
    assert len(waits) == 30  # many more than any count of retries
    assert low <= waits[0] <= high
    assert headers or max(waits) <= chat_endpoint.LONGEST_WAIT_S


async def test_who_waits_is_told() -> None:
    counts: list[int] = []
    async with serving(lambda body, n: Answer({}, 429, {"Retry-After": "0"}) if n < 3 else message("42")) as server:
        endpoint = ChatEndpoint(f"{server.url}#m")
        endpoint.on_wait = lambda: counts.append(endpoint.waiting)
        await endpoint.reply(ASK)
        await endpoint.close()
    assert counts == [1, 0, 1, 0, 1, 0]
    assert endpoint.answered == 1


async def test_nothing_is_lost_where_one_answer_in_three_is_a_rate_limit() -> None:
    rng = random.Random(7)

    def say(body: Any, n: int) -> Answer:
        if rng.random() < 1 / 3:
            return Answer({"error": {"message": "slow down"}}, 429, {"Retry-After": "0"})
        return message(body["messages"][0]["content"])

    async with serving(say) as server:
        endpoint = ChatEndpoint(f"{server.url}#m")
        asks = [endpoint.reply([{"role": "user", "content": f"{i}"}]) for i in range(200)]
        replies = await asyncio.gather(*asks)
        await endpoint.close()
        assert [reply.text for reply in replies] == [f"{i}" for i in range(200)]
        assert len(server.bodies) > 250


async def test_the_key_comes_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "usual")
    monkeypatch.setenv("MY_KEY", "mine")
    async with serving(lambda body, n: message("hi")) as server:
        for key in (None, "MY_KEY"):
            endpoint = ChatEndpoint(f"{server.url}#m", key=key)
            await endpoint.reply(ASK)
            await endpoint.close()
        assert server.keys == ["Bearer usual", "Bearer mine"]
        with pytest.raises(UserError, match="UNSET is not set: export it"):
            ChatEndpoint(f"{server.url}#m", key="UNSET")


async def test_a_server_that_is_not_there() -> None:
    endpoint = ChatEndpoint("http://127.0.0.1:9/v1#m")
    with pytest.raises(EngineError, match=r"no answer from http://127.0.0.1:9/v1 .*is the server running"):
        await endpoint.reply(ASK)
    await endpoint.close()


async def test_it_cannot_be_trained() -> None:
    with pytest.raises(UserError, match="can be evaluated, not trained"):
        await ChatEndpoint("http://x/v1#m").load_weights({}, 1)


async def test_as_an_engine_it_speaks_text_and_sends_only_what_is_on() -> None:
    async with serving(lambda body, n: message("Sure: ")) as server:
        endpoint = ChatEndpoint(f"{server.url}#m")
        prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 2?<|im_end|>\n<|im_start|>assistant\n"
        ids = endpoint.tokenizer.encode(prompt)
        made = await endpoint.generate(ids, Sampling(200))
        assert endpoint.tokenizer.decode(made.token_ids) == "Sure: <|im_end|>"
        assert all(math.isnan(logprob) for logprob in made.logprobs)
        await endpoint.generate(ids, Sampling(200, temperature=0.5, top_p=0.9, top_k=3, seed=8))
        await endpoint.close()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}]
    assert server.bodies[0] == {"model": "m", "messages": messages}
    assert server.bodies[1] == {**server.bodies[0], "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 8}
