"""Policies that are functions: the text so far in, what the assistant says next out. For baselines and endpoints."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from solostream import registry
from solostream.agent.chat_template import CHATML
from solostream.agent.engine import EngineError, Generation, Sampling, Weights
from solostream.agent.engines.pretrained import load_tokenizer
from solostream.agent.tokenization import decode, encode
from solostream.errors import UserError

_GETS = "a policy gets the whole text so far and returns its next turn"
TextPolicy = Callable[[str], str] | Callable[[str], Awaitable[str]]


class ScriptedEngine:
    """An `Engine` around `policy`, which sees the whole text so far (special tokens included) and returns its next
    turn.

    The turn is cut after the first stop string; if the environment then lets it go on, so does the text. A script
    writes its text with certainty: every token has logprob 0 = log 1. `certain=False` says that the text came from a
    sampler that does not tell its probabilities: logprobs are NaN and the trajectory cannot be trained on.
    """

    def __init__(self, policy: TextPolicy, tokenizer: Any = None, *, certain: bool = True) -> None:
        """tokenizer: None for `byte_tokenizer()`; `unit` says so."""
        self.version = 0
        self.unit = "tokens" if tokenizer else "bytes"
        self._tokenizer = tokenizer
        self._policy = policy
        self._logprob = 0.0 if certain else math.nan
        self._unsaid: dict[str, tuple[list[int], str]] = {}  # episode -> (ledger so far, rest of the turn)

    @property
    def tokenizer(self) -> Any:
        """The one that was given, else `byte_tokenizer`."""
        return self._tokenizer or byte_tokenizer()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """See `Engine.generate`. What the policy raises passes through."""
        before, rest = self._unsaid.pop(sampling.key or "", ([], ""))
        text = rest if rest and before == list(prompt_ids) else await self._say(prompt_ids, sampling)
        end = min((at + len(s) for s in sampling.stop if (at := text.find(s)) >= 0), default=None)
        ids = encode(self.tokenizer, text[:end])
        if end is None:
            ids.append(self.tokenizer.eos_token_id)
        elif sampling.key and text[end:]:
            self._unsaid[sampling.key] = ([*prompt_ids, *ids], text[end:])
        room = sampling.max_tokens
        logprobs, versions = [self._logprob] * len(ids), [self.version] * len(ids)
        return Generation(ids[:room], logprobs[:room], versions[:room], "stop" if len(ids) <= room else "length")

    async def _say(self, prompt_ids: Sequence[int], sampling: Sampling) -> str:
        text = self._policy(decode(self.tokenizer, list(prompt_ids)))
        return await text if inspect.isawaitable(text) else text

    async def release(self, key: str) -> None:
        """Forget what the script had still to say in this episode."""
        self._unsaid.pop(key, None)

    async def load_weights(self, weights: Weights, version: int) -> None:
        """Raises UserError: there are none to load."""
        raise UserError("a script or a plain chat endpoint has no weights: it can be evaluated, not trained")

    async def close(self) -> None:
        """Forget every episode."""
        self._unsaid.clear()


def open_script(model: str, *, tokenizer: str | None = None) -> ScriptedEngine:
    """The engine `scripted`: `model` is "MODULE:FUNCTION", the function `policy` where only a module is named.

    Raises UserError.
    """
    policy = registry.load("policy", model if ":" in model else f"{model}:policy")
    if not callable(policy):
        raise UserError(f"scripted:{model} is a {type(policy).__name__}, not a function from text to text")

    async def told(text: str) -> str:
        """The policy's turn. Its faults are its author's, who gets one line that says where."""
        try:
            said = policy(text)
            said = await said if inspect.isawaitable(said) else said
        except (UserError, EngineError):
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(frame.filename).name}, line {frame.lineno}"
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"scripted:{model} raised {what} ({at}); {_GETS}") from error
        if not isinstance(said, str):
            raise UserError(f"scripted:{model} returned a {type(said).__name__}, not text; {_GETS}")
        return said

    return ScriptedEngine(told, load_tokenizer(tokenizer) if tokenizer else None)


@lru_cache
def byte_tokenizer() -> Any:
    """One token a byte, ChatML turns: every text round-trips, nothing is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(specials + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=specials[:1],
        chat_template=CHATML,
    )
