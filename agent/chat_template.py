"""Messages to token ids, append-only: what the policy sampled is never rendered again.

A chat template renders whole conversations. Here it is asked for the ids up to where the assistant first speaks, and
then, for each observation, only for what it puts between the end of an assistant's turn and the start of the next. The
ledger opening + sampled + appended + sampled + … is what the engine saw, token for token. Templates that rewrite
history (Qwen3 drops the thoughts of earlier turns; some open a <think> that they later leave out) would have shown the
model something else in later turns: `Chat.rewrites_history` says so. Training needs history as it was, so that is what
is kept. What a template lacks (a system role, a tool's, a place for tools) is said in a role that it has:
`agent.template_traits` finds out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from solostream.agent.template_traits import CALL_ID, SPOKEN, USER, Traits, assistant, called, pinned
from solostream.agent.tokenization import decode, encode
from solostream.envs.text.parse import thought_tag
from solostream.envs.text.prompts import tools_prompt
from solostream.envs.text.syntax import detect
from solostream.errors import UserError

Message = Mapping[str, Any]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_log = logging.getLogger(__name__)
_THOUGHTS = {"<think>": "\n</think>\n\n", "[THINK]": "[/THINK]"}  # what opens one, and what closes one without a word
KEPT = 256  # kinds of conversations whose rendering is remembered
# If these come out of the template as they went in, it only puts text around contents, and that text can be kept.
_PROBE = " \n{n}\"<&>\\ '{n}\n "
# Tokens that end a turn in some family: behind one of them a template's own is left out, a turn ends once.
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>", "</s>", "<eos>",
    "<end_of_turn>", "<turn|>", "<|eot|>", "<|eom|>", "<｜end▁of▁sentence｜>", "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
)  # fmt: skip


def read_template(given: str | None) -> str | None:
    """Jinja source from a setting: a file, the source itself, "chatml", or None. Raises UserError."""
    if given is None or "{{" in given or "{%" in given:
        return given
    if given == "chatml":
        return CHATML
    try:
        return Path(given).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f'chat_template = "{given}": {error.strerror}; give a Jinja file, its source, or chatml'
        ) from None


class Chat:
    """Renders for one tokenizer. Stateless: one object serves every episode."""

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        *,
        variables: Mapping[str, Any] | None = None,
        date: str | None = None,
    ) -> None:
        """template: Jinja source; None: the tokenizer's own. variables: what else it knows (`enable_thinking`,
        `reasoning_effort`). date: "2026-11-26", for one that prints today's; None: `template_traits.DATE`.

        Raises UserError if there is no template or it is unusable.
        """
        self.tokenizer = tokenizer
        self._template = template or tokenizer.chat_template
        if not self._template:
            raise UserError(
                "the tokenizer has no chat template: give one (model.chat_template, `--chat-template chatml`)"
            )
        self._variables = {**pinned(date), **(variables or {})}
        self.variables, self.date = dict(variables or {}), date
        self._kept: dict[Any, list[str] | None] = {}
        added = tokenizer.added_tokens_decoder
        specials = {str(t) for t in tokenizer.all_special_tokens} | {t.content for t in added.values() if t.special}
        marks = sorted({t.content for t in added.values() if t.content.strip()} | specials, key=len)
        self._traits = Traits(partial(self._render, self._variables), marks)
        # The token that ends a turn, be it "special" or not (Gemma's and Phi's are not): the first after what was said.
        ids = self._encode(self._traits.behind(self._render(self._variables, [USER, assistant()], (), False)))
        if not self._traits.shows_user:
            raise UserError("the chat template does not show what the user said: pass another template")
        first = next((i for i in ids if decode(tokenizer, [i]).strip()), None)
        self._ends = {i for i in map(self._id, _ENDS) if i is not None}
        ends_turn = first is not None and (first in tokenizer.all_special_ids or first in added)
        found = [*([first] if ends_turn else []), tokenizer.eos_token_id]
        self.stop_token_ids = tuple(dict.fromkeys(i for i in found if i is not None))
        self._ends |= set(self.stop_token_ids)
        specials |= {decode(tokenizer, [i]) for i in self.stop_token_ids}
        self._specials = sorted(specials, key=len, reverse=True)
        if self.rewrites_history:
            _log.info("the chat template rewrites earlier turns; here they stay as they were sampled")

    @cached_property
    def syntax(self) -> str:
        """The call syntax that the template teaches."""
        return detect(self._template)

    @property
    def ends(self) -> tuple[str, ...]:
        """Tokens that end a turn, of this template and of others, as far as the tokenizer has them: their text."""
        return tuple(sorted(decode(self.tokenizer, [i]) for i in self._ends))

    def control(self, token_ids: Sequence[int]) -> str | None:
        """The first token in a turn, its own end left out, that ends one or begins a conversation: none can be sampled
        there. None where there is none.
        """
        found = next((i for i in token_ids if i in (*self.stop_token_ids, self.tokenizer.bos_token_id)), None)
        return None if found is None else decode(self.tokenizer, [found])

    @property
    def template(self) -> str:
        """Its Jinja source."""
        return self._template

    @cached_property
    def thought_opener(self) -> str:
        """The tag by which the template opens a thought, with the white space behind it; "" where it opens none."""
        opening = self._render(self._variables, [USER], (), True)
        written = opening.rstrip()
        tag = next((tag for tag in _THOUGHTS if written.endswith(tag)), "")
        return tag and tag + opening[len(written) :]

    @property
    def opens_thought(self) -> bool:
        """Whether the template writes the tag that opens a thought: the policy's turns begin inside."""
        return bool(self.thought_opener)

    @cached_property
    def _answer_head(self) -> str:
        """What the template shows before an answer and a policy samples itself: white space, the channel of gpt-oss."""
        opening = self._render(self._variables, [USER], (), True)
        whole = self._render(self._variables, [USER, assistant(), USER], (), True)
        return whole[len(opening) :].partition(SPOKEN)[0] if whole.startswith(opening) else ""

    def spoken(self, text: str, *, calls: bool, inside: bool = False) -> str:
        """A turn that somebody else wrote, as a policy would have sampled it behind this template.

        Where the template opens a thought: without a tag of its own that opens one, and behind an empty thought where
        it has none. Elsewhere: with that tag where the text begins inside a thought, and with what the template shows
        before an answer. calls: it ends in a call. inside: the turn before left its thought open.
        """
        opens, (start, end) = thought_tag(text) or (True, (len(text), len(text)))
        if tag := self.thought_opener.rstrip():
            if opens and start < end and not text[:start].strip():
                return text[end:].removeprefix(self.thought_opener[len(tag) :])
            return _THOUGHTS[tag] + text if opens and not inside else text
        if not opens and not inside:
            text = text[start:end].replace("/", "") + "\n" + text
        return text if calls or self._headed(text) else self._answer_head + text  # a call writes its own head

    def _headed(self, text: str) -> bool:
        """Whether it brings along what the template shows before an answer, or another head of that kind."""
        mark = self._answer_head.strip().partition(">")[0]
        return text.lstrip().startswith(mark) if mark else text.startswith(self._answer_head)

    def open(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of the conversation so far, up to where the assistant speaks. tools: JSON schemas.

        Turns of the assistant in it (examples) stand there as a rollout would have left them: see `spoken`.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        first = messages[: turns[0]] if turns else messages
        if tools and not self._traits.shows_tools(any(m["role"] == "system" for m in first)):
            first, tools = _told_of_tools(first, tools), ()
        ids = self._encode(self._text(self._traits.arranged(first), tools, answering=False))
        for turn, following in pairwise([*turns, len(messages)]):
            calls = messages[turn + 1]["role"] == "tool"
            said = self._encode(self.spoken(messages[turn]["content"], calls=calls))
            ids += said + self.append(messages[turn + 1 : following], said)
        return ids

    def append(self, messages: Sequence[Message], sampled: Sequence[int] = ()) -> list[int]:
        """Ids between two turns of the assistant: the end of its turn, unless `sampled` ends in one, and `messages`."""
        ids = self._encode(self._text(self._traits.arranged(messages), (), answering=True))
        if sampled and sampled[-1] in self._ends:
            at = next((n for n, i in enumerate(ids) if decode(self.tokenizer, [i]).strip()), None)
            if at is not None and ids[at] in self._ends:
                return ids[at + 1 :]
        return ids

    @cached_property
    def rewrites_history(self) -> bool:
        """Whether the template would later show an assistant's turn otherwise than the model wrote it."""
        said = f"<think>\nthought\n</think>\n\n{SPOKEN}"
        opening = self._render(self._variables, [USER], (), True)
        later = self._render(self._variables, [USER, assistant(said), USER], (), True)
        return not (later.startswith(opening) and later[len(opening) :].lstrip().startswith(said))

    def _text(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, answering: bool) -> str:
        contents = [self._harmless(m["content"]) for m in messages]
        frames = [{name: value for name, value in m.items() if name != "content"} for m in messages]
        key = (repr(frames), repr(tools) if tools else "", answering)
        if key not in self._kept:
            if len(self._kept) >= KEPT:  # frames that never come again, such as ids of calls
                self._kept.clear()
            self._kept[key] = self._around(frames, tools, answering)
        around = self._kept[key]
        if around is None:
            return self._whole(_messages(frames, contents), tools, answering)
        return around[0] + "".join(c + piece for c, piece in zip(contents, around[1:], strict=True))

    def _around(
        self, frames: Sequence[Message], tools: Sequence[Mapping[str, Any]], answering: bool
    ) -> list[str] | None:
        """The text between the contents of messages with these other fields; None if the template changes contents."""
        probes = [_PROBE.format(n=n) for n in range(len(frames))]
        rest = self._whole(_messages(frames, probes), tools, answering)
        pieces = []
        for probe in probes:
            if rest.count(probe) != 1:
                return None
            piece, rest = rest.split(probe)
            pieces.append(piece)
        return [*pieces, rest]

    def _whole(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], answering: bool) -> str:
        if not answering:
            return self._render(self._variables, messages, tools, True)
        tool = next((m.get("name", "python") for m in messages if m.get("tool_call_id") == CALL_ID), None)
        before = called(tool) if tool and self._traits.needs_call else assistant()
        return self._traits.behind(self._render(self._variables, [USER, before, *messages], tools, True))

    def _render(
        self, variables: Mapping[str, Any], messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], speak: bool
    ) -> str:
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tools=list(tools) or None,
                chat_template=self._template,
                add_generation_prompt=speak,
                tokenize=False,
                **variables,
            )
        except Exception as error:  # templates raise their own errors through Jinja
            raise UserError(f"the chat template fails: {error}; pass another template (model.chat_template)") from None
        return rendered

    def _id(self, token: str) -> int | None:
        found = self.tokenizer.convert_tokens_to_ids(token)
        return found if found is not None and found != self.tokenizer.unk_token_id else None

    def _harmless(self, content: str) -> str:
        """No content can end a turn or open another: special tokens in it are broken by a zero-width space."""
        for token in self._specials:
            if token in content:
                content = content.replace(token, f"{token[0]}\u200b{token[1:]}")
        return content

    def _encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)


def _messages(frames: Sequence[Message], contents: Sequence[str]) -> list[Message]:
    return [{**frame, "content": content} for frame, content in zip(frames, contents, strict=True)]


def _told_of_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The tools in the system message, where the template has no place for them: never silently untold."""
    told = tools_prompt(tools)
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]
