"""Problems for a shell: a small folder of files, and a question about it or a change to make in it. Of the kind "data".

`shell:all`, or some of its kinds: `shell:count,rename`. `meta["files"]` is the folder at the start (`envs.workspace`),
`meta["wanted"]` what it must be in the end (the reward `folder`), `meta["solution"]` a command that does it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from itertools import pairwise

from solostream.envs.data.generators import Side
from solostream.envs.data.generators.sides import drawn, kinds_of
from solostream.envs.types import Task

_WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "juniper", "kestrel", "larch",
    "meadow", "nettle", "osprey", "poplar",
)  # fmt: skip
_LEVELS = ("INFO", "WARN", "ERROR")
_DONE = r" Then answer \boxed{done}."


class Shell:
    """Six kinds."""

    def __init__(self, what: str = "all", seed: int = 0) -> None:
        """Raises UserError for an unknown kind."""
        self._kinds, self._seed = {kind: _KINDS[kind] for kind in kinds_of(what, _KINDS, "shell")}, seed

    def tasks(self, side: Side, n: int) -> list[Task]:
        """`n` problems, the same each time. Raises UserError where there are not as many."""
        return drawn(self._kinds, side, n, self._seed, "shell")


def _task(
    question: str, answer: str, files: dict[str, str], solution: str, wanted: dict[str, str | None] | None
) -> Task:
    meta: dict[str, object] = {"files": {f"work/{path}": text for path, text in files.items()}, "solution": solution}
    if wanted is not None:
        meta["wanted"] = {f"work/{path}": text for path, text in wanted.items()}
    project = hashlib.blake2b(json.dumps(files).encode(), digest_size=4).hexdigest()  # so that no two prompts are alike
    return Task("", f"The current folder holds the project {project}. {question}", answer, meta=meta)


def _lines(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


def _count(rng: random.Random) -> Task:
    hosts, level = rng.sample(_WORDS, 4), rng.choice(_LEVELS)
    files, found = {}, 0
    for day in range(rng.randint(2, 4)):
        rows = [(rng.choice(hosts), rng.choice(_LEVELS), rng.randint(1, 900)) for _ in range(rng.randint(12, 30))]
        found += sum(row[:2] == (hosts[0], level) for row in rows)
        files[f"logs/day-{day + 1}.log"] = _lines([f"{host} {kind} took {ms} ms" for host, kind, ms in rows])
    question = f"How many lines under logs/ are of the host {hosts[0]} and of the level {level}?"
    return _task(question, str(found), files, f"cat logs/*.log | grep -c '^{hosts[0]} {level} '", None)


def _total(rng: random.Random) -> Task:
    regions = rng.sample(_WORDS, 3)
    rows = [(rng.choice(regions), rng.randint(10, 999)) for _ in range(rng.randint(20, 45))]
    text = _lines(["region;amount", *(f"{region};{amount}" for region, amount in rows)])
    answer = sum(amount for region, amount in rows if region == regions[0])
    solution = f"awk -F';' '$1 == \"{regions[0]}\" {{ sum += $2 }} END {{ print sum + 0 }}' sales.csv"
    return _task(
        f"What do the amounts of {regions[0]} in sales.csv sum to?", str(answer), {"sales.csv": text}, solution, None
    )


def _follow(rng: random.Random) -> Task:
    """Each file says where the next is: no single command finds the number."""
    stops = rng.sample(_WORDS, rng.randint(3, 5))
    answer = str(rng.randint(1000, 9999))
    files = {
        f"notes/{word}.txt": f"nothing here but {rng.randint(1000, 9999)}\n" for word in _WORDS if word not in stops
    }
    for here, there in pairwise(stops):
        files[f"notes/{here}.txt"] = f"look into {there}\n"
    files[f"notes/{stops[-1]}.txt"] = f"the number is {answer}\n"
    question = f"Begin with notes/{stops[0]}.txt and go on as each note says. Which number is at the end?"
    solution = " && ".join(f"cat notes/{stop}.txt" for stop in stops)
    return _task(question, answer, files, solution, None)


def _largest(rng: random.Random) -> Task:
    names = rng.sample(_WORDS, 7)
    sizes = rng.sample(range(20, 400), 7)
    files = {
        f"data/{'old/' if i % 3 == 0 else ''}{name}.bin": "x" * size
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    }
    question = "How many bytes has the largest file anywhere under data/?"
    return _task(question, str(max(sizes)), files, "find data -type f -printf '%s\\n' | sort -n | tail -1", None)


def _rename(rng: random.Random) -> Task:
    old, new = rng.sample(["txt", "log", "dat", "csv", "md"], 2)
    stay = rng.choice(["ini", "cfg", "bak"])
    files = {
        f"{name}.{stay if i == 0 else old}": f"{rng.randint(0, 999)}\n" for i, name in enumerate(rng.sample(_WORDS, 5))
    }
    wanted: dict[str, str | None] = {}
    for path, text in files.items():
        if path.endswith(old):
            wanted |= {path: None, path.removesuffix(old) + new: text}
        else:
            wanted[path] = text
    question = f"Rename every .{old} file so that it ends in .{new}, and touch no other.{_DONE}"
    return _task(question, "done", files, f'for f in *.{old}; do mv "$f" "${{f%.{old}}}.{new}"; done', wanted)


def _merge(rng: random.Random) -> Task:
    lists = [[rng.choice(_WORDS) for _ in range(rng.randint(4, 9))] for _ in range(3)]
    files = {f"part-{i + 1}.txt": _lines(words) for i, words in enumerate(lists)}
    out = rng.choice(["all", "merged", "total"]) + ".txt"
    wanted: dict[str, str | None] = {**files, out: _lines(sorted({word for words in lists for word in words}))}
    question = f"Write the words of all part files into {out}, one a line, sorted, each once.{_DONE}"
    return _task(question, "done", files, f"cat part-*.txt | sort -u > {out}", wanted)


_KINDS: dict[str, Callable[[random.Random], Task]] = {
    "count": _count, "total": _total, "follow": _follow, "largest": _largest, "rename": _rename, "merge": _merge,
}  # fmt: skip
