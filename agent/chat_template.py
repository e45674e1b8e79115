"""Messages to token ids, append-only: what the policy sampled is never rendered again.

A chat template renders whole conversations. Here it is asked for the ids up to where the assistant first speaks, and
then, for each observation, only for what it puts between the end of an assistant's turn and the start of the next. The
ledger opening + sampled + appended + sampled + … is what the engine saw, token for token. Templates that rewrite
history (Qwen3 drops the thoughts of earlier turns; some open a <think> that they later leave out) would have shown the
model something else in later turns: `Chat.rewrites_history` says so. Training needs history as it was, so that is what
is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from solostream.agent.tokenization import encode
from solostream.errors import UserError

Message = Mapping[str, Any]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_log = logging.getLogger(__name__)
KEPT = 256  # kinds of conversations whose rendering is remembered
_SPOKEN = "\u2042spoken\u2042"  # stands for the assistant's turn
_USER = {"role": "user", "content": "question"}
# If these come out of the template as they went in, it only puts text around contents, and that text can be kept.
_PROBE = " \n{n}\"<&>\\ '{n}\n "


class Chat:
    """Renders for one tokenizer. Stateless: one object serves every episode."""

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        """template: Jinja source; None: the tokenizer's own. Raises UserError if there is none or it is unusable."""
        self.tokenizer = tokenizer
        self._template = template or tokenizer.chat_template
        if not self._template:
            raise UserError("the tokenizer has no chat template: give one (`Chat(tokenizer, CHATML)`)")
        self._tool_role = "tool"
        self._tool_role = "tool" if self._shows_tools() else "user"
        self._kept: dict[Any, list[str] | None] = {}
        self._specials = sorted(
            {str(t) for t in tokenizer.all_special_tokens}
            | {t.content for t in tokenizer.added_tokens_decoder.values() if t.special},
            key=len,
            reverse=True,
        )
        after = self._after(self._render([_USER, _assistant()], (), False))
        ids = self._encode(after)
        ends_turn = bool(ids) and ids[0] in tokenizer.all_special_ids
        found = ([ids[0]] if ends_turn else []) + [tokenizer.eos_token_id]
        self.stop_token_ids = tuple(dict.fromkeys(i for i in found if i is not None))
        if self.rewrites_history:
            _log.info("the chat template rewrites earlier turns; here they stay as they were sampled")

    def open(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of the conversation so far, up to where the assistant speaks. tools: JSON schemas."""
        return self._encode(self._text(messages, tools, answering=False))

    def append(self, messages: Sequence[Message], sampled: Sequence[int] = ()) -> list[int]:
        """Ids between two turns of the assistant: the end of its turn, unless `sampled` ends in it, and `messages`."""
        ids = self._encode(self._text(messages, (), answering=True))
        return ids[1:] if sampled and ids and sampled[-1] == ids[0] in self.stop_token_ids else ids

    @cached_property
    def rewrites_history(self) -> bool:
        """Whether the template would later show an assistant's turn otherwise than the model wrote it."""
        said = f"<think>\nthought\n</think>\n\n{_SPOKEN}"
        opening = self._render([_USER], (), True)
        later = self._render([_USER, _assistant(said), _USER], (), True)
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
        before = [_USER, _assistant()] if answering else []
        text = self._render([*before, *messages], tools, True)
        return self._after(text) if answering else text

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], speak: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [{**m, "role": self._tool_role} if m["role"] == "tool" else dict(m) for m in messages],
                tools=list(tools) or None,
                chat_template=self._template,
                add_generation_prompt=speak,
                tokenize=False,
            )
        except Exception as error:  # templates raise their own errors through Jinja
            raise UserError(f"the chat template fails: {error}; pass another template") from None

    def _shows_tools(self) -> bool:
        """Whether the template has a tool role outside its own call protocol."""
        try:
            return "observed" in self._render([_USER, _assistant(), {"role": "tool", "content": "observed"}], (), True)
        except UserError:
            return False

    def _after(self, text: str) -> str:
        _, found, after = text.partition(_SPOKEN)
        if not found:
            raise UserError("the chat template does not show what the assistant said: pass another template")
        return after

    def _harmless(self, content: str) -> str:
        """No content can end a turn or open another: special tokens in it are broken by a zero-width space."""
        for token in self._specials:
            if token in content:
                content = content.replace(token, f"{token[0]}\u200b{token[1:]}")
        return content

    def _encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)


def _assistant(content: str = _SPOKEN) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _messages(frames: Sequence[Message], contents: Sequence[str]) -> list[Message]:
    return [{**frame, "content": content} for frame, content in zip(frames, contents, strict=True)]
