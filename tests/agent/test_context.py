"""Episodes whose history is replaced: segments by hand, on the real environment, and with a real model's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from solostream.agent.chat_template import CHATML, Chat
from solostream.agent.context import turns_kept
from solostream.agent.context.window import Window, window
from solostream.agent.engine import Sampling
from solostream.agent.engines.hf import HFEngine
from solostream.agent.engines.scripted import ScriptedEngine, byte_tokenizer
from solostream.agent.rollout import rollout
from solostream.agent.tokenization import encode
from solostream.agent.trajectory import TokenRecord, Trajectory, Turn
from solostream.envs import Task, ToolEnv
from solostream.errors import UserError

TASK = Task("six-seven", "What is 6 times 7?", "42")


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def says(*turns: str) -> tuple[ScriptedEngine, list[str]]:
    """A script that says these turns one after the other, and the prompts that it saw."""
    prompts: list[str] = []

    def policy(text: str) -> str:
        prompts.append(text)
        return turns[len(prompts) - 1]

    return ScriptedEngine(policy), prompts


def env_with(*tools: str, **options: Any) -> ToolEnv:
    return ToolEnv([TASK], tools=tools, syntax="hermes", system_prompt="Go.", max_turns=9, **options)


async def play(env: ToolEnv, engine: Any, strategy: Any = rollout, max_tokens: int = 4000, **options: Any) -> Any:
    try:
        chat, sampling = Chat(engine.tokenizer), Sampling(600)
        return await strategy(env, engine, chat, sampling=sampling, max_tokens=max_tokens, seed=1, **options)
    finally:
        await env.aclose()


def pieces(trajectory: Trajectory) -> list[str]:
    return [byte_tokenizer().decode(trajectory.token_ids[a:b]) for a, b in trajectory.segments]


async def test_a_fold_begins_a_segment_with_what_stays_word_for_word() -> None:
    one, two = call("python", code="x = 6\nprint('a' * 30)"), call("python", code="print(x * 7)")
    fold = call("fold", summary="x is 6; x * 7 printed 42", keep=1)
    engine, prompts = says(one, two, fold, "It is \\boxed{42}.")
    trajectory = await play(env_with("python", "fold"), engine)
    first, second = pieces(trajectory)
    opening, between = prompts[0], "<|im_end|>\n<|im_start|>tool\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert first == opening + one + between.format("a" * 30) + two + between.format("42") + fold
    seen = "Folded: you now see the question, your last turn before this one and your summary."
    assert prompts[3] == opening + two + between.format("42") + fold + between.format(seen)
    assert second == prompts[3] + "It is \\boxed{42}.<|im_end|>"
    assert (trajectory.reward, trajectory.ending) == (1.0, "answered")
    # Each thing that was said is an action once; what a segment repeats is none.
    said = byte_tokenizer().decode(trajectory.token_ids[trajectory.action_mask])
    assert said == one + two + fold + "It is \\boxed{42}.<|im_end|>"
    context = trajectory.turns[6]
    assert (context.role, context.kept) == ("context", (0, 3, 4, 5))
    ids = [trajectory.token_ids[trajectory.turns[k].start : trajectory.turns[k].end] for k in context.kept]
    assert np.concatenate(ids).tolist() == trajectory.token_ids[context.start : context.end].tolist()
    # Lengths count what is repeated once; the log gives back all of it.
    parts = [
        one,
        between.format("a" * 30),
        two,
        between.format("42"),
        fold,
        between.format(seen),
        second[len(prompts[3]) :],
    ]
    assert parts[-1].startswith("It is")
    assert trajectory.response_length == sum(len(encode(byte_tokenizer(), part)) for part in parts)
    assert Trajectory.from_dict(json.loads(trajectory.to_json())) == trajectory


async def test_a_second_fold_takes_from_the_segment_before_it() -> None:
    turns = [call("python", code=f"print({n})") for n in range(3)]
    folds = [call("fold", summary=f"until {n}", keep=k) for n, k in ((1, 0), (2, 5))]
    engine, prompts = says(turns[0], turns[1], folds[0], turns[2], folds[1], "\\boxed{42}")
    trajectory = await play(env_with("python", "fold"), engine)
    assert [turn.kept for turn in trajectory.turns if turn.role == "context"] == [
        (0, 5)
    ]  # the second left all in sight
    assert len(trajectory.segments) == 2
    assert turns[0] not in prompts[5]
    assert all(text in prompts[5] for text in (folds[0], turns[2], folds[1]))
    assert trajectory.n_calls == 5


async def test_an_episode_without_a_fold_is_as_ever() -> None:
    turns = [call("python", code="print(6 * 7)"), "\\boxed{42}"]
    with_tool = await play(env_with("python", "fold"), says(*turns)[0])
    assert with_tool.segments == ((0, len(with_tool)),)
    assert '"kept"' not in with_tool.to_json()
    assert all(turn.role != "context" for turn in with_tool.turns)


@pytest.mark.parametrize("arguments", [{"summary": " "}, {"summary": "x", "keep": -1}, {"keep": 1}])
async def test_a_fold_that_says_nothing_changes_nothing(arguments: dict[str, Any]) -> None:
    engine, prompts = says(call("fold", **arguments), "\\boxed{42}")
    trajectory = await play(env_with("python", "fold"), engine)
    assert len(trajectory.segments) == 1
    assert "rror" in prompts[1].rsplit("<|im_start|>tool", 1)[1]


async def test_a_thought_that_began_in_a_turn_that_left_is_over() -> None:
    """Else the answer after the fold would be a thought, and count for nothing."""
    begun = "<think>Let me see." + call("python", code="print(6 * 7)")
    for keep, ending in ((0, "answered"), (1, "void")):  # kept, it is still open: nothing outside it was ever said
        engine, _ = says(begun, call("fold", summary="42", keep=keep), "\\boxed{42}")
        assert (await play(env_with("python", "fold"), engine)).ending == ending


def test_the_window_by_hand() -> None:
    assert Window(turns=2)(10, [5, 6, 7], 8, 1000) == [2]  # the newest is the other one
    assert Window(turns=2, pinned=1)(10, [5, 6, 7], 8, 1000) == [0, 2]
    assert Window()(10, [5, 6, 7], 8, 48) == [0, 1, 2]  # 36 of 48: not above three quarters
    assert Window()(10, [5, 6, 7], 8, 47) == []  # 31, then 25 are above 23.5
    assert Window(after=0.6)(10, [5, 6, 7], 8, 47) == [2]  # 25 are not above 28.2
    assert Window(pinned=2)(10, [5, 6, 7], 8, 30) == [0, 1]  # no more can go
    assert Window(full=1.0, after=1.0)(10, [5, 6, 7], 8, 35) == [1, 2]
    for wrong in ({"turns": 0}, {"pinned": -1}, {"full": 0.4, "turns": 3}, {"after": 0.0}, {"full": 1.5}):
        with pytest.raises(UserError, match="rollout 'window'"):
            Window(**wrong)


def test_which_turns_stay() -> None:
    roles = ["user", *["assistant", "tool"] * 3, "assistant"]
    seen = [Turn(role, 10 * i, 10 * i + 10, "") for i, role in enumerate(roles)]
    assert turns_kept(seen, None, 5, 1000, None) is None
    assert turns_kept(seen, 0, 5, 1000, None) == [0, 7]
    assert turns_kept(seen, 2, 5, 1000, None) == [0, 3, 4, 5, 6, 7]
    assert turns_kept(seen, 3, 5, 1000, None) is None
    assert turns_kept(seen, 2, 5, 1000, Window(turns=2)) == [0, 5, 6, 7]
    assert turns_kept(seen[:1] + seen[-1:], 0, 5, 1000, None) is None


async def test_what_no_longer_fits_leaves_in_place_of_the_token_limit() -> None:
    """Ten outputs of 200 letters do not fit 1200 tokens: the episode ends, or its oldest turns leave."""
    turns = [call("python", code=f"print('{n}' * 200)") for n in range(8)] + ["\\boxed{42}"]
    plain = await play(env_with("python"), says(*turns)[0], max_tokens=1200)
    assert plain.ending == "token_limit"
    engine, prompts = says(*turns)
    windowed = await play(env_with("python"), engine, window, max_tokens=1200, pinned=1)
    assert (windowed.ending, windowed.reward) == ("answered", 1.0)
    assert len(windowed.segments) > 2
    assert max(end - start for start, end in windowed.segments) <= 1200
    assert "0" * 200 in prompts[-1]  # pinned
    assert "7" * 200 in prompts[-1]
    assert "2" * 200 not in prompts[-1]
    assert windowed.n_calls == 8


def test_the_ledger_refuses_nothing_that_it_saw() -> None:
    """Places are those of what is in sight: after a fold they count from there."""
    ledger = TokenRecord()
    ledger.add_observation("user", [1, 2], "q")
    for n in (3, 5):
        ledger.add_action([n], [-0.5], [0], "a")
        ledger.add_observation("tool", [n + 1], "o")
    ledger.fold([0, 3, 4])
    assert ledger.context == [1, 2, 5, 6]
    ledger.add_action([7], [-0.25], [1], "b")
    ledger.fold([0, 3])
    assert ledger.context == [1, 2, 7]
    made = ledger.close("t", 1.0, "answered")
    assert made.segments == ((0, 6), (6, 11), (11, 14))
    assert [turn.kept for turn in made.turns if turn.role == "context"] == [(0, 3, 4), (0, 6)]
    assert made.action_mask.nonzero()[0].tolist() == [2, 4, 10]
    assert made.response_length == 5
    assert made.versions[made.action_mask].tolist() == [0, 0, 1]


@pytest.mark.parametrize("family", ["qwen3", "llama"])
async def test_the_sampler_and_a_plain_forward_pass_agree_on_every_segment(
    family: str, tokenizer: Any, make_model: Callable[..., Any], reference: Any
) -> None:
    """A model that samples anything, an environment that folds whatever it says: the numbers are of what was seen."""

    class Babbles(ToolEnv):
        async def astep(self, text: str) -> Any:
            ending = len(self.trace) >= 5
            return await super().astep("\\boxed{1}" if ending else call("fold", summary=str(len(text)), keep=1))

    model = make_model(family, 3, max_position_embeddings=2048)
    engine = HFEngine(model, tokenizer, slots=2, max_len=2000)
    try:
        env = Babbles([TASK], tools=("python", "fold"), syntax="hermes", system_prompt="", max_turns=9)
        chat = Chat(tokenizer, CHATML)
        got = await rollout(env, engine, chat, sampling=Sampling(9, 1.0), max_tokens=2000, seed=3)
    finally:
        await engine.close()
        await env.aclose()
    assert len(got.segments) >= 4
    logprobs_of, _ = reference
    for start, end in got.segments:
        ids, mask = got.token_ids[start:end], got.action_mask[start:end]
        every = logprobs_of(model, ids.tolist())
        places = np.flatnonzero(mask)
        wanted = every[torch.from_numpy(places - 1), torch.from_numpy(ids[places].astype(np.int64))].numpy()
        assert np.abs(wanted - got.logprobs[start:end][mask]).max() < 1e-5
