"""Default system prompts: how to call, how to answer. An environment's `system_prompt=""` sends none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from solostream.envs.text.answers import extractor
from solostream.envs.text.syntax import syntax
from solostream.errors import UserError

_NATIVE = "You can call the tools that you were given."  # over an API that has calls of its own
_ANSWERS = {
    "boxed": r"Put your final answer in \boxed{}.",
    "line": "End with a line that says Answer: and your final answer.",
    "tag": "Put your final answer between <answer> and </answer>.",
    "last_number": "End with your final answer, a number.",
    "auto": r"Put your final answer in \boxed{}.",
}

_WRITTEN = {
    "boxed": "The answer is \\boxed{{{}}}.",
    "line": "Answer: {}",
    "tag": "<answer>{}</answer>",
    "last_number": "The answer is {}.",
    "auto": "The answer is \\boxed{{{}}}.",
}


def tools_prompt(tools: Sequence[Mapping[str, Any]]) -> str:
    """The tools' schemas, one a line, for a chat template that has no place for them."""
    schemas = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return f"You can call these tools:\n{schemas}"


def system_prompt(syntaxes: Sequence[str], answer: str) -> str:
    """One paragraph for these call syntaxes and this answer style; no syntax: text only."""
    if not syntaxes:
        return f"Solve the problem step by step. {_how(answer)}"
    calls = " ".join(_NATIVE if name == "native" else syntax(name).how for name in syntaxes)
    return f"Solve the problem step by step. {calls} You then see what it returned and go on. {_how(answer)}"


def written_answer(style: str, answer: str) -> str:
    """What a policy says at the end of an example. Raises UserError for a style from outside, whose form is unknown."""
    if style not in _WRITTEN:
        raise UserError(
            f"the built-in examples have no answer of the style '{style}': give few_shot a file of your own"
        )
    return _WRITTEN[style].format(answer)


def _how(answer: str) -> str:
    """The sentence of an answer style; one from outside brings its own, or none."""
    return _ANSWERS.get(answer) or str(getattr(extractor(answer), "how", ""))
