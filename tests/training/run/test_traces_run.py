"""`solostream sft` and the cold start of `train` on traces: learnt, held out, resumed, refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from solostream.agent.chat_template import CHATML
from solostream.cli.main import main
from solostream.envs.data.arithmetic import generate
from solostream.training.config import assign, validate
from solostream.training.config import read as read_config
from solostream.training.run.interrupt import Interrupted
from solostream.training.run.metric_logger import read
from solostream.training.run.trainer import Trainer
from solostream.training.sft.trace_set import TraceSet

TINY = Path(__file__).parent / "tiny.toml"


def openai(ask: str, code: str, shown: str, end: str) -> dict[str, Any]:
    function = {"name": "python", "arguments": json.dumps({"code": code})}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "type": "function", "function": function}]}
    told = {"role": "tool", "tool_call_id": "a", "content": shown}
    return {"messages": [{"role": "user", "content": ask}, call, told, {"role": "assistant", "content": end}]}


def retool(ask: str, code: str, shown: str, end: str) -> dict[str, Any]:
    said = f"<code>\n```python\n{code}\n```\n</code>\n<interpreter>\n{shown}\n</interpreter>\n\n{end}"
    return {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": said}]}


def sharegpt(ask: str, code: str, shown: str, end: str) -> dict[str, Any]:
    turns = {"human": ask, "gpt": f"```python\n{code}\n```\n", "observation": shown}
    told = [{"from": who, "value": text} for who, text in turns.items()]
    return {"conversations": [*told, {"from": "gpt", "value": end}]}


def completion(ask: str, code: str, shown: str, end: str) -> dict[str, Any]:
    return {"prompt": ask, "completion": f"```python\n{code}\n```\n\n```output\n{shown}\n```\n{end}"}


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Thirty solved problems; the last one claims another output than its code has."""
    path = tmp_path / "traces.jsonl"
    rows = []
    for task in generate(30, seed=5, split="train", kinds=["gcd"], levels=[1]):
        call = f"```python\n{task.meta['code']}\n```\n"
        shown = task.answer if len(rows) < 29 else "17 apples"
        messages = [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": call}]
        messages += [{"role": "tool", "content": shown}]
        rows.append({"messages": [*messages, {"role": "assistant", "content": f"\\boxed{{{task.answer}}}"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sft(tmp_path: Path, traces: Path, name: str, *more: str, command: str = "sft", resume: bool = False) -> int:
    settings = [f"run.root={tmp_path}", f"cold_start.data={traces}", "cold_start.phases=[]", *more]
    return main(
        [command, str(TINY), "--name", name, *(part for s in settings for part in ("--set", s)), *["--resume"] * resume]
    )


def losses(folder: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read(folder / "metrics.jsonl") if row["phase"] == "cold_start" and name in row]


def test_it_learns_holds_out_and_leaves_out(tmp_path: Path, traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("cold_start.steps=24", "cold_start.held_out=0.2", "cold_start.eval_every=12", "cold_start.verify=true")
    assert sft(tmp_path, traces, "a", *more) == 0
    said = capsys.readouterr().out
    assert "verify leaves out 1 of 30 traces: line 30: the sandbox gives another output" in said
    assert len(losses(tmp_path / "a")) == 24
    assert losses(tmp_path / "a")[-1] < 0.7 * losses(tmp_path / "a")[0]
    held_out = losses(tmp_path / "a", "held_out_loss")
    assert len(held_out) == 2
    assert held_out[1] < held_out[0]
    assert len(losses(tmp_path / "a", "held_out_accuracy")) == 1
    assert json.loads((tmp_path / "a" / "verified-traces.json").read_text()) == list(range(1, 30))
    assert list((tmp_path / "a" / "checkpoints").glob("step-*"))


def test_every_layout_is_verified_and_learnt_as_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve solved problems, two with an output that their code does not have: equal losses to the last bit."""
    found = {}
    for layout in (openai, retool, sharegpt, completion):
        path = tmp_path / f"{layout.__name__}.jsonl"
        rows = []
        for i, task in enumerate(generate(12, seed=7, split="train", kinds=["lcm"], levels=[1])):
            shown = "no number" if i in (3, 8) else task.answer
            rows.append(layout(task.prompt, task.meta["code"], shown, f"\\boxed{{{task.answer}}}"))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert sft(tmp_path, path, layout.__name__, "cold_start.verify=true", "cold_start.steps=4") == 0
        said = capsys.readouterr().out
        assert "verify leaves out 2 of 12 traces: line 4, 9: the sandbox gives another output" in said
        found[layout.__name__] = losses(tmp_path / layout.__name__)
    assert len(found["openai"]) == 4
    assert len(set(found["openai"])) == 4
    assert all(curve == found["openai"] for curve in found.values())


def test_reinforcement_learning_imitates_the_traces_beside_its_batches(tmp_path: Path, traces: Path) -> None:
    """Two updates, then a third after a resume: the very one of a run that never stopped."""
    more = (
        "cold_start.steps=2",
        'learner.imitation={loss="one_token", weight=0.5, batch=4}',
        "algorithm.advantage=none",
    )
    more += ("algorithm.stages=[]", "rollout.mode=sync", "eval.greedy=false", "run.checkpoint_every=1")
    assert sft(tmp_path, traces, "whole", *more, "run.steps=3", command="train") == 0
    assert sft(tmp_path, traces, "parts", *more, "run.steps=2", command="train") == 0
    assert sft(tmp_path, traces, "parts", *more, "run.steps=3", command="train", resume=True) == 0
    said = [
        [row["imitation/loss"] for row in read(tmp_path / name / "metrics.jsonl") if "imitation/loss" in row]
        for name in ("whole", "parts")
    ]
    assert said[0] == said[1]
    assert len(set(said[0])) == 3


def test_once_through_is_the_default_and_a_resumed_run_sees_the_same(tmp_path: Path, traces: Path) -> None:
    assert sft(tmp_path, traces, "whole") == 0
    whole = losses(tmp_path / "whole")
    assert len(whole) == 8  # thirty traces, four a step
    code = (
        "import sys; from solostream.training.run import trainer\n"
        "step = trainer.Trainer._measure_cold_start\n"
        "async def stop(self, learner, total):\n"
        "    if self.cold_step == 3: self.interrupt.ask()\n"
        "    return await step(self, learner, total)\n"
        "trainer.Trainer._measure_cold_start = stop\n"
        "from solostream.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    root = str(Path(__file__).parents[3])
    settings = [f"run.root={tmp_path}", f"cold_start.data={traces}", "cold_start.phases=[]"]
    command = ["sft", str(TINY), "--name", "cut", *(part for s in settings for part in ("--set", s))]
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 130, done.stderr
    assert 3 <= len(losses(tmp_path / "cut")) < 8
    assert main([*command, "--resume"]) == 0
    assert losses(tmp_path / "cut") == pytest.approx(whole, rel=1e-4)


def test_what_is_wrong_is_one_line(tmp_path: Path, traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sft(tmp_path, tmp_path / "nowhere.jsonl", "b") == 2
    assert "there are no traces" in capsys.readouterr().err
    with traces.open("a", encoding="utf-8") as file:
        file.write('{"text": "x"}\nnonsense\n')
    assert sft(tmp_path, traces, "c") == 2
    said = capsys.readouterr().err
    assert "line 31: no messages" in said
    assert "line 32: not JSON" in said
    assert "cold_start.skip_bad" in said
    assert said.count("\n") == 1
    assert sft(tmp_path, traces, "d", "cold_start.skip_bad=true") == 0
    assert "left out line 31" in capsys.readouterr().out
    assert main(["sft", str(TINY), "--set", "cold_start.data=x"]) == 2
    assert "leave one of them away" in capsys.readouterr().err
    assert main(["sft", str(TINY), "--set", "cold_start.verify=true"]) == 2
    assert "verify needs cold_start.data" in capsys.readouterr().err


def test_the_syntax_and_the_thought_of_the_template_are_taken_on(
    tmp_path: Path, traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`auto` with a template that teaches Hermes' calls and opens a thought: the trace of a call is learnt as such."""
    template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif") + "{# <tool_call> #}"
    (tmp_path / "thinks.jinja").write_text(template)
    more = (f"model.chat_template={tmp_path / 'thinks.jinja'}", 'env.options={syntax="auto"}', "cold_start.steps=3")
    assert sft(tmp_path, traces, "auto", *more) == 0, capsys.readouterr().err
    assert len(losses(tmp_path / "auto")) == 3


def test_an_interruption_while_traces_are_verified_ends_it(
    tmp_path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a checkpoint and no half of a verification; a resumed run does it anew, and learns as one that never
    stopped.
    """
    settings = ("cold_start.phases=[]", "cold_start.verify=true", f"cold_start.data={traces}", f"run.root={tmp_path}")
    trainer = Trainer(validate(assign(read_config(TINY), [*settings, "run.name=cut"])), cold_start_only=True)
    verify = TraceSet.verify

    async def stopped(self: TraceSet, folder: Path) -> None:
        trainer.stop()
        await verify(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(TraceSet, "verify", stopped)
        with pytest.raises(Interrupted):
            trainer.run()
    assert not (tmp_path / "cut" / "verified-traces.json").exists()
    assert len(list((tmp_path / "cut" / "checkpoints").glob("step-*"))) == 1
    assert sft(tmp_path, traces, "cut", "cold_start.verify=true", resume=True) == 0
    assert sft(tmp_path, traces, "whole", "cold_start.verify=true") == 0
    assert json.loads((tmp_path / "cut" / "verified-traces.json").read_text()) == list(range(1, 30))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_what_tests_the_run_is_not_imitated(tmp_path: Path, traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Traces of all problems, with the very file that they are of: the tenth that is held out is left out of them."""
    tasks = generate(30, seed=5, split="train", kinds=["gcd"], levels=[1])
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": t.prompt, "answer": t.answer}) + "\n" for t in tasks))
    given = (f"data.path={path}", "data.kinds=[]", "data.levels=[]", "run.name=own", f"cold_start.data={traces}")
    given = (*given, "cold_start.phases=[]", f"run.root={tmp_path}", "data.train=9", "data.test=9")
    trainer = Trainer(validate(assign(read_config(TINY), given)))
    held_out = {task.prompt for task in trainer.parts.test}
    assert 0 < len(held_out) < 9
    told = f"{len(held_out)} of 30 traces are of held-out problems: left out of training"
    assert told in capsys.readouterr().out
    assert trainer.traces is not None
    learnt = [trainer.parts.tokenizer.decode(ids) for step in range(9) for ids, _ in trainer.traces.batch(step)]
    assert len(learnt) == 30 - len(held_out)
    assert not [text for text in learnt for prompt in held_out if prompt in text]

    rows = [json.loads(line) for line in traces.read_text(encoding="utf-8").splitlines()]
    of_test = [row for row in rows if row["messages"][0]["content"] in held_out]
    of_test[0]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    of_test[0]["messages"][1]["content"] += "\n"
    traces.write_text("".join(json.dumps(row) + "\n" for row in of_test), encoding="utf-8")
    assert main(["sft", str(TINY), *(part for one in given for part in ("--set", one))]) == 2
    said = capsys.readouterr().err
    assert "is of a held-out problem" in said
    assert said.count("\n") == 1
