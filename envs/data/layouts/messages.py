"""OpenAI's fine-tuning rows: `messages`, a question of the user and the assistant's worked solution."""

from collections.abc import Mapping
from typing import Any

from solostream.envs.data.layouts import final, is_chat, question, text


class Messages:
    """Chats for supervised training: the last message is the assistant's and ends with the answer."""

    says = "the user's message, and the answer that the assistant's message ends with (boxed, after ####, or all of it)"

    def matches(self, row: Mapping[str, Any]) -> bool:
        """A list of messages under `messages`."""
        return is_chat(row.get("messages"))

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The one question and the answer at the end. Raises ValueError for several turns, or no answer at the end."""
        *asked, last = row["messages"] if is_chat(row.get("messages")) else [{"role": ""}]
        if last["role"] != "assistant":
            raise ValueError("'messages' do not end with the assistant's answer")
        return {
            "prompt": question(asked, "messages"),
            "answer": row["answer"] if row.get("answer") is not None else final(text(last["content"], "messages")),
            "id": row.get("id"),
        }
