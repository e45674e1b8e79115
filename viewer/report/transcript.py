"""Trajectories inside a report: one folded block each, with an anchor that tables link to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from solostream.viewer.export import WHO
from solostream.viewer.index import Index
from solostream.viewer.report.page import minus

LONGEST = 6_000  # characters of one turn that a report keeps; the viewer shows all


def transcripts(index: Index, rows: Sequence[int]) -> tuple[str, dict[str, str]]:
    """The blocks of these rows, and task id -> anchor of its first block."""
    blocks: list[str] = []
    anchors: dict[str, str] = {}
    for row in dict.fromkeys(rows):
        found = index.record(row)
        if found is not None:
            fields, record = found
            anchors.setdefault(fields["task_id"], f"t-{row}")
            blocks.append(_block(row, fields, record["turns"]))
    return "".join(blocks), anchors


def _block(row: int, fields: Mapping[str, Any], turns: Iterable[Mapping[str, Any]]) -> str:
    tone = "good" if fields["reward"] > 0.5 else "bad"
    reward = minus(f"{fields['reward']:g}")
    step = "" if fields["step"] is None else f" · step {fields['step']}"
    calls = "1 call" if fields["calls"] == 1 else f"{fields['calls']} calls"
    facts = f"{fields['response_length']:,} tokens · {calls} · answer {fields['answer'] or 'none'}"
    return (
        f'<details id="t-{row}"><summary><span class="pill {tone}">reward {reward}</span> '
        f"{escape(fields['task_id'])}{step} <small>{escape(facts)}</small></summary>"
        f'<div class="inside">{"".join(map(_turn, turns))}</div></details>'
    )


def _turn(turn: Mapping[str, Any]) -> str:
    who = WHO.get(turn["role"], turn["role"])
    text = turn["text"]
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}\n… {len(text) - LONGEST:,} more characters: see them in solostream view"
    note = " · void" if turn["void"] else ""
    return (
        f'<div class="turn {escape(turn["role"])}"><div class="who">{escape(who)}{note}</div>'
        f'<div class="text">{escape(text.strip())}</div></div>'
    )
