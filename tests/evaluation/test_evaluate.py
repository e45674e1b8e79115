"""`solostream eval` end to end with scripted policies, the real environment and the real fork sandbox."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import evaluation_policies
import pyarrow.parquet
import pytest

from solostream.agent.engine import EngineError
from solostream.agent.rollout import rollout, seed_of
from solostream.agent.run_settings import RunSettings
from solostream.agent.trajectory_file import read_lines
from solostream.envs.data import loader as tasks
from solostream.errors import UserError
from solostream.evaluation.evaluate import evaluate
from solostream.evaluation.options import PRESETS, EvalOptions
from solostream.evaluation.samples import read_samples

PROBLEMS = [("What is 6 * 7?", 42), ("What is 2 * 3?", 6), ("What is 12 * 12?", 144), ("What is 5 * 5?", 99)]


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "problems.jsonl"
    rows = [{"id": f"p{i}", "prompt": prompt, "answer": str(answer)} for i, (prompt, answer) in enumerate(PROBLEMS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation_policies.CALLS.clear()
    return str(path)


def options(tmp_path: Path, data: str, policy: str = "calculator", **fields) -> EvalOptions:
    return EvalOptions(f"scripted:evaluation_policies:{policy}", data=data, out=tmp_path / "out", **fields)


async def test_results_by_hand(tmp_path: Path, data: str) -> None:
    summary = await evaluate(options(tmp_path, data, k=2))
    metrics = summary["metrics"]
    assert summary["complete"]
    assert (metrics["problems"], metrics["samples"]) == (4, 8)
    assert metrics["avg"]["mean"] == metrics["maj"]["mean"] == 0.75  # the answer of the last problem is wrong
    assert [row["mean"] for row in metrics["pass"]] == [0.75, 0.75]
    six = metrics["behaviour"]
    assert (six["code_ratio"], six["code_pass_ratio"], six["code_rounds"]["mean"]) == (1.0, 1.0, 1.0)
    assert six["first_call"]["mean"] == len("Let me compute.\n")  # the scripted tokenizer has one token a byte
    assert metrics["reward_without_tool"] is None
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    lines = list(read_lines(tmp_path / "out" / "samples.jsonl"))
    assert sorted((line.record["task_id"], line.record["sample"]) for line in lines) == [
        (f"p{i}", j) for i in range(4) for j in range(2)
    ]
    table = pyarrow.parquet.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert sum(row["reward"] for row in table) == 6


async def test_resumes_with_what_is_missing(tmp_path: Path, data: str) -> None:
    await evaluate(options(tmp_path, data, k=2))
    path = tmp_path / "out" / "samples.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:3]) + b"{damaged\n" + whole[4] + whole[5][:70])
    evaluation_policies.CALLS.clear()
    summary = await evaluate(options(tmp_path, data, k=2))
    assert len(evaluation_policies.CALLS) == 2 * 4  # four samples of two turns were missing
    assert summary["complete"]
    assert summary["damaged"] == 1
    assert summary["metrics"]["samples"] == 8
    evaluation_policies.CALLS.clear()
    again = await evaluate(options(tmp_path, data, k=3))  # more samples of the same evaluation
    assert len(evaluation_policies.CALLS) == 2 * 4
    assert again["metrics"]["samples"] == 12


async def test_less_than_is_there_plays_nothing_and_describes_all(tmp_path: Path, data: str) -> None:
    whole = await evaluate(options(tmp_path, data, k=3))
    evaluation_policies.CALLS.clear()
    for fewer in ({"k": 2}, {"k": 3, "limit": 1}, {"k": 1, "limit": 2}):
        again = await evaluate(options(tmp_path, data, **fewer))
        assert again["complete"]
        assert again["metrics"] == whole["metrics"]
        assert again["config"]["k"] == 3
    assert evaluation_policies.CALLS == []
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"] == whole["metrics"]


@pytest.mark.parametrize("ids", [True, False])  # without ids an edited row is another task altogether
async def test_an_edited_problem_is_played_again_and_only_that(tmp_path: Path, ids: bool) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"id": f"p{i}", "prompt": prompt, "answer": str(answer)} for i, (prompt, answer) in enumerate(PROBLEMS)]
    rows = rows if ids else [{name: row[name] for name in ("prompt", "answer")} for row in rows]
    write = lambda: path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write()
    before = await evaluate(options(tmp_path, str(path), k=2))
    assert before["metrics"]["avg"]["mean"] == 0.75
    rows[3]["answer"] = "25"  # the corrected key of the last problem
    write()
    tasks._cached.cache_clear()  # a new process reads the file anew
    evaluation_policies.CALLS.clear()
    after = await evaluate(options(tmp_path, str(path), k=2))
    assert after["metrics"]["avg"]["mean"] == 1.0
    assert (after["replaced"], after["metrics"]["samples"], after["complete"]) == (2, 8, True)
    assert len(evaluation_policies.CALLS) == 2 * 2
    assert all("5 * 5" in text for text in evaluation_policies.CALLS)
    aside = list(read_lines(tmp_path / "out" / "replaced.jsonl"))
    assert [line.trajectory.reward for line in aside] == [0.0, 0.0]
    assert len(read_samples(tmp_path / "out")[0]) == 8


def test_a_folder_has_one_writer(tmp_path: Path, data: str) -> None:
    (tmp_path / "out").mkdir()
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.write(sys.argv[2])\n"
        "f.flush(); print('held', flush=True); sys.stdin.read()"
    )
    writer = json.dumps({"process": 77, "host": "here", "boot": "", "started": 0})
    held = [sys.executable, "-c", code, str(tmp_path / "out" / ".lock"), writer]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"is being written \(process 77 on here .*\): wait for it"):
            asyncio.run(evaluate(options(tmp_path, data)))
        assert evaluation_policies.CALLS == []
        other.stdin.close()
    assert asyncio.run(evaluate(options(tmp_path, data)))["complete"]


async def test_the_machine_is_paid_for_all_starts_of_an_evaluation(tmp_path: Path, data: str) -> None:
    first = await evaluate(options(tmp_path, data, price_per_hour=7.2))
    again = await evaluate(options(tmp_path, data, k=2, price_per_hour=7.2))
    assert first["cost"] == pytest.approx(first["wall_s"] / 500, abs=1e-6)
    assert again["machine_s"] == pytest.approx(first["wall_s"] + again["wall_s"])
    assert again["cost"] == pytest.approx(again["machine_s"] / 500, abs=1e-6)
    assert (await evaluate(options(tmp_path, data, k=2)))["cost"] is None
    with pytest.raises(UserError, match="--price-per-hour"):
        await evaluate(options(tmp_path, data, price_per_hour=-1.0))


async def test_a_start_that_failed_leaves_no_folder(tmp_path: Path, data: str) -> None:
    with pytest.raises(UserError, match="did you mean 'calculator'"):
        await evaluate(options(tmp_path, data, "calculater"))
    assert not (tmp_path / "out").exists()


async def test_another_evaluation_is_not_mixed_in(tmp_path: Path, data: str) -> None:
    await evaluate(options(tmp_path, data))
    with pytest.raises(UserError, match=r"another evaluation .*temperature was 0\.6, is 1\.0.*--out"):
        await evaluate(options(tmp_path, data, temperature=1.0))


async def test_a_model_that_did_not_open_keeps_no_other_from_the_folder(tmp_path: Path, data: str) -> None:
    with pytest.raises(UserError, match="did you mean 'calculator'"):
        await evaluate(options(tmp_path, data, "calculater"))
    assert (await evaluate(options(tmp_path, data)))["complete"]


async def test_without_tools_it_is_text_only(tmp_path: Path, data: str) -> None:
    summary = await evaluate(options(tmp_path, data, "guesser", tools=False))
    assert summary["metrics"]["avg"]["mean"] == 0.25
    assert summary["metrics"]["behaviour"]["code_ratio"] == 0.0
    assert "Python" not in evaluation_policies.CALLS[0]
    assert "step by step" in evaluation_policies.CALLS[0]


async def test_an_engine_that_stays_down_leaves_what_was_finished(tmp_path: Path, data: str, monkeypatch) -> None:
    monkeypatch.setattr("solostream.evaluation.players.ENGINE_TRIES", 1)
    asked = []
    works = evaluation_policies.calculator

    def dies(text: str) -> str:
        asked.append(text)
        if len(asked) > 4:
            raise EngineError("the server is gone: start it again")
        return works(text)

    monkeypatch.setattr(evaluation_policies, "calculator", dies)
    with pytest.raises(EngineError, match="start it again"):
        await evaluate(options(tmp_path, data, concurrency=1))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not summary["complete"]
    assert summary["metrics"]["samples"] == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "greedy", "k": 4}, "use -k 1"),
        ({"k": 0}, "at least 1"),
        ({"env_options": "{"}, "not JSON"),
        ({"env_options": "[1]"}, "must be a JSON object"),
        ({"env_options": '{"max_trun": 3}'}, "max_trun"),
        ({"env": "solostream/Maths-v0"}, "no environment"),
    ],
)
async def test_bad_options_name_the_remedy(tmp_path: Path, data: str, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        await evaluate(options(tmp_path, data, **fields))
    assert evaluation_policies.CALLS == []


def test_presets_are_the_papers() -> None:
    sampled = PRESETS["sampled"]
    assert (sampled.temperature, sampled.top_p, sampled.top_k, sampled.max_tokens) == (0.6, 0.95, 20, 32_768)
    assert EvalOptions("m", preset="greedy").sampling().temperature == 0
    assert EvalOptions("m", top_k=0).sampling() == type(sampled)(0.6, 0.95, 0)


@pytest.mark.parametrize(
    ("data", "name"),
    [("a/math-1.5", "m-math-1.5"), ("a/math-1.6", "m-math-1.6"), ("b/hard.v2.jsonl", "m-hard.v2"), (None, "m-Math-v0")],
)
def test_the_folder_of_an_evaluation_has_the_whole_name_of_its_data(data: str | None, name: str) -> None:
    assert EvalOptions("m", data=data).folder() == Path("evals") / name


def test_seeds_depend_on_the_sample_alone() -> None:
    assert seed_of(0, "p1", 0) == seed_of(0, "p1", 0)
    assert len({seed_of(s, t, i) for s in range(3) for t in ("p1", "p2") for i in range(50)}) == 300


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    place = str(Path(__file__).parents[1])
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "solostream", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120,
        env={"PYTHONPATH": f"{root}:{place}", "PATH": "/usr/bin:/bin", "HOME": str(cwd), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def test_the_command_writes_the_folder(tmp_path: Path, data: str) -> None:
    done = run("eval", "scripted:evaluation_policies:calculator", "--data", data, "-k", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "evals" / "scripted-evaluation_policies-calculator-problems"
    names = {path.name for path in folder.iterdir()}
    assert {"summary.json", "samples.jsonl", "report.html", "samples.parquet"} <= names
    assert "75.0" in done.stdout
    assert "pass@2" in done.stdout


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("http://127.0.0.1:9", "127.0.0.1:9"),
        ("/no/such/model", "no such folder"),
        ("scripted:nowhere:f", "there is no module 'nowhere'"),
    ],
)
def test_an_unreachable_model_is_one_line(tmp_path: Path, data: str, model: str, message: str) -> None:
    done = run("eval", model, "--data", data, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_strategy_of_an_evaluation(tmp_path: Path) -> None:
    """As the run played where that is the policy's way to act, else what is named; a plain episode by default."""
    assert EvalOptions("m").strategy() is rollout
    assert EvalOptions("m", rollout="window", rollout_options='{"pinned": 2}').strategy().keywords == {"pinned": 2}
    RunSettings("r", "solostream/Math-v0", {}, 1.0, 1.0, 0, 9, 99, {}, None, "window", {"turns": 3}).write(tmp_path)
    settled = EvalOptions(str(tmp_path)).settled()
    assert settled.strategy().keywords == {"turns": 3}
    assert settled.settled() == settled
    assert EvalOptions(str(tmp_path), rollout="episode").settled().strategy() is rollout
    assert "rollout" not in EvalOptions("m").identity()
    assert EvalOptions("m", rollout="window").identity()["rollout"] == "window"
    for wrong, says in (
        ({"rollout": "windw"}, "did you mean 'window'"),
        ({"rollout_options": '{"turns": 2}'}, "--rollout-options are of --rollout"),
        ({"rollout": "window", "rollout_options": '{"turn": 2}'}, "no option 'turn'"),
        ({"model": "chat:http://h#m", "rollout": "window"}, "a chat endpoint has its own context"),
    ):
        with pytest.raises(UserError, match=says):
            EvalOptions(**{"model": "m", **wrong}).strategy()
