"""The table of docs/templates.md: what each public template has, and that it opens, calls and appends exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from public_templates import PUBLIC, Public
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from solostream.agent.chat_template import Chat
from solostream.agent.template_traits import CALL_ID
from solostream.envs import ToolEnv
from solostream.envs.text.parse import parse
from solostream.envs.tools import json_schema, make_tool

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"
QUESTION = {"role": "user", "content": "What is 6·7?"}
SYSTEM = {"role": "system", "content": "Be brief, please."}
OUTPUT = {"role": "tool", "name": "python", "content": "42"}
CODE = 'print("{}<|>")\nif 1 < 2:\n\tx = [1]'
DAY = "2026-11-26"


def tokenizer_of(public: Public) -> Any:
    """One token a byte, and the template's own."""
    marks = list(dict.fromkeys((*public.marks, *((public.end,) if public.end else ()))))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    for mark in marks:
        plain = public.plain_end and mark == public.end
        tokenizer.add_tokens([AddedToken(mark, special=not plain, normalized=False)])
    tokenizer.eos_token = public.eos or public.end
    tokenizer.chat_template = public.source
    return tokenizer


@pytest.fixture(scope="module", params=PUBLIC)
def one(request: Any) -> tuple[Public, Chat]:
    public = PUBLIC[request.param]
    return public, Chat(tokenizer_of(public), variables=dict(public.variables), date=DAY)


def render(public: Public, chat: Chat, messages: list[dict[str, Any]], speak: bool = True, tools: Any = None) -> str:
    """By transformers, as anybody would."""
    import datetime

    return chat.tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=speak, tokenize=False,
        strftime_now=datetime.datetime.fromisoformat(DAY).strftime, **dict(public.variables),
    )  # fmt: skip


def test_opens_exactly(one: tuple[Public, Chat]) -> None:
    """The rendering of the messages; the system's text is in it whatever the template has."""
    public, chat = one
    assert chat.tokenizer.decode(chat.open([QUESTION])) == render(public, chat, [QUESTION])
    opened = chat.tokenizer.decode(chat.open([SYSTEM, QUESTION]))
    if chat._traits.has_system:
        assert opened == render(public, chat, [SYSTEM, QUESTION])
    merged = {"role": "user", "content": f"{SYSTEM['content']}\n\n{QUESTION['content']}"}
    assert chat._traits.has_system or opened == render(public, chat, [merged])
    assert opened.count(SYSTEM["content"]) == opened.count(QUESTION["content"]) == 1


def test_tools_are_never_untold(one: tuple[Public, Chat]) -> None:
    """Names and arguments of every tool are in the prompt, with and without a system message."""
    _, chat = one
    env = ToolEnv("lookup", tools=["python", "calculator", "search"], syntax="hermes")
    for messages in ([QUESTION], [SYSTEM, QUESTION]):
        text = chat.tokenizer.decode(chat.open(messages, env.tools))
        for schema in env.tools:
            assert schema["function"]["name"] in text
            for argument in schema["function"]["parameters"]["properties"]:
                assert f'"{argument}"' in text
        assert all(message["content"] in text for message in messages)
    env.close()


def test_appends_exactly(one: tuple[Public, Chat]) -> None:
    """Opening + turn + appended is the rendering of it all, ended by the policy or stopped at its call; a turn ends
    once.
    """
    public, chat = one
    encode, decode = chat.tokenizer.encode, chat.tokenizer.decode
    traits = chat._traits
    opening, said = decode(chat.open([QUESTION])), "let me see"
    for ended in (True, False):
        sampled = encode(said + (public.end if ended else ""), add_special_tokens=False)
        ledger = decode([*chat.open([QUESTION]), *sampled, *chat.append([OUTPUT], sampled)])
        if public.end:
            assert ledger[len(opening) :].count(public.end) == ledger.count(public.end) - opening.count(public.end)
            between = ledger[len(opening) + len(said) :].partition("42")[0]
            assert between.count(public.end) == 1 or traits.needs_call
            assert chat.tokenizer.convert_tokens_to_ids(public.end) in chat.stop_token_ids
        if traits.needs_call:
            continue
        tool = {**OUTPUT, **traits._tool} if traits._tool else {"role": "user", "content": "42"}
        whole = render(public, chat, [QUESTION, {"role": "assistant", "content": said}, tool])
        history = render(public, chat, [QUESTION, {"role": "assistant", "content": said}], speak=False)
        begun = history[: history.index(said)]  # how the template writes what stands before the assistant's turn
        rest = whole[len(begun) :]
        # Llama 2 puts a space before the end of a turn, which a policy that ends its turn itself has not written.
        assert ledger == opening + (rest.replace(f" {public.end}", public.end) if ended and public.end else rest)


def test_a_call_of_the_template_is_read_by_its_syntax(one: tuple[Public, Chat]) -> None:
    """Where a template renders calls, the syntax that `auto` chooses for it reads them: code as it was, and where it
    stops an engine. Behind the call, the output.
    """
    public, chat = one
    if "tool_calls" not in public.source:
        assert chat.syntax == "fence" or "tool" in public.source
        return
    call = {"id": CALL_ID, "type": "function", "function": {"name": "python", "arguments": {"code": CODE}}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    schema = [json_schema(make_tool("python"))]
    before = render(public, chat, [QUESTION], speak=False, tools=schema)
    text = render(public, chat, [QUESTION, turn], speak=False, tools=schema)[len(before) :]
    for token in ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|header_start|>assistant<|header_end|>\n\n"):
        text = text.removeprefix(token)
    (found,) = parse(text, chat.syntax).calls
    assert (found.name, dict(found.arguments), found.status) == ("python", {"code": CODE}, "ok")
    sampled = chat.tokenizer.encode(text, add_special_tokens=False)
    after = chat.tokenizer.decode(chat.append([OUTPUT], sampled))
    assert "42" in after
    assert not any(after.startswith(end) for end in (public.end, "<|call|>") if end and text.endswith(end))


def test_thoughts_that_a_template_opens(one: tuple[Public, Chat]) -> None:
    """In the default mode: calls inside run, answers inside do not count."""
    _, chat = one
    env = ToolEnv([{"prompt": "q", "answer": "9"}], system_prompt="")
    env.fit(chat.syntax, chat.opens_thought)
    env.reset()
    *_, info = env.step("Let me see.\n```python\n3 * 3\n```\nPerhaps \\boxed{9}.")
    assert (info["answer"] is None) is chat.opens_thought
    assert env.trace[0].executions[0] is not None
    env.close()


def test_the_day_is_the_runs(one: tuple[Public, Chat]) -> None:
    public, chat = one
    text = chat.tokenizer.decode(chat.open([QUESTION], [json_schema(make_tool("python"))]))
    assert ("26" in text and "2026" in text) is ("strftime_now" in public.source)


def row(name: str) -> str:
    """A line of the table of docs/templates.md."""
    public = PUBLIC[name]
    chat = Chat(tokenizer_of(public), variables=dict(public.variables), date=DAY)
    traits = chat._traits
    output = (traits._tool["role"] + (", behind a call" if traits.needs_call else "")) if traits._tool else "user"
    cells = (
        public.models,
        "yes" if traits.has_system else "merged into the question",
        ("template" if traits.shows_tools(True) else "system text"),
        output,
        chat.syntax,
        "yes" if chat.opens_thought else "",
        "yes" if chat.rewrites_history else "",
        "yes" if "strftime_now" in public.source else "",
        f"`{public.end}`".replace("|", "\\|") if public.end else "",
    )
    return f"| {' | '.join(cells)} |"


def test_the_page_is_what_the_templates_do() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(PUBLIC) == 40
    assert [line for line in map(row, PUBLIC) if line not in text] == []


def test_variables_and_templates_of_ones_own(tmp_path: Path) -> None:
    """`reasoning_effort` and `enable_thinking` reach the template; a template is a file, its source or "chatml"."""
    from solostream.agent.chat_template import CHATML, read_template
    from solostream.errors import UserError

    oss = tokenizer_of(PUBLIC["gpt-oss"])
    assert "Reasoning: high" in oss.decode(Chat(oss, variables={"reasoning_effort": "high"}).open([QUESTION]))
    qwen = tokenizer_of(PUBLIC["qwen3"])
    assert qwen.decode(Chat(qwen, variables={"enable_thinking": False}).open([QUESTION])).endswith("</think>\n\n")
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    assert read_template(str(tmp_path / "mine.jinja")) == "{{ messages[0].content }}"
    assert (read_template("chatml"), read_template(None)) == (CHATML, None)
    with pytest.raises(UserError, match="give a Jinja file"):
        read_template("no-such.jinja")
    with pytest.raises(UserError, match="write it as 2026-11-26"):
        Chat(qwen, date="yesterday")


if __name__ == "__main__":
    print("\n".join(map(row, PUBLIC)))
    print(json.dumps(len(PUBLIC)))


def test_turns_in_the_opening_stand_as_the_template_writes_them(one: tuple[Public, Chat]) -> None:
    public, chat = one
    messages = [QUESTION, {"role": "assistant", "content": "It is 42."}, {"role": "user", "content": "And 7·8?"}]
    opened, whole = chat.tokenizer.decode(chat.open(messages)), render(public, chat, messages)
    begun = render(public, chat, [QUESTION])
    if begun.rstrip().endswith(("<think>", "</think>")):  # such a template writes the last turn's thought only
        closer = "" if begun.rstrip().endswith("</think>") else "\n</think>\n\n"
        assert opened.startswith(f"{begun}{closer}It is 42.")
        assert opened.endswith(render(public, chat, messages[2:]).rpartition("And 7·8?")[2])
    else:
        assert opened == whole
