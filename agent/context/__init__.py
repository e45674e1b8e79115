"""What leaves the policy's sight: the turns that a segment of the ledger takes over from the one before.

Two things replace history. The environment, because the policy folded it: a call that says what to remember and how
many of the latest turns stay word for word (Memory-as-Action, arXiv 2510.12635: the context is edited by actions that
are learnt with all others). Or a strategy of the run, `window` for example, because the context is full. Either way a
turn of the policy goes or stays whole, with the answer to it, and what stays keeps the ids that it has: nothing is
rendered or tokenised again. The opening stays always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from solostream.agent.trajectory import Turn


class History(Protocol):
    """A rule of what stays in sight."""

    def __call__(self, opening: int, pairs: Sequence[int], newest: int, room: int) -> Sequence[int]:
        """The places of the `pairs` (a turn and its answer, in tokens) that stay, in order.

        opening: tokens before the policy first spoke. newest: of the pair that has just come, which stays. room: of the
        whole context.
        """
        ...


def turns_kept(
    seen: Sequence[Turn], keep: int | None, answer: int, room: int, history: History | None
) -> list[int] | None:
    """Which of the turns `seen` stay, as places among them; None: all.

    seen: the opening, pairs of a turn and its answer, and the newest turn. keep: of a fold, pairs that stay. answer:
    tokens of the answer to the newest turn. room: of the whole context.
    """
    pairs = range(1, len(seen) - 1, 2)
    stay = list(range(len(pairs)))
    if keep is not None:
        stay = stay[max(len(stay) - keep, 0) :]
    if history is not None:
        size = [turn.end - turn.start for turn in seen]
        sizes = [size[pairs[place]] + size[pairs[place] + 1] for place in stay]
        stay = [stay[place] for place in history(size[0], sizes, size[-1] + answer, room)]
    if len(stay) == len(pairs):
        return None
    return [0, *(i for place in stay for i in (pairs[place], pairs[place] + 1)), len(seen) - 1]
