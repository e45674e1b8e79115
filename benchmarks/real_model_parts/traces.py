"""The traces that come with the package: a problem, one call of Python, its real output, the answer.

`python benchmarks/real_model_parts/traces.py` writes them anew. The problems are reasoning-gym's, of its training side;
the code follows from what the library says of each problem, and what it prints is what the sandbox printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from solostream.envs import data
from solostream.sandbox import Interpreter

FILE = Path(__file__).parents[2] / "envs" / "data" / "problems" / "first-calls.jsonl"
N = 120
CODE: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "chain_sum": lambda m: f"print({m['expression']})",
    "products": lambda m: f"print({m['expression']})",
    "gcd": lambda m: f"import math\nprint(math.gcd({', '.join(map(str, m['numbers']))}))",
    "count_bits": lambda m: f'print(bin({m["number"]}).count("1"))',
}


def main() -> None:
    tasks = data.load(f"reasoning-gym:{','.join(CODE)}", split="train", limit=N, seed=1)
    rows = []
    with Interpreter() as python:
        for task in tasks:
            code = CODE[task.meta["kind"]](task.meta["row"]["metadata"])
            printed = python.run(code).stdout.strip()
            assert printed == task.answer, (task.prompt, code, printed, task.answer)
            messages = [
                {"role": "user", "content": task.prompt},
                {"role": "assistant", "content": f"```python\n{code}\n```\n"},
                {"role": "tool", "content": printed},
                {"role": "assistant", "content": f"\\boxed{{{task.answer}}}"},
            ]
            rows.append({"task_id": task.id, "messages": messages})
    FILE.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} traces: {FILE}")


if __name__ == "__main__":
    main()
