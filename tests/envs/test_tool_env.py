"""`ToolEnv` over a scripted sandbox: what each turn does, ends, costs and records."""

import asyncio

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import OPEN, Scripted

from solostream.envs import Task, ToolEnv, parse, workspace
from solostream.envs.rewards import RewardError
from solostream.envs.text.observation import observe
from solostream.envs.text.parse import Parser
from solostream.errors import SandboxError, UserError
from solostream.sandbox.types import Execution

TASKS = [Task("one", "What is 6 times 7?", "42"), Task("two", "Simplify.", r"8\sqrt{2}")]


def call(code):
    return f"```python\n{code}\n```\n"


@pytest.fixture
async def make():
    made = []

    def build(**kwargs):
        made.append(ToolEnv(kwargs.pop("tasks", TASKS), sandbox=kwargs.pop("sandbox", Scripted), **kwargs))
        return made[-1]

    yield build
    for env in made:
        await env.aclose()
    assert OPEN == []


async def start(env, task="one"):
    return await env.areset(seed=0, options={"task_id": task})


async def test_an_episode(make):
    env = make(system_prompt="Be brief.")
    observation, info = await start(env)
    assert observation == "What is 6 times 7?"
    assert info == {
        "messages": ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 6 times 7?"}),
        "task_id": "one",
    }
    assert OPEN == []  # nothing runs before the first call
    text = "First:\n" + call("reply:42")
    observation, reward, terminated, truncated, info = await env.astep(text)
    assert (observation, reward, terminated, truncated) == ("42", 0.0, False, False)
    assert info["messages"] == ({"role": "tool", "name": "python", "content": "42"},)
    assert OPEN[0].live == 1
    observation, reward, terminated, truncated, info = await env.astep(r"It is \boxed{42}.")
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert info["scores"] == {"correct": 1.0}
    assert OPEN[0].live == 0  # the session ended with the episode, the sandbox waits for the next one
    first, last = env.trace
    assert (first.text, first.calls[0].code, first.executions[0].stdout) == (text, "reply:42", "42\n")
    assert (last.answer, last.ending, last.reward) == ("42", "answered", 1.0)


async def test_a_wrong_answer_and_a_mathematical_one(make):
    env = make()
    await start(env)
    assert (await env.astep(r"\boxed{41}"))[1:4] == (0.0, True, False)
    await start(env, "two")
    assert (await env.astep(r"\boxed{\sqrt{128}}"))[1:4] == (1.0, True, False)


async def test_a_void_turn_ends_the_episode(make):
    env = make()
    for text in ("", "I think it is 42."):
        await start(env)
        assert (await env.astep(text))[1:4] == (0.0, True, False)
        assert env.trace[-1].void
        assert (env.trace[-1].ending, env.trace[-1].answer) == ("void", None)
    assert OPEN == []


async def test_a_call_that_the_policy_left_open_is_told(make):
    env = make()
    await start(env)
    observation, _, *over, _ = await env.astep("```python\nreply:42")
    assert observation.startswith("Error: this call could not be read: it is not closed. To run Python, write a block")
    assert (over, env.trace[-1].executions) == ([False, False], (None,))
    assert (await env.astep(r"\boxed{42}"))[1:4] == (1.0, True, False)


async def test_answer_and_calls_in_one_turn(make):
    """Calls before the answer are executed for the record, later ones are not; their output is never shown."""
    env = make()
    await start(env)
    *_, info = await env.astep(call("reply:1") + r"So \boxed{42}." + "\n" + call("reply:2"))
    assert info["messages"] == ()
    assert info["answer"] == "42"
    assert [e and e.stdout for e in env.trace[-1].executions] == ["1\n", None]


async def test_several_calls_in_a_turn_run_in_order(make):
    env = make(max_calls_per_turn=2)
    await start(env)
    observation, *_ = await env.astep(call("set:a") + call("get") + call("get"))
    assert observation == "(no output)\n['a']\nError: at most 2 calls a turn; the others were not executed"
    assert env.trace[0].executions[2] is None


async def test_calls_that_cannot_run_are_answered(make):
    env = make(syntax="hermes", max_turns=9)
    await start(env)
    for text, content in {
        "<tool_call>{</tool_call>": "Error: this call could not be read: not JSON",
        '<tool_call>{"name": "bash", "arguments": {}}</tool_call>': "Error: no such tool; there is: python",
        '<tool_call>{"name": "python", "arguments": {}}</tool_call>': "Error: argument 'code' is missing",
        '<tool_call>{"name": "python", "arguments": {"code": 1}}</tool_call>': "Error: argument 'code' must be of type",
        '<tool_call>{"name": "python", "arguments": {"code": "", "x": 1}}</tool_call>': "Error: unknown argument 'x'",
    }.items():
        observation, _, *over, _ = await env.astep(text)
        assert observation.startswith(content)
        assert over == [False, False]
        assert env.trace[-1].executions == (None,)
    assert OPEN == []


@pytest.mark.parametrize(
    ("code", "observation"),
    [
        ("reply:x", "x"),
        ("get", "[]"),
        ("raise", "Traceback:\nZeroDivisionError: division by zero"),
        ("timeout", "TimeoutError: the code ran too long and was stopped"),
        ("lost", "the interpreter was killed\n(the interpreter was restarted: variables are lost)"),
        ("anything", "(no output)"),
    ],
)
async def test_what_the_policy_sees(make, code, observation):
    env = make()
    await start(env)
    assert (await env.astep(call(code)))[0] == observation


def test_what_was_displayed_is_seen_as_text():
    shown = ({"text/plain": "   a\n0  1", "text/html": "<table>"}, {"image/png": "iVBOR"})
    assert observe(Execution(stdout="p\n", result="7", display=shown)) == "p\n   a\n0  1\n7"
    assert observe(Execution(display=shown[1:])) == "(no output)"


async def test_an_exception_can_be_one_line(make):
    env = make(tracebacks=False)
    await start(env)
    observation, *_ = await env.astep(call("raise"))
    assert observation == "ZeroDivisionError: division by zero"


async def test_turn_limit(make):
    env = make(max_turns=2)
    await start(env)
    assert (await env.astep(call("reply:1")))[2:4] == (False, False)
    observation, reward, terminated, truncated, info = await env.astep(call("reply:2"))
    assert (observation, reward, terminated, truncated) == ("", 0.0, False, True)
    assert info["ending"] == "turn_limit"
    assert env.trace[-1].executions == (None,)  # nobody would have read its output
    with pytest.raises(gymnasium.error.ResetNeeded):
        await env.astep("more")


class Letters:
    """One token a character."""

    def encode(self, text):
        return [ord(char) for char in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


async def test_token_budgets(make):
    env = make(tokenizer=Letters, turn_tokens=60)
    await start(env)
    *_, truncated, info = await env.astep(call("reply:1") + "x" * 60)
    assert (truncated, info["ending"], env.trace[-1].executions) == (True, "token_limit", (None,))
    env = make(tokenizer=Letters, output_tokens=60)
    await start(env)
    observation, *_ = await env.astep(call("reply:" + "x" * 30 + "y" * 100))
    assert len(observation) <= 60
    assert observation.startswith("xxx")
    assert observation.endswith("yyy")


@pytest.mark.parametrize(("answer", "ending"), [(r"\boxed{42}", "answered"), (r" \boxed{42}", "token_limit")])
async def test_the_policy_is_told_what_remains_to_the_token(make, answer, ending):
    env = make(tokenizer=Letters, episode_tokens=70, show_budget=True)
    await start(env)
    turn = call("reply:abc")
    observation, *_ = await env.astep(turn)
    note = "\n[turns left: 7, tokens left: 10]"
    assert observation == "abc" + note
    assert 70 - len(turn) - len(observation) == 10 == len(r"\boxed{42}")
    assert (await env.astep(answer))[4]["ending"] == ending


async def test_an_answer_within_the_budget_counts(make):
    env = make(tokenizer=Letters, episode_tokens=20)
    await start(env)
    assert (await env.astep(r"\boxed{42}"))[1:4] == (1.0, True, False)


async def test_time_limit(make):
    env = make(time_limit_s=0.05)
    await start(env)
    await asyncio.sleep(0.06)
    *_, terminated, truncated, info = await env.astep(r"\boxed{42}")
    assert (terminated, truncated, info["ending"], info["answer"]) == (False, True, "time_limit", None)


async def test_infrastructure_failure_is_retried_and_the_state_rebuilt(make):
    env = make(retries=2)
    await start(env)
    await env.astep(call("set:a"))
    observation, *_ = await env.astep(call("crash:2") + call("get"))
    assert observation == "(no output)\n['a']"  # sessions 1 and 2 crashed, session 3 replayed `set:a`
    assert OPEN[0].log == ["set:a", "crash:2", "set:a", "crash:2", "set:a", "crash:2", "get"]


async def test_lost_state_is_not_rebuilt(make):
    env = make()
    await start(env)
    await env.astep(call("set:a"))
    await env.astep(call("lost"))
    observation, *_ = await env.astep(call("crash:1") + call("get"))
    assert observation == "(no output)\n[]"


async def test_a_fresh_interpreter_that_fails_leaves_the_episodes_own_alone(make):
    env = make(retries=1)
    space = env._workspace
    await space.run("set:a")
    with pytest.raises(SandboxError):
        await space.run_fresh("crash")
    assert (await space.run("get")).result == "['a']"
    assert OPEN[0].log == ["set:a", "crash", "crash", "get"]  # nothing was replayed


async def test_infrastructure_failure_raises_after_the_last_retry(make):
    env = make(retries=1)
    await start(env)
    with pytest.raises(SandboxError, match="the machine is gone"):
        await env.astep(call("crash"))
    assert OPEN[0].opened == 2
    assert env.trace == []  # neither an observation nor a reward
    with pytest.raises(gymnasium.error.ResetNeeded):
        await env.astep("x")
    assert (await start(env))[0] == "What is 6 times 7?"


async def test_a_wrong_sandbox_is_its_users_mistake_and_no_observation(make):
    """UserError is a ValueError, and a tool's ValueError is shown to the policy: this one must not be."""
    env = make(sandbox="nowhere:Sandbox")
    await start(env)
    with pytest.raises(UserError, match="there is no module 'nowhere'"):
        await env.astep(call("1"))
    assert env.trace == []


async def test_wrong_actions_and_options_are_refused_and_the_episode_goes_on(make):
    env = make()
    await start(env)
    for action in (None, b"bytes", 3):
        with pytest.raises(UserError, match="an action is text"):
            await env.astep(action)
    assert (await env.astep(r"\boxed{42}"))[1] == 1.0
    with pytest.raises(UserError, match=r"unknown reset options \['taskid'\]; there are: task, task_id"):
        await env.areset(options={"taskid": "two"})
    with pytest.raises(UserError, match=r"must be an envs\.Task, not dict"):
        await env.areset(options={"task": {"prompt": "?"}})


async def test_episodes_do_not_share_state_and_stateless_calls_neither(make):
    env = make()
    await start(env)
    await env.astep(call("set:a"))
    await start(env)
    assert (await env.astep(call("get")))[0] == "[]"
    env = make(tools=[{"tool": "python", "stateful": False}])
    await start(env)
    await env.astep(call("set:a"))
    assert (await env.astep(call("get")))[0] == "[]"
    assert OPEN[0].live == 1  # only the first environment's episode holds a session


async def test_environments_share_one_sandbox_until_the_last_closes(make):
    envs = [make(sandbox_options={"tag": "x"}) for _ in range(3)] + [make(sandbox_options={"tag": "y"})]
    for env in envs:
        await start(env)
        await env.astep(call("reply:1"))
    assert sorted((s.tag, s.live) for s in OPEN) == [("x", 3), ("y", 1)]
    for env in envs[:2]:
        await env.aclose()
        await env.aclose()
    assert sorted((s.tag, s.live) for s in OPEN) == [("x", 1), ("y", 1)]
    await envs[2].aclose()
    assert [s.tag for s in OPEN] == ["y"]


async def test_the_synchronous_face_lives_on_another_loop(make):
    """One environment used from both sides: each has sessions on its own loop, none is left behind."""
    env = make()
    await start(env)
    await env.astep(call("set:a"))
    env.reset(options={"task_id": "one"})
    assert env.step(call("get"))[0] == "[]"
    await asyncio.sleep(0.05)  # the first session is closed on its own loop, here
    assert [s.live for s in OPEN] == [1]
    await env.aclose()  # from the other loop
    env.close()
    assert OPEN == []


def test_close_after_the_loop_has_ended():
    env = ToolEnv(TASKS, sandbox=Scripted)

    async def play():
        await start(env)
        await env.astep(call("reply:1"))

    asyncio.run(play())
    env.close()
    OPEN.clear()  # its loop is gone, and with it everything that lived on it
    asyncio.run(play())
    assert [loop.is_closed() for _, _, loop in workspace._shared] == [True]  # the first entry was cleared away
    env.close()
    OPEN.clear()


async def test_tasks_are_drawn_by_the_seed(make):
    env = make(tasks=[Task(str(i), f"p{i}", "1") for i in range(100)])

    async def drawn(seed):
        return [(await env.areset(seed=seed))[1]["task_id"], *[(await env.areset())[1]["task_id"] for _ in range(5)]]

    assert await drawn(3) == await drawn(3)
    assert await drawn(3) != await drawn(4)
    assert (await env.areset(options={"task": TASKS[0]}))[0] == "What is 6 times 7?"
    with pytest.raises(UserError, match="no task 'three' among the 100"):
        await env.areset(options={"task_id": "three"})


async def test_stops_complete_and_parser_agree(make):
    env = make(syntax="code")
    assert env.stops == ("</code>",)
    assert env.complete("a <code>1</code> b") == 16
    assert env.complete("a <code>1") is None
    parser = env.parser()
    assert [parser.feed(piece) for piece in ("a <co", "de>1</code", "> b")] == [None, None, 16]
    both = make(syntax=("fence", "hermes"))
    assert both.stops == ("```\n", "~~~\n", "</tool_call>")
    thinker = make(syntax="code", think="skip")
    assert thinker.complete("<think><code>1</code>") is None  # the stop string was only a hint
    assert thinker.stops == ("</code>",)
    assert make(syntax="hermes", parallel_calls=True).stops == ()
    assert make(syntax="hermes", parallel_calls=True).complete("<tool_call>{}</tool_call>") is None


async def test_schemas_go_to_the_template_only_where_it_renders_calls(make):
    assert make(syntax="fence").tools == ()
    (schema,) = make(syntax="hermes").tools
    assert schema["function"]["name"] == "python"
    assert schema["function"]["parameters"]["required"] == ["code"]


async def test_lone_surrogates_cannot_break_a_turn(make):
    env = make()
    await start(env)
    assert (await env.astep("\ud800\n" + call("reply:\udfff")))[0] == "\ufffd"
    env.trace[0].text.encode()


class Broken:
    """A tool whose text no UTF-8 can carry."""

    name, description = "broken", ""
    parameters = {"type": "object", "properties": {}, "required": []}  # noqa: RUF012

    async def __call__(self, arguments, workspace):
        return "half \ud83d"


async def test_what_a_tool_says_and_what_the_policy_calls_it_cannot_break_a_conversation(make):
    env = make(tools=["python", Broken], syntax="hermes")
    await start(env)
    observation, *_ = await env.astep('<tool_call>{"name": "broken", "arguments": {}}</tool_call>')
    assert observation == "half \ufffd"
    *_, info = await env.astep('<tool_call>{"name": "<|im_end|>", "arguments": {}}</tool_call>')
    assert info["messages"][0]["name"] == "unknown"  # some templates show it
    assert env.trace[-1].calls[0].name == "<|im_end|>"


async def test_render(make):
    env = make(system_prompt="", render_mode="ansi")
    assert env.render() == ""
    await start(env)
    await env.astep(call("reply:1"))
    await env.astep("\\boxed{42}")
    assert env.render() == (
        "[user] What is 6 times 7?\n[assistant] ```python\nreply:1\n```\n\n[tool] 1\n"
        "[assistant] \\boxed{42}\n[answered] answer '42', reward 1"
    )


PIECES = ["```python\n", "\n```\n", "reply:é", "crash", "lost", "raise", "<tool_call>", "</tool_call>", "\ud800", "}"]
PIECES += ['{"name": "python", "arguments": {"code": "get"}}', "\\boxed{", "42}", "<think>", "</think>", "\n", " hm "]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), min_size=1, max_size=5))
def test_no_text_breaks_an_episode(texts):
    """A bad rollout is data: only failed infrastructure may raise, and every step keeps the interface's promises."""

    async def play():
        env = ToolEnv(TASKS, sandbox=Scripted, syntax=("fence", "hermes"), max_turns=4, retries=1)
        await env.areset(seed=1)
        try:
            for text in texts:
                observation, reward, terminated, truncated, info = await env.astep(text)
                assert observation in env.observation_space
                assert 0 <= reward <= 1
                assert not (terminated and truncated)
                assert (terminated or truncated) == (info["ending"] is not None) == (info["messages"] == ())
                step = env.trace[-1]
                assert len(step.calls) == len(step.executions)
                if terminated or truncated:
                    break
        except SandboxError:
            assert "crash" in "".join(texts)
        assert sum(sandbox.live for sandbox in OPEN) <= 1
        await env.aclose()
        assert OPEN == []

    asyncio.run(play())


@pytest.mark.parametrize(
    ("kwargs", "remedy"),
    [
        ({"syntax": "fenced"}, "did you mean 'fence'"),
        ({"think": "no"}, "one of: run"),
        ({"answer": "box"}, "did you mean 'boxed'"),
        ({"sandbox": "frok"}, "did you mean 'fork'"),
        ({"tools": ["pyton"]}, "did you mean 'python'"),
        ({"tools": ["python", "search"]}, "set syntax='hermes'"),
        ({"tools": [{"tool": "search", "pages": 3}]}, "has no option 'pages'"),
        ({"tools": ["python", {"tool": "python", "stateful": False}]}, "two tools have one name"),
        ({"tools": [dict]}, "is no tool: it needs name"),
        ({"max_turns": 0}, "at least 1"),
        ({"render_mode": "human"}, "one of: ansi"),
        ({"reward": "kindness"}, "allowed: correct"),
        ({"grading": {"tolerence": 0.1}}, "did you mean 'tolerance'"),
        ({"grading": {"units": "some"}}, "units"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": "aime2"}, "did you mean 'aime24'|did you mean 'aime25'"),
    ],
)
def test_settings_that_make_no_sense_name_the_remedy(kwargs, remedy):
    with pytest.raises(UserError, match=remedy):
        ToolEnv(**{"tasks": TASKS, **kwargs})


def fails(episode):
    raise LookupError("no such key")


async def test_how_an_episode_was_graded_is_kept(make):
    env = make(
        answer="auto",
        reward={"correct": 0.75, "answered": 0.25},
        tasks=[Task("many", "?", "4", meta={"answers": ["four"]})],
    )
    await start(env, "many")
    _, reward, _, _, info = await env.astep("I would say that the answer is **Four**.")
    grading = env.trace[-1].grading
    assert reward == 1.0
    assert info["scores"] == {"correct": 1.0, "answered": 1.0}
    assert grading.expected == ("4", "four")
    assert grading.style == "line"
    assert grading.reasons == {"correct": "the same words"}
    assert type(grading).from_dict(grading.to_dict()) == grading


async def test_the_options_of_grading(make):
    strict, loose = make(answer="auto"), make(answer="auto", grading={"tolerance": 0.1})
    for env, value in ((strict, 0.0), (loose, 1.0)):
        await start(env)
        assert (await env.astep("It is 41.5"))[1] == value


async def test_numbers_beside_a_call_are_no_answer(make):
    env = make(answer="auto")
    await start(env)
    _, _, terminated, _, _ = await env.astep("First 6 * 7:\n" + call("reply:42"))
    assert not terminated
    assert (await env.astep("So there are 42 of them."))[1:3] == (1.0, True)


async def test_a_reward_that_raises_is_no_reward_and_the_next_episode_works(make):
    env = make(reward="test_tool_env:fails")
    await start(env)
    with pytest.warns(RuntimeWarning, match="failed on task 'one'"), pytest.raises(RewardError, match="LookupError"):
        await env.astep(r"\boxed{42}")
    assert env.over
    await start(env, "two")
    assert (await env.astep("Hm.\n" + call("reply:1")))[0] == "1"


async def test_a_turn_is_read_once_and_no_other_text_is_taken_for_it(make, monkeypatch):
    """The step finishes the parser that `complete` has fed; a text that went another way is read from its start."""
    fed: list[str] = []
    feed = Parser.feed
    monkeypatch.setattr(Parser, "feed", lambda parser, piece: (fed.append(piece), feed(parser, piece))[1])
    text = "Let me see.\n```python\n6 * 7\n```\n"
    env = make()
    await env.areset(seed=1)
    assert [env.complete(text[:end]) for end in (5, 19, len(text))] == [None, None, len(text)]
    await env.astep(text)
    assert "".join(fed) == text
    env.complete("Another \\boxed{1}")
    fed.clear()
    await env.astep("It is \\boxed{42}.")
    assert fed == ["It is \\boxed{42}."]
    assert env.trace[0].calls == parse(text).calls
    assert env.trace[1].answer == "42"
