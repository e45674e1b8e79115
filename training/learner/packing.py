"""Packed batches: sequences laid end to end without padding, and attention that never crosses from one to the next.

A pack is sorted by length. Every layer but attention works on its T tokens as they lie; what attention needs to know
of where sequences begin is the pack's `layout` (`attention`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from solostream.agent.trajectory import Trajectory
from solostream.training.learner.device import upload
from solostream.training.learner.kernels.attention import BlockLayout

MaskedTokens = tuple[np.ndarray, np.ndarray]  # token ids, mask of the tokens to learn

BLOCK_WASTE = 1.15  # a block's longest sequence is at most this times its shortest ...
BLOCK_SLACK = 4  # ... plus this many tokens


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """One micro-batch. `members` are the places of its sequences in the list that was packed, shortest first.

    token_ids, position_ids: int64 [1, T]. rows: int64 [n], where each action token is predicted (one before it);
    targets: int64 [n], that token; segment: int64 [n], its sequence as a place in `members`.
    """

    members: list[int]
    token_ids: Tensor
    position_ids: Tensor
    rows: Tensor
    targets: Tensor
    segment: Tensor
    layout: BlockLayout


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One sequence of a pack: a segment of the trajectory at `row` of a batch, at `span` of its ledger.

    ids: int32 [t]; mask: bool [t]; tokens: which of the trajectory's action tokens its own are.
    """

    row: int
    span: slice
    ids: np.ndarray
    mask: np.ndarray
    tokens: slice

    def __len__(self) -> int:
        """Action tokens."""
        return int(self.tokens.stop - self.tokens.start)

    @property
    def sequence(self) -> MaskedTokens:
        """As `pack` takes it."""
        return self.ids, self.mask


def pieces_of(batch: Sequence[Trajectory], rows: Iterable[int]) -> list[Piece]:
    """The segments of the trajectories at `rows`, without those in which the policy says nothing."""
    found = []
    for row in rows:
        trajectory = batch[row]
        # Segments lie in the ledger one behind the other, and so do the action tokens that each of them brings.
        done = 0
        for start, end in trajectory.segments:
            span = slice(start, end)
            mask = trajectory.action_mask[span]  # bool [t]
            n = int(mask.sum())
            tokens = slice(done, done + n)
            done += n
            # What holds nothing to learn is not even computed.
            if n:
                ids = trajectory.token_ids[span]  # int32 [t]
                found.append(Piece(row, span, ids, mask, tokens))
    return found


def column(
    of_row: Sequence[np.ndarray] | Mapping[int, np.ndarray],
    pieces: Sequence[Piece],
    device: torch.device | str = "cpu",
) -> Tensor:
    """The values of the pieces' action tokens, end to end: float32 [n]. of_row: one a token of a whole trajectory."""
    # A piece has some of its trajectory's tokens: those of one segment.
    parts = [of_row[piece.row][piece.tokens] for piece in pieces]
    values = np.concatenate(parts).astype(np.float32)
    return upload(values, device)


def by_member(packed: PackedBatch, pieces: Sequence[Piece], values: Tensor) -> dict[int, Tensor]:
    """place in `pieces` -> its part of `values`, float32 [n] of the pack."""
    # The pack is sorted by length, the pieces are not: each part goes back to the place that it came from.
    counts = [len(pieces[place]) for place in packed.members]
    parts = values[: sum(counts)].split(counts)
    return dict(zip(packed.members, parts, strict=True))


def plan(lengths: Sequence[int], max_tokens_per_batch: int, ranks: int = 1) -> list[list[int]]:
    """Micro-batches of at most `max_tokens_per_batch` tokens (a longer sequence goes alone), neighbours in length.

    As many for each of the `ranks`, who take turns: rank r has those at r, r + ranks, … Some are empty where there are
    fewer sequences than that.
    """
    # By length, so that the blocks of a pack need little padding; by place where lengths are equal, so that a batch is
    # always cut alike.
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    packs = _filled(order, lengths, max_tokens_per_batch)

    # A last round for some ranks only would let the others wait: the least room that needs no more rounds fills them
    # all. More room never needs more packs, so it is found by halving.
    rounds = math.ceil(len(packs) / ranks)
    wanted = rounds * ranks
    if len(packs) < wanted:
        rooms = range(1, max_tokens_per_batch + 1)
        least = bisect_left(rooms, True, key=lambda room: len(_filled(order, lengths, room)) <= wanted)
        packs = _filled(order, lengths, rooms[least])

    # Fewer sequences than turns: what is left of the last round stays empty.
    empty: list[list[int]] = [[] for _ in range(wanted - len(packs))]
    return packs + empty


def _filled(order: Sequence[int], lengths: Sequence[int], room_each: int) -> list[list[int]]:
    """One pack after the other, each until the next sequence does not fit."""
    packs: list[list[int]] = []
    room = 0
    for place in order:
        # A sequence longer than any pack gets one of its own.
        if not packs or lengths[place] > room:
            packs.append([])
            room = room_each
        packs[-1].append(place)
        room -= lengths[place]
    return packs


def idle(device: torch.device | str = "cpu") -> PackedBatch:
    """A pack without members, two tokens long: what a rank computes, and weighs 0, when the others have one more."""
    # One action token after one that predicts it: the shortest that a model computes like any other.
    ids = np.zeros(2, np.int64)
    mask = np.array([False, True])
    shortest = pack([(ids, mask)], [0], device)
    return replace(shortest, members=[])


def pack(sequences: Sequence[MaskedTokens], members: list[int], device: torch.device | str = "cpu") -> PackedBatch:
    """sequences: (token ids, action mask) of each; members: which to pack, as `plan` orders them.

    Raises ValueError when a first token is an action: nothing predicts it.
    """
    # Everything end to end: T tokens, of which n are actions.
    chosen = [sequences[place] for place in members]
    lengths = np.array([len(ids) for ids, _ in chosen])  # int [sequences]
    starts = np.concatenate([[0], np.cumsum(lengths)])  # int [sequences + 1]
    ids = np.concatenate([ids for ids, _ in chosen]).astype(np.int64)  # [T]
    mask = np.concatenate([mask for _, mask in chosen]).astype(bool)  # [T]
    first_tokens = starts[:-1]
    if mask[first_tokens].any():
        raise ValueError("the first token of a sequence is an action token: there is nothing to predict it from")

    # Positions begin at 0 in each sequence, as if it stood alone.
    places = np.flatnonzero(mask)  # int [n], where the action tokens stand
    segment = np.repeat(np.arange(len(members)), lengths)  # int [T], which sequence a token is of
    positions = np.arange(len(ids)) - first_tokens[segment]  # int [T]

    return PackedBatch(
        members=members,
        token_ids=upload(ids, device)[None],
        position_ids=upload(positions, device)[None],
        rows=upload(places - 1, device),  # a token is predicted at the one before it
        targets=upload(ids[places], device),
        segment=upload(segment[places], device),
        layout=_layout(lengths, starts, segment, positions, device),
    )


def _layout(
    lengths: np.ndarray,  # int [sequences]
    starts: np.ndarray,  # int [sequences + 1]
    segment: np.ndarray,  # int [T]
    positions: np.ndarray,  # int [T]
    device: torch.device | str,
) -> BlockLayout:
    # For the kernel that takes sequences as they lie: where each begins, and the longest.
    borders = upload(starts.astype(np.int32), device)
    longest_of_all = int(lengths[-1])

    # For all others: blocks of sequences of nearly one length, each padded to its longest.
    blocks: list[tuple[int, int]] = []
    gather: list[np.ndarray] = []  # of each block int64 [count · longest], the token of each of its rows
    first_row = np.empty(len(lengths), np.int64)  # [sequences], where each begins among the padded rows
    rows = 0
    first = 0
    while first < len(lengths):
        # The lengths are sorted: a block goes on while its longest is within the waste that its shortest allows.
        allowed = lengths[first] * BLOCK_WASTE + BLOCK_SLACK
        last = int(np.searchsorted(lengths, allowed, side="right"))
        longest = int(lengths[last - 1])
        count = last - first

        # Which token each row of the block holds; padding repeats the last token of its sequence.
        last_token = lengths[first:last, None] - 1  # [count, 1]
        offsets = np.minimum(np.arange(longest)[None], last_token)  # [count, longest]
        token = starts[first:last, None] + offsets
        gather.append(token.ravel())

        # Where each sequence of the block begins among all rows.
        first_row[first:last] = rows + longest * np.arange(count)
        blocks.append((count, longest))
        rows += longest * count
        first = last

    # Without padding rows and tokens are the same, and nothing needs to be moved.
    if rows == len(segment):
        return BlockLayout(tuple(blocks), None, borders, longest_of_all)
    scatter = first_row[segment] + positions  # int [T]
    both = (upload(np.concatenate(gather), device), upload(scatter, device))
    return BlockLayout(tuple(blocks), both, borders, longest_of_all)
