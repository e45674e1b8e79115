"""Ten wrong uses of each command. `python benchmarks/first_hour_parts/wrong_uses.py COMMAND` prints as JSON what was
said otherwise than in one line that begins with "solostream: "; the folder holds what `first_hour._write` wrote.

All of a command's uses are tried in one process: it is the imports that take the time.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

LONGEST = 700  # characters of a line that is still one
WRONG = {
    "init": (
        "", "a b", "x --from", "x --from nothing", "x --form own-data", "rows.jsonl/x", "gone/x", "x --from own",
        "x --recipe quickstart", "taken",
    ),
    "train": (
        "", "nowhere.toml", "quickstrat", "quickstart --nmae x", "quickstart --set", "quickstart --set run.steps=many",
        "quickstart --set data.path=gone.jsonl --set cold_start.phases=[]", "quickstart --set env.options.answr=tag",
        "quickstart --set env.id=CartPole-v1", "bad.jsonl",
    ),
    "sft": (
        "", "nowhere.toml", "quickstart --resume gone", "quickstart --seed x", "quickstart more", "rows.jsonl",
        "quickstart --set cold_start.data=gone.jsonl", "quickstart --set cold_start.data=bad.jsonl",
        "quickstart --set cold_start.phases=5", "quickstart --set learner.optimiser=adam",
    ),
    "distill": (
        "", "gone", "scripted:json:loads --traces", "scripted:json:loads --data gone.jsonl", "chat:nothing",
        "scripted:json:loads --data bad.jsonl", "scripted:json:loads --per-problem 0 --data rows.jsonl",
        "scripted:gone:f", "scripted:json:loads -k 0", "scripted:json:loads --tool-olny",
    ),
    "eval": (
        "", "gone", "scripted:json", "scripted:gone:f", "scripted:json:loads --data gone.jsonl", "chat:nothing",
        "scripted:json:loads --data bad.jsonl", "scripted:json:loads --columns x --data rows.jsonl",
        "scripted:json:loads --env-options [1]", "scripted:json:loads -k 0",
    ),
    "compare": (
        "", "gone", "gone gone", "rows.jsonl rows.jsonl", "rows.jsonl bad.jsonl", ". .", "rows.jsonl rows.jsonl -k x",
        "rows.jsonl gone --out", "gone more and", "bad.jsonl bad.jsonl",
    ),
    "chat": (
        "", "gone", "scripted:gone:f", "scripted:json:loads --temperature -1", "scripted:json:loads --syntax fnece",
        "scripted:json:loads --sandbox frok", "chat:nothing", "scripted:json:loads --max-tokens x",
        "scripted:json:loads --chat-template gone.jinja", "scripted:json:loads --date today",
    ),
    "play": (
        "solostream/Maths-v0", "CartPole-v1", "solostream/Math-v0 more", "gone:Env", "json:loads",
        "solostream/Math-v0 --tasks gone.jsonl", "solostream/Math-v0 --tasks bad.jsonl", "--seed x",
        "solostream/Math-v0 --task-id nowhere", "solostream/Math-v0 --sandbox frok",
    ),
    "grade": (
        "", "1 2 3 4", "1 2 3", "1 2 --tolerance x", "1 2 --tolerance -1", "1 2 --units some", "1 2 --percent 3",
        "1 2 --tolerence 1", "1 2 --units", "1",
    ),
    "report": (
        "", "gone", ". ", "bad.jsonl", "rows.jsonl", "rows.jsonl more", "rows.jsonl --out", "rows.jsonl --uot x",
        "taken.toml", "rows.jsonl/x",
    ),
    "view": (
        "", "gone", "gone also", ". ", "rows.jsonl --port x", "rows.jsonl --port 99999", "rows.jsonl --prt 1",
        "rows.jsonl --host 256.1.1.1", "rows.jsonl --tokenizer gone", "bad.jsonl/x",
    ),
    "check": (
        "", "loss", "loss ppo", "sandbox frok", "tol python", "tool gone:Tool", "tool json:gone", "tool json:loads",
        "loss ppo_clip --options x", "loss gspo --options [1]",
    ),
    "sandbox check": (
        "", "frok", "gone:Mine", "fork more", "fork --jobs x", "fork --jobs 0", "fork --only nothing-is-called-so",
        "http://localhost:1", "json:gone", "fork --jsn",
    ),
    "sandbox run": (
        "", "fork", "frok rows.jsonl", "fork gone.py", "fork rows.jsonl --timeout x", "docker:x rows.jsonl",
        "gone:F rows.jsonl", "json:gone rows.jsonl", "fork rows.jsonl more", "fork . ",
    ),
    "sandbox serve": (
        "more", "--port x", "--port 99999", "--workers 0", "--sessions -1", "--limits.memory-mb -5", "--sandbox frok",
        "--token-file gone", "--host 256.1.1.1 --token x", "--idle nan",
    ),
    "doctor": tuple(f"{word}{end}" for word in ("more", "--json", "fork", "--fix", "-x") for end in ("", " x")),
    "completion": (
        "tcsh", "bsh", "bash zsh", "--shell bash", "-c", "BASH", "powershell", "bash --install", "1", "fish more",
    ),
}  # fmt: skip


def told(line: str) -> str | None:
    """None where a mistake is told in one line and refused; else what happened."""
    from solostream.cli.main import main

    out, said = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(said):
        try:
            code: object = main(line.split())
        except SystemExit as stop:
            code = stop.code
    lines = said.getvalue().splitlines()
    fine = code in (1, 2) and len(lines) == 1 and lines[0].startswith("solostream: ") and len(lines[0]) < LONGEST
    return None if fine else f"exit {code}, {said.getvalue()[-300:]!r}"


if __name__ == "__main__":
    sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
    found = {line: told(f"{sys.argv[1]} {line}") for line in WRONG[sys.argv[1]]}
    print(json.dumps({line: text for line, text in found.items() if text}))
