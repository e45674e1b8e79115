"""Episodes on the real environment and interpreter: the ledger, the endings, the budgets."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solostream.agent.chat_template import CHATML, Chat
from solostream.agent.engine import EngineError, Generation, Sampling
from solostream.agent.engines.hf import HFEngine
from solostream.agent.engines.pretrained import vocabulary_hash
from solostream.agent.engines.scripted import ScriptedEngine, byte_tokenizer
from solostream.agent.engines.spec import open_engine
from solostream.agent.rollout import call_tokens, rollout
from solostream.agent.trajectory import Trajectory
from solostream.envs import Task, ToolEnv, parse
from solostream.errors import SandboxError, UserError

TASK = Task("six-seven", "What is 6 times 7?", "42")
CALL = "Let me sée.\n```python\nx = 6 * 7\nx\n```\n"


class Recorder:
    """Passes everything on to an engine and keeps the prompts it saw."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.prompts, self.released = engine, list[list[int]](), list[str]()
        self.version = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        self.prompts.append(list(prompt_ids))
        return await self.engine.generate(prompt_ids, sampling)

    async def release(self, key: str) -> None:
        self.released.append(key)
        await self.engine.release(key)

    async def load_weights(self, weights: Any, version: int) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        await self.engine.close()


@pytest.fixture
async def env() -> AsyncIterator[ToolEnv]:
    made = ToolEnv([TASK], system_prompt="Think in Python.", max_turns=3)
    yield made
    await made.aclose()


def says(*turns: str) -> Recorder:
    """A script that says these turns, one after the other."""
    return Recorder(ScriptedEngine(lambda text: turns[text.count("<|im_start|>assistant") - 1]))


def chat() -> Chat:
    return Chat(byte_tokenizer())


async def play(env: ToolEnv, engine: Any, turn_tokens: int = 400, max_tokens: int = 1000, **options: Any) -> Any:
    return await rollout(env, engine, chat(), sampling=Sampling(turn_tokens), max_tokens=max_tokens, **options)


async def test_the_ledger_by_hand(env: ToolEnv) -> None:
    """What the engine saw is a prefix of the ledger each time; the mask covers the two turns and nothing else."""
    engine = says(CALL + "never said: the call has ended", "It is \\boxed{42}.")
    trajectory = await play(env, engine, task_id="six-seven", seed=5)
    decode = byte_tokenizer().decode
    assert decode(trajectory.token_ids) == (
        "<|im_start|>system\nThink in Python.<|im_end|>\n<|im_start|>user\nWhat is 6 times 7?<|im_end|>\n"
        f"<|im_start|>assistant\n{CALL}<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
        "It is \\boxed{42}.<|im_end|>"
    )
    assert [decode(trajectory.token_ids[t.start : t.end]) for t in trajectory.turns if t.role == "assistant"] == [
        CALL,
        "It is \\boxed{42}.<|im_end|>",
    ]
    mask = np.zeros(len(trajectory), bool)
    for turn in trajectory.turns:
        mask[turn.start : turn.end] = turn.role == "assistant"
    assert (mask == trajectory.action_mask).all()
    assert [trajectory.token_ids[: len(p)].tolist() for p in engine.prompts] == engine.prompts
    assert [len(p) for p in engine.prompts] == [trajectory.turns[1].start, trajectory.turns[3].start]
    assert (trajectory.reward, trajectory.ending, trajectory.answer) == (1.0, "answered", "42")
    assert (trajectory.task_id, trajectory.seed, trajectory.n_calls) == ("six-seven", 5, 1)
    assert trajectory.first_call_token == len("Let me sée.\n".encode())
    assert len(engine.released) == 1


async def test_a_stop_string_that_completes_no_call_does_not_end_the_turn(env: ToolEnv) -> None:
    """The fence closes a block of text first: the turn goes on to the real call, and no token is lost in between."""
    both = "```\njust text\n```\nNow:\n```python\n1 + 1\n```\n"
    engine = says(both, "\\boxed{2}")
    trajectory = await play(env, engine)
    assert trajectory.turns[1].text == both
    assert len(engine.prompts) == 4  # the opener of the text, its closer, the call, the answer
    assert trajectory.n_calls == 1
    assert trajectory.reward == 0.0


@pytest.mark.parametrize(
    ("turns", "turn_tokens", "max_tokens", "ending", "reward"),
    [
        ((CALL, CALL, CALL), 400, 2000, "turn_limit", 0.0),
        (("I think and think and think.",), 5, 2000, "token_limit", 0.0),
        (("\\boxed{42} and more words",), 12, 2000, "answered", 1.0),
        ((CALL, "\\boxed{42}"), 400, 120, "token_limit", 0.0),
        (("I give up.",), 400, 2000, "void", 0.0),
    ],
)
async def test_endings(
    env: ToolEnv, turns: tuple[str, ...], turn_tokens: int, max_tokens: int, ending: str, reward: float
) -> None:
    trajectory = await play(env, says(*turns), turn_tokens, max_tokens)
    assert (trajectory.ending, trajectory.reward) == (ending, reward)
    assert len(trajectory) <= max_tokens
    assert trajectory.turns[-1].role == "assistant"


class Paying(ToolEnv):
    """Pays 0.125 for every turn that ran something, beside the reward of the end."""

    async def astep(self, text: str) -> Any:
        seen, reward, terminated, truncated, info = await super().astep(text)
        if any(self.trace[-1].executions):
            reward += 0.125
            self.trace[-1] = replace(self.trace[-1], reward=reward)
        return seen, reward, terminated, truncated, info


async def test_turns_keep_what_the_environment_paid_for_them() -> None:
    env = Paying([TASK], system_prompt="", max_turns=4)
    answered = await play(env, says(CALL, "```python\nx + 1\n```\n", "It is \\boxed{42}."))
    cut = await play(env, says(CALL, "thinking " * 99), turn_tokens=60)
    await env.aclose()
    assert [t.reward for t in answered.turns if t.role == "assistant"] == [0.125, 0.125, 1.0]
    assert answered.reward == 1.25
    assert [t.reward for t in cut.turns if t.role == "assistant"] == [0.125, 0.0]
    assert (cut.ending, cut.reward) == ("token_limit", 0.125)
    assert Trajectory.from_dict(answered.to_dict()) == answered


async def test_a_turn_reward_pays_every_turn_by_itself() -> None:
    """Two calls of which one fails earn half of .25; the last turn has the outcome on top."""
    env = ToolEnv([TASK], system_prompt="", max_turns=4, parallel_calls=True, turn_reward={"code_passes": 0.25})
    half = "```python\n6 * 7\n```\n```python\n1 / 0\n```\n"
    played = await play(env, says(half, "```python\n1 / 0\n```\n", "It is \\boxed{42}."))
    await env.aclose()
    assert [t.reward for t in played.turns if t.role == "assistant"] == [0.125, 0.0, 1.25]
    assert played.reward == 1.375


async def test_a_sandbox_that_fails_is_no_reward_and_no_data(env: ToolEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """One failure: the episode is played again. More: it ends as infra with the ledger so far."""
    real, failures = env.astep, iter([True, False, False, True, True])

    async def sometimes(text: str) -> Any:
        if next(failures):
            raise SandboxError("the machine is on fire")
        return await real(text)

    monkeypatch.setattr(env, "astep", sometimes)
    assert (await play(env, says(CALL, "\\boxed{42}"))).reward == 1.0
    lost = await play(env, says(CALL, "\\boxed{42}"))
    assert (lost.ending, lost.reward, lost.n_action_tokens) == ("infra", 0.0, 0)


async def test_a_sampler_without_logprobs_is_scored_but_not_trainable(env: ToolEnv) -> None:
    async def endpoint(text: str) -> str:
        return "\\boxed{42}"

    trajectory = await play(env, ScriptedEngine(endpoint, certain=False))
    assert (trajectory.reward, trajectory.n_action_tokens) == (1.0, 0)
    assert trajectory.turns[-1].text == "\\boxed{42}"


async def test_a_random_model_is_its_own_record(env: ToolEnv, make_model: Any, tokenizer: Any, reference: Any) -> None:
    """Whatever a model babbles, the ledger's logprobs are the model's own over the ledger's ids."""
    model = make_model()
    engine = HFEngine(model, tokenizer, slots=4)
    for seed in range(6):
        trajectory = await rollout(
            env, engine, Chat(tokenizer, CHATML), sampling=Sampling(60), max_tokens=300, seed=seed
        )
        expected = reference[0](model, trajectory.token_ids.tolist())
        where = np.flatnonzero(trajectory.action_mask)
        ids = trajectory.token_ids[where]
        assert expected.numpy()[where - 1, ids] == pytest.approx(trajectory.logprobs[where], abs=1e-4)


async def test_the_models_own_end_of_text_ends_a_turn(env: ToolEnv, make_model: Any, tokenizer: Any) -> None:
    """Models have more such tokens than their template: Qwen's <|endoftext|> beside <|im_end|>. Here every token is."""
    model = make_model()
    model.generation_config.eos_token_id = list(range(len(tokenizer)))
    engine = HFEngine(model, tokenizer, slots=1)
    trajectory = await rollout(env, engine, Chat(tokenizer, CHATML), sampling=Sampling(60), max_tokens=300)
    assert (trajectory.n_action_tokens, trajectory.turns[-1].text, trajectory.ending) == (1, "", "void")


class Falters(ScriptedEngine):
    """Gives its requests up after three tokens, or says nothing at all."""

    def __init__(self, finish: Any, tokens: int, requests: int) -> None:
        super().__init__(lambda text: CALL if text.count("<|im_start|>assistant") == 1 else "\\boxed{42}")
        self.finish, self.tokens, self.left = finish, tokens, requests

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        if not self.left:
            text = self.tokenizer.decode(prompt_ids).rpartition("<|im_start|>assistant\n")
            whole = await super().generate(prompt_ids[: len(prompt_ids) - len(text[2].encode())], sampling)
            n = len(text[2].encode())
            return Generation(whole.token_ids[n:], whole.logprobs[n:], whole.versions[n:], whole.finish)
        self.left -= 1
        ids = self.tokenizer.encode("Let me sée.", add_special_tokens=False)[: self.tokens]
        return Generation(ids, [-0.5] * len(ids), [0] * len(ids), self.finish)


async def test_an_aborted_request_is_no_token_limit(env: ToolEnv) -> None:
    """The turn goes on behind the tokens that came; an engine that gives up again and again has failed."""
    trajectory = await play(env, Falters("abort", 3, 1))
    assert (trajectory.ending, trajectory.turns[1].text, trajectory.reward) == ("answered", CALL, 1.0)
    assert trajectory.logprobs[trajectory.action_mask][:4].tolist() == [-0.5, -0.5, -0.5, 0.0]
    with pytest.raises(EngineError, match="aborted 5 requests"):
        await play(env, Falters("abort", 0, 9))


async def test_an_engine_that_has_nothing_to_say_ends_the_turn(env: ToolEnv) -> None:
    """It said "stop" without a token: asked again and again it would never say more. The last token stays text."""
    trajectory = await play(env, Falters("stop", 0, 9))
    assert (trajectory.ending, trajectory.n_action_tokens, trajectory.reward) == ("void", 0, 0.0)


async def test_a_template_decides_syntax_and_where_thoughts_begin() -> None:
    """ "auto" takes the template's syntax on; it opens <think>, so that an answer before </think> is none."""
    template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif") + "{# <tool_call> #}"
    call = '\\boxed{1}? <tool_call>{"name": "python", "arguments": {"code": "6 * 7"}}</tool_call>'
    env = ToolEnv([TASK], syntax="auto")
    rendering = Chat(byte_tokenizer(), template)
    trajectory = await rollout(
        env, says(call, "so</think>\\boxed{42}"), rendering, sampling=Sampling(400), max_tokens=2000
    )
    await env.aclose()
    assert (rendering.syntax, rendering.opens_thought) == ("hermes", True)
    assert "python" in trajectory.turns[0].text + byte_tokenizer().decode(
        trajectory.token_ids[: trajectory.prompt_length]
    )
    assert (trajectory.n_calls, trajectory.answer, trajectory.reward) == (1, "42", 1.0)
    with pytest.raises(UserError, match="chosen from a model's chat template"):
        ToolEnv([TASK], syntax="auto").reset()


def test_call_tokens_count_tokens_not_characters() -> None:
    text = "數é\n```python\n1\n```\nand\n```python\n2\n```\n"
    ids = byte_tokenizer().encode(text, add_special_tokens=False)
    calls = parse(text).calls
    starts = call_tokens(byte_tokenizer(), ids, calls)
    assert starts == [len(text[: c.span[0]].encode()) for c in calls]
    assert starts[0] == 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "incomplete"),
        ("vllm:", "incomplete"),
        ("no/such/model", "no such folder"),
        ("scripted:no_such_module:f", "there is no module 'no_such_module'"),
        ("vlm:some/model", "there is no module 'vlm'"),
        ("math:pi:some/model", "'math:pi' is a float; name a class"),
        ("http://127.0.0.1:9", "no server at"),
        ("chat:localhost", "chat:URL#MODEL"),
    ],
)
async def test_bad_specs_are_one_line(spec: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message) as caught:
        await open_engine(spec)
    assert "\n" not in str(caught.value)


async def test_specs_open_what_they_name(
    tmp_path: Path, make_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    engine, own = await open_engine(str(tmp_path / "model"))
    assert isinstance(engine, HFEngine)
    assert vocabulary_hash(own) == vocabulary_hash(tokenizer)
    byte_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="vocabulary of"):
        await open_engine(str(tmp_path / "model"), tokenizer=str(tmp_path / "other"))
    (tmp_path / "my_policy.py").write_text("def speak(text):\n    return 'hello'\n")
    monkeypatch.syspath_prepend(tmp_path)
    script, tok = await open_engine("scripted:my_policy:speak")
    said = await script.generate(tok.encode("hi"), Sampling(9))
    assert tok.decode(said.token_ids) == "hello<|im_end|>"
    assert said.logprobs == [0.0] * 6
    sys.modules.pop("my_policy")
    with pytest.raises(UserError, match="not trained"):
        await script.load_weights({}, 1)


def fails(episode: Any) -> float:
    raise LookupError("no such key")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
async def test_an_episode_whose_reward_failed_is_played_once_and_is_no_data() -> None:
    env = ToolEnv([TASK], system_prompt="", reward="test_rollout:fails")
    engine = says(r"\boxed{42}")
    try:
        played = await play(env, engine, retries=3)
    finally:
        await env.aclose()
    assert (played.ending, played.reward) == ("infra", 0.0)
    assert played.grading is not None
    assert played.grading.failure == "reward 'test_rollout:fails' failed on task 'six-seven': LookupError: no such key"
    assert len(engine.prompts) == 1
    assert Trajectory.from_dict(json.loads(played.to_json())) == played
