"""Realistic runs without a model: a policy that learns to call Python early, written as real trajectories.

Used by the tests of metrics, comparison, report and viewer, and by benchmarks/viewer.py.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.envs.types import Grading, Task, ToolCall
from solostream.sandbox.types import CodeError, Execution

PROMPT = "{question} Think with Python: put code into a python block, and the final answer into \\boxed{{}}."
FILLER = [
    "Let me think about this step by step. ",
    "First I need the remainder of the product. ",
    "The numbers are large, so I should be careful here. ",
    "Wait, let me check this again – ✓ naïvely that could overflow. ",
    "I could also use Fermat's little theorem 🙂 but a direct computation is safer. ",
]


def tokenizer() -> Tokenizer:
    """A small byte-level BPE trained on the texts below."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [
        *FILLER * 4,
        PROMPT,
        "```python\nprint(12 * 34 % 56)\n```\n",
        "So the answer is \\boxed{}.",
        "NameError: name",
    ]
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=["<eos>"])
    made.train_from_iterator(corpus, trainer)
    return made


def tasks(count: int, seed: int = 0) -> list[Task]:
    """`a · b mod m`, with task i the harder the larger `i % 10`."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        a, b, m = rng.randint(11, 99), rng.randint(11, 99), rng.randint(7, 97)
        question = f"What is {a} * {b} modulo {m}?"
        meta = {"kind": ("short", "long", "prime")[i * i % 7 % 3], "level": i % 10, "abm": (a, b, m)}
        made.append(Task(f"mod-{i:05d}", question, str(a * b % m), "synthetic", meta))
    return made


def run_code(
    code: str, out: str = "", error: CodeError | None = None, status: str = "ok", s: float = 0.01
) -> Execution:
    return Execution(stdout=out, error=error, status=status, duration_s=s)  # type: ignore[arg-type]


class Writer:
    """Speaks turns into a ledger, with made-up logprobs."""

    def __init__(self, tokens: Tokenizer, rng: random.Random, version: int = 0) -> None:
        self.tokens, self.rng, self.version = tokens, rng, version
        self.ledger = TokenRecord()

    def hear(self, role: str, text: str) -> None:
        self.ledger.add_observation(role, self.tokens.encode(text).ids, text)  # type: ignore[arg-type]

    def say(self, text: str, code: str | None = None, execution: Execution | None = None, void: bool = False) -> None:
        """`text`, then (with `code`) a code block whose outcome is `execution` and is heard as the tool's turn."""
        ids = self.tokens.encode(text).ids
        calls, offsets, executions = [], [], []
        if code is not None:
            block = f"```python\n{code}\n```\n"
            calls = [ToolCall("python", {"code": code}, (len(text), len(text) + len(block)))]
            offsets, executions = [len(ids)], [execution]
            ids, text = ids + self.tokens.encode(block).ids, text + block
        logprobs = [-self.rng.expovariate(3.0) for _ in ids]
        versions = [self.version + (j > 40) for j in range(len(ids))]  # long turns straddle a weight update
        self.ledger.add_action(ids, logprobs, versions, text, calls, executions, offsets, void)
        if execution is not None:
            said = execution.stdout or (execution.error.traceback if execution.error else execution.status)
            self.hear("tool", f"```output\n{said.strip()}\n```\n")

    def close(self, task: Task, reward: float, ending: str = "answered", **fields: object) -> Trajectory:
        why = {"correct": "equal numbers" if reward > 0.5 else "other numbers"}
        grading = Grading((task.answer,), "boxed", {"correct": reward}, why)
        return self.ledger.close(
            task.id, reward, ending, **{"source": task.source, "kind": task.kind, "grading": grading, **fields}
        )  # type: ignore[arg-type]


def episode(task: Task, skill: float, tokens: Tokenizer, rng: random.Random, *, tool: bool = True, step: int = 0,
            dispatch: Dispatch | None = None) -> Trajectory:  # fmt: skip
    """One attempt. skill in [0, 1]: how likely the policy calls Python, early, and copies the result right."""
    a, b, m = task.meta["abm"]
    answer, level = int(task.answer), task.meta["level"]
    writer = Writer(tokens, rng, step)
    writer.hear("user", PROMPT.format(question=task.prompt))
    filler = "".join(rng.choices(FILLER, k=rng.randint(0, 1 + int(4 * (1 - skill)))))
    fields = {"dispatch": dispatch or Dispatch(version=step), "seed": rng.randrange(2**31)}
    luck = rng.random()
    if luck < 0.04 * (1 - skill):
        writer.say(filler + "Hmm, I am not sure how to go on.", void=True)
        return writer.close(task, 0.0, "turn_limit", **fields)
    if not tool or luck > 0.35 + 0.65 * skill:
        right = rng.random() < 0.55 - 0.05 * level
        said = str(answer if right else rng.randint(0, m - 1))
        writer.say(filler + f"So the answer is \\boxed{{{said}}}.")
        return writer.close(task, float(said == task.answer), answer=said, **fields)
    mishap = rng.random()
    if mishap < 0.25 * (1 - skill) + 0.03:
        code = f"print(modmul({a}, {b}, {m}))"
        message = "name 'modmul' is not defined"
        trace = f'Traceback (most recent call last):\n  File "<cell>", line 1\n{code}\nNameError: {message}'
        writer.say(
            filler,
            code,
            run_code(code, error=CodeError("NameError", message, trace), status="error"),
        )
    elif mishap < 0.3 * (1 - skill) + 0.04:
        code = "while True:\n    pass"
        writer.say(filler, code, run_code(code, status="timeout", s=10.0))
    code = f"a, b, m = {a}, {b}, {m}\nprint(a * b % m)"
    writer.say(filler if mishap > 0.9 else "", code, run_code(code, out=f"{answer}\n", s=rng.uniform(0.002, 0.02)))
    if rng.random() < 0.15:
        again = f"print({a} * {b} - ({a} * {b} // {m}) * {m})"
        writer.say("Let me verify. ", again, run_code(again, out=f"{answer}\n"))
    right = rng.random() < 0.8 + 0.2 * skill - 0.03 * level
    said = str(answer if right else answer + 1)
    writer.say(f"So the answer is \\boxed{{{said}}}.")
    return writer.close(task, float(said == task.answer), answer=said, **fields)


def training_records(count: int, *, per_step: int = 64, problems: int = 200, seed: int = 0) -> Iterator[dict]:
    """Trajectories of a training run as JSON records, with the extra key "step"."""
    rng, tokens = random.Random(seed), tokenizer()
    known = {task.id: [0.5, 0.5] for task in tasks(problems, seed)}
    pool = tasks(problems, seed)
    steps = max(1, math.ceil(count / per_step))
    for i in range(count):
        step = i // per_step
        task = rng.choice(pool)
        alpha, beta = known[task.id]
        value = alpha / (alpha + beta)
        dispatch = Dispatch(event=i, value=value, version=step)
        skill = 0.1 + 0.85 * (step + 1) / steps
        one = episode(task, skill, tokens, rng, step=step, dispatch=dispatch)
        known[task.id] = [0.9 * alpha + one.reward, 0.9 * beta + 1 - one.reward]
        yield {**json.loads(one.to_json()), "step": step}


def update(records: Sequence[dict]) -> dict:
    """What training writes behind `records` when it has update from them."""
    given = {r["dispatch"]["event"]: round((r["reward"] - r["dispatch"]["value"]) / 0.45, 4) for r in records}
    return {"update": records[-1]["step"] + 1, "advantages": given}


def write_training_run(folder: Path, count: int = 640, **options: int) -> Path:
    """config.toml, metrics.jsonl, summary.json, tokenizer.json and trajectories.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text('name = "synthetic"\nseed = 0\n\n[algorithm]\nadvantage = "spo"\n')
    tokenizer().save(str(folder / "tokenizer.json"))
    rows: dict[int, list[dict]] = {}
    with (folder / "trajectories.jsonl").open("w") as out:
        for record in training_records(count, **options):
            if record["step"] not in rows and rows:
                out.write(json.dumps(update(rows[record["step"] - 1])) + "\n")
            rows.setdefault(record["step"], []).append(record)
            out.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
        out.write(json.dumps(update(rows[max(rows)])) + "\n")
    rng = random.Random(1)
    with (folder / "metrics.jsonl").open("w") as out:
        for step in range(40):
            row = {"phase": "cold_start", "step": step, "time": 1.7e9 - 40 + step, "loss": 3 * 0.93**step}
            out.write(json.dumps(row) + "\n")
        for step in (0, max(rows) // 2, max(rows) + 1):  # as the steps of the held-out problems
            skill = step / (max(rows) + 1)
            row = {"phase": "eval", "step": step, "time": 1.7e9 + 3 * step, "accuracy": 0.25 + 0.5 * skill,
                   "accuracy_greedy": 0.3 + 0.5 * skill, "code_ratio": 0.6 + 0.3 * skill,
                   "first_call_token": 40 - 30 * skill, "code_pass_ratio": 0.7, "code_rounds": 1.2}  # fmt: skip
            out.write(json.dumps(row) + "\n")
        for step, records in rows.items():
            reward = sum(r["reward"] for r in records) / len(records)
            calls = [t.first_call_token for t in map(Trajectory.from_dict, records)]
            called = [token for token in calls if token is not None]
            row = {
                "phase": "rl",
                "step": step,
                "time": 1.7e9 + 3 * step,
                "reward/mean": reward,
                "code/first_call_token": sum(called) / len(called) if called else None,
                "code/ratio": len(called) / len(calls),
                "learner/loss": -0.1 * reward + rng.gauss(0, 0.01),
                "learner/entropy": 0.9 - 0.5 * reward,
                "clip/low": rng.uniform(0, 0.1),
                "clip/high": rng.uniform(0, 0.1),
                "tracker/value": sum(r["dispatch"]["value"] for r in records) / len(records),
                "time/learn_s": rng.uniform(2, 3),
            }
            out.write(json.dumps(row) + "\n")
    (folder / "summary.json").write_text(json.dumps({"reward": reward, "trajectories": count}))
    return folder


def evaluation_records(problems: int, k: int, skill: float, *, tool: bool = True, seed: int = 0) -> Iterator[dict]:
    rng, tokens = random.Random(seed), tokenizer()
    for task in tasks(problems):
        for sample in range(k):
            yield {**json.loads(episode(task, skill, tokens, rng, tool=tool).to_json()), "sample": sample}


def write_evaluation(folder: Path, problems: int = 40, k: int = 8, skill: float = 0.7, **options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "samples.jsonl").open("w") as out:
        for record in evaluation_records(problems, k, skill, **options):  # type: ignore[arg-type]
            out.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
    return folder
