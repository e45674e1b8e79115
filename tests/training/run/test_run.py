"""The whole job on a tiny model: repeated, killed, interrupted, resumed, refused."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gymnasium
import psutil
import pytest
import torch
from synthetic_runs import write_training_run

from solostream.agent.trajectory_file import read_lines
from solostream.cli.main import main
from solostream.envs import ToolEnv
from solostream.evaluation import training_curves
from solostream.training.config import assign, validate
from solostream.training.config import read as read_config
from solostream.training.run.checkpoint import newest
from solostream.training.run.interrupt import Interrupted
from solostream.training.run.metric_logger import read
from solostream.training.run.progress import ProgressBar, ProgressDisplay
from solostream.training.run.trainer import Trainer

TINY = Path(__file__).parent / "tiny.toml"
ROOT = Path(__file__).parents[3]
PLAIN = ["--set", "data.kinds=[]", "--set", "data.levels=[]"]  # of generated problems, which tiny.toml chooses
SCORES = {
    "accuracy", "accuracy_low", "accuracy_high", "accuracy_greedy", "code_ratio", "first_call_token", "code_pass_ratio",
    "code_rounds",
}  # fmt: skip


def arguments(root: Path, name: str, *more: str) -> list[str]:
    return ["train", str(TINY), "--name", name, "--set", f"run.root={root}", *more]


def start(root: Path, name: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "solostream", *arguments(root, name, *more)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(ready: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    while not ready():
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.02)


def steps_done(folder: Path, phase: str = "rl") -> int:
    path = folder / "metrics.jsonl"
    return sum(row["phase"] == phase for row in read(path)) if path.exists() else 0


def fingerprint(folder: Path) -> dict:
    """Everything that must not depend on how often the run was interrupted."""
    rows = [
        {k: v for k, v in row.items() if k != "time" and not k.startswith(("time/", "idle/")) and "per_s" not in k}
        for row in read(folder / "metrics.jsonl")
    ]
    trajectories = [line.trajectory for line in read_lines(folder / "trajectories.jsonl")]
    tokens = [(t.dispatch, t.reward, t.token_ids.tolist(), t.logprobs.tolist()[-4:]) for t in trajectories if t]
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    state = json.loads((newest / "trainer.json").read_text())
    return {
        "rows": rows,
        "tokens": repr(tokens),
        "weights": manifest["model.safetensors"],
        "tracker": state["reinforcement"]["tracker"],
        "sampler": state["reinforcement"]["sampler"],
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    assert main(arguments(root, "whole")) == 0
    return root / "whole"


def test_the_run_folder_holds_what_it_promises(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert set(summary["before"]) == set(summary["after"]) == SCORES
    assert (summary["seed"], summary["engine"]) == (0, "hf")
    assert summary["mismatch_max"] < 1e-4  # sampler and learner are one model in float32
    assert summary["wall_s"] == pytest.approx(sum(summary["times"].values()), abs=0.1)
    assert {"config.toml", "metrics.jsonl", "trajectories.jsonl", "plots", "checkpoints"} <= set(os.listdir(whole))
    assert {"reward.png", "entropy.png", "tracker_value.png", "accuracy.png"} <= set(os.listdir(whole / "plots"))
    lines = list(read_lines(whole / "trajectories.jsonl"))
    assert all(line.damage is None for line in lines)
    weighed = {event: advantage for line in lines for event, advantage in (line.update or {}).items()}
    played = [line.trajectory for line in lines if line.trajectory]
    assert sorted(weighed) == sorted(t.dispatch.event for t in played) == list(range(6 * 6))
    assert sum(t.n_action_tokens * weighed[t.dispatch.event] for t in played) == pytest.approx(0, abs=1e-2)  # centred


def test_every_curve_that_is_drawn_is_written_by_a_run(whole: Path, tmp_path: Path) -> None:
    def names(folder: Path) -> set[tuple[str, str]]:
        return {(row["phase"], key) for row in read(folder / "metrics.jsonl") for key in row}

    drawn = {(c.phase, c.key) for c in vars(training_curves).values() if isinstance(c, training_curves.Curve)}
    drawn |= {(c.phase, c.key) for chart in training_curves.CHARTS for c in chart.curves}
    drawn |= {("eval", key) for key in training_curves.HELD_OUT}
    assert len(drawn) == 49
    assert drawn <= names(whole)
    assert names(write_training_run(tmp_path / "made up", 40, problems=5)) <= names(whole)


def test_the_checkpoint_is_a_hugging_face_folder(whole: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = whole / "checkpoints" / "step-000006"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert next(model.parameters()).dtype == torch.float32
    state = torch.load(folder / "learner.pt", weights_only=True)
    assert state.keys() == {"optimizer"}  # the weights are in the folder, once
    assert AutoTokenizer.from_pretrained(folder).chat_template


LOCKSTEP = ["--set", "rollout.mode=lockstep", "--set", "run.price_per_hour=3.6"]


@pytest.fixture(scope="module")
def in_lockstep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lockstep")
    torch.set_num_threads(1)
    assert main(arguments(root, "whole", *LOCKSTEP)) == 0
    return root / "whole"


def test_in_lockstep_each_batch_is_one_update_older_than_what_learns_from_it(in_lockstep: Path) -> None:
    rows = [row for row in read(in_lockstep / "metrics.jsonl") if row["phase"] == "rl"]
    assert [(row["staleness/mean"], row["staleness/max"]) for row in rows] == [(0, 0)] + [(1, 1)] * 5
    played = [line.trajectory for line in read_lines(in_lockstep / "trajectories.jsonl") if line.trajectory]
    summary = json.loads((in_lockstep / "summary.json").read_text())
    assert summary["cost"] == pytest.approx(summary["wall_s"] / 1000, abs=1e-5)
    assert [t.dispatch.event for t in played] == list(range(6 * 7))  # the batch on its way when the run ended, too
    seen = [{int(v) for t in played[i : i + 6] for v in t.versions[t.action_mask]} for i in range(0, 42, 6)]
    assert seen == [{0}, {0}, {1}, {2}, {3}, {4}, {5}]
    # the first rewards come with the fourth batch: from then on what learns has moved since the batch was sampled
    assert max(row["mismatch/mean"] for row in rows[:3]) < 1e-5
    assert min(row["mismatch/mean"] for row in rows[4:]) > 1e-3


def test_in_lockstep_a_run_made_longer_later_equals_one_that_was(in_lockstep: Path, tmp_path: Path) -> None:
    assert main(arguments(tmp_path, "longer", *LOCKSTEP, "--set", "run.steps=3")) == 0
    assert main(arguments(tmp_path, "longer", "--resume", "--set", "run.steps=6")) == 0
    mine, other = fingerprint(tmp_path / "longer"), fingerprint(in_lockstep)
    evaluated = [row for row in mine["rows"] if row["phase"] == "eval" and row["step"] == 3]
    assert len(evaluated) == 1  # after the first three steps
    mine["rows"] = [row for row in mine["rows"] if row not in evaluated]
    assert mine == other


@pytest.mark.parametrize(
    ("mode", "phase", "steps"), [("sync", "cold_start", 3), ("sync", "rl", 4), ("lockstep", "rl", 4)]
)
def test_killed_at_a_random_moment_and_resumed_it_equals_the_uninterrupted_run(
    mode: str, phase: str, steps: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    whole = request.getfixturevalue("whole" if mode == "sync" else "in_lockstep")
    more = [] if mode == "sync" else LOCKSTEP
    child = start(tmp_path, "killed", *more)
    at = random.randint(1, steps)
    wait_until(lambda: steps_done(tmp_path / "killed", phase) >= at, child)
    time.sleep(random.random() * 0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert main(arguments(tmp_path, "killed", *more, "--resume")) == 0
    assert fingerprint(tmp_path / "killed") == fingerprint(whole), f"killed after step {at} of {phase}"


def evaluated(folder: Path) -> list[int]:
    return [row["step"] for row in read(folder / "metrics.jsonl") if row["phase"] == "eval"]


def test_a_kill_anywhere_around_an_evaluation_leaves_it_in_the_log_once(tmp_path: Path) -> None:
    more = ["--set", "eval.every=2"]
    assert main(arguments(tmp_path, "once", *more)) == 0
    folder = tmp_path / "once"
    first = fingerprint(folder)
    assert evaluated(folder) == [0, 2, 4, 6]

    def back_to(step: int, *, with_score: bool) -> list[int]:
        """As a kill leaves the folder that comes after the checkpoint of `step`, or after its evaluation too."""
        for late in (folder / "checkpoints").glob("step-*"):
            if int(late.name.removeprefix("step-")) > step:
                shutil.rmtree(late)
        rows = [row for row in read(folder / "metrics.jsonl") if row["step"] <= step or row["phase"] == "cold_start"]
        kept = rows if with_score else [row for row in rows if (row["phase"], row["step"]) != ("eval", step)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        assert main(arguments(tmp_path, "once", *more, "--resume")) == 0
        return evaluated(folder)

    assert back_to(6, with_score=True) == [0, 2, 4, 6]  # the report is made again
    assert back_to(4, with_score=True) == [0, 2, 4, 6]
    assert back_to(4, with_score=False) == [0, 2, 4, 6]
    assert fingerprint(folder) == first


def test_an_interruption_during_an_evaluation_keeps_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    class Stops(ProgressDisplay):
        @contextmanager
        def stage(self, title: str, total: int, done: int = 0) -> Iterator[ProgressBar]:
            with super().stage(title, total, done) as bar:
                if title == "step 3":
                    trainer.stop()
                yield bar

    settings = ("run.steps=6", "run.checkpoint_every=5", "eval.every=3", f"run.root={tmp_path}", "run.name=asked")
    trainer = Trainer(validate(assign(read_config(TINY), settings)), view=Stops())
    with pytest.raises(Interrupted):
        trainer.run()
    assert newest(tmp_path / "asked" / "checkpoints")[1].step == 3
    assert evaluated(tmp_path / "asked") == [0]
    more = ["--set", "run.checkpoint_every=5", "--set", "eval.every=3"]
    assert main(arguments(tmp_path, "asked", *more, "--resume")) == 0
    assert evaluated(tmp_path / "asked") == [0, 3, 6]
    assert [row["step"] for row in read(tmp_path / "asked" / "metrics.jsonl") if row["phase"] == "rl"] == [*range(1, 7)]


def test_a_cold_start_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Every second step is saved: what was done before the newest checkpoint is not done again."""
    folder = tmp_path / "cold"
    phases = ["--set", "cold_start.phases=[{steps=40, mix={early=1.0}}]"]
    child = start(tmp_path, "cold", *phases)
    wait_until(lambda: steps_done(folder, "cold_start") >= 5, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    torn = {row["step"]: row["time"] for row in read(folder / "metrics.jsonl")}
    assert main(["sft", *arguments(tmp_path, "cold", *phases, "--resume")[1:]]) == 0
    rows = [row for row in read(folder / "metrics.jsonl") if row["phase"] == "cold_start"]
    assert [row["step"] for row in rows] == list(range(1, 41))
    kept = [row["step"] for row in rows if torn.get(row["step"]) == row["time"]]
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) >= 4
    assert len(kept) % 2 == 0


def test_the_rate_of_a_cold_start_follows_a_phase_that_ends_early(tmp_path: Path) -> None:
    phases = "cold_start.phases=[{steps=41, mix={early=1.0}, until=90.0}, {steps=9, mix={early=1.0}}]"
    rate = "cold_start.learner={lr=1e-3, schedule='linear'}"
    assert main(["sft", *arguments(tmp_path, "early", "--set", phases, "--set", rate)[1:]]) == 0
    rows = [row for row in read(tmp_path / "early" / "metrics.jsonl") if row["phase"] == "cold_start"]
    done = [row["step"] for row in rows]  # counted from 1; 20 are judged, three more were ready
    assert done == [*range(1, 24), *range(42, 51)]
    # Of the 50 steps that were planned 18 are left out: the rate still ends at 0, and never rises.
    planned = [1 - i / 50 for i in range(23)] + [1 - i / 32 for i in range(23, 32)]
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 * share for share in planned])
    saved = json.loads((newest(tmp_path / "early" / "checkpoints")[0] / "trainer.json").read_text())
    assert saved["cold_step"] == 50


def test_a_cold_start_that_left_steps_out_goes_on_at_the_same_rate(tmp_path: Path) -> None:
    phases = "cold_start.phases=[{steps=41, mix={early=1.0}, until=90.0}, {steps=59, mix={early=1.0}}]"
    more = ["--set", phases, "--set", "cold_start.learner={lr=1e-3, schedule='linear'}"]
    child = start(tmp_path, "late", *more)
    wait_until(lambda: steps_done(tmp_path / "late", "cold_start") >= 27, child)  # 23, and some of the second phase
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert main(["sft", *arguments(tmp_path, "late", *more, "--resume")[1:]]) == 0
    rows = [row for row in read(tmp_path / "late" / "metrics.jsonl") if row["phase"] == "cold_start"]
    assert [row["step"] for row in rows] == [*range(1, 24), *range(42, 101)]
    planned = [1 - i / 100 for i in range(23)] + [1 - i / 82 for i in range(23, 82)]
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 * share for share in planned])


def used_events(folder: Path) -> tuple[list[int], set[int]]:
    """(events whose evidence the tracker holds, events outstanding) in the newest checkpoint."""
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    state = json.loads((newest / "trainer.json").read_text())["reinforcement"]
    used = [row[0] for belief in state["tracker"]["beliefs"].values() for row in belief["events"]]
    return used, {ticket["dispatch"]["event"] for ticket in state["pipeline"]["outstanding"]}


IN_PARTS = ("rollout.learn_in_parts=3", "algorithm.stages=[]", "algorithm.spo.scale=none")


@pytest.mark.parametrize(
    ("number", "settings"),
    [(signal.SIGINT, ()), (signal.SIGKILL, ()), (signal.SIGINT, IN_PARTS)],
    ids=["ctrl-c", "kill", "ctrl-c, learning in parts"],
)
def test_stopped_in_the_asynchronous_mode_nothing_is_lost_or_counted_twice(
    number: int, settings: tuple[str, ...], tmp_path: Path
) -> None:
    chosen = ("rollout.mode=async", "rollout.max_staleness=99", "run.steps=60", *settings)
    more = [word for setting in chosen for word in ("--set", setting)]
    child = start(tmp_path, "stopped", *more)
    wait_until(lambda: steps_done(tmp_path / "stopped") >= 3, child)
    children = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(number)
    output = child.communicate()[0]
    assert not psutil.wait_procs(children, 10)[1], "a child survived"
    if number == signal.SIGINT:
        assert child.returncode == 130, output
        assert "--resume goes on from it" in output
        assert "Traceback" not in output
    folder = tmp_path / "stopped"
    log = folder / "trajectories.jsonl"
    finished = {line.trajectory.dispatch.event for line in read_lines(log) if line.trajectory}
    steps = steps_done(folder) + 3
    assert main(arguments(tmp_path, "stopped", *more, "--set", f"run.steps={steps}", "--resume")) == 0
    events = [line.trajectory.dispatch.event for line in read_lines(log) if line.trajectory]
    assert finished <= set(events)
    assert len(events) == len(set(events)), "an episode ran twice"
    used, outstanding = used_events(folder)
    assert len(used) == len(set(used)) == steps * 6
    assert set(events) - set(used) <= outstanding, "a finished episode was neither used nor kept"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "learner.lrr=1"], "did you mean 'lr'"),
        (["--set", "model.path=/no/such/model"], "model.path"),
        ([*PLAIN, "--set", "data.path=/no/such/data.jsonl", "--set", "cold_start.phases=[]"], "/no/such/data.jsonl"),
        ([*PLAIN, "--set", "data.path=aime26", "--set", "cold_start.phases=[]"], "did you mean 'aime25'"),
        ([*PLAIN, "--set", "data.path=empty", "--set", "cold_start.phases=[]"], "holds no task"),
        ([*PLAIN, "--set", "data.path=binary", "--set", "cold_start.phases=[]"], "line 1: not JSON"),
        (["--set", "env.id=solostream/Arithmetik-v0"], "no environment 'solostream/Arithmetik-v0'"),
        (["--set", "env.options.colour=3"], "colour"),
        (["--set", "env.episode_tokens=5000"], "lower episode_tokens"),
        (["--set", "cold_start.phases=[{steps=1, mix={erly=1.0}}]"], "erly"),
        (["--resume", "/no/such/checkpoint"], "no checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, content in (("empty", b""), ("binary", b"\xff\xfe\x00")):
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            (tmp_path / folder / f"{split}.jsonl").write_bytes(content)
    assert main(arguments(tmp_path / "runs", "bad", *more)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "runs").exists()


class Signed(ToolEnv):
    """Rewards of −1 and 3 where others give 0 and 1."""

    async def astep(self, text):
        *seen, _, terminated, truncated, info = await super().astep(text)
        if info["ending"]:
            self.trace[-1] = replace(self.trace[-1], reward=3.0 if info["answer"] is not None else -1.0)
        return *seen, self.trace[-1].reward, terminated, truncated, info


class Broken(ToolEnv):
    """From some episode on its scoring divides zero by zero."""

    played = 0

    async def astep(self, text):
        *seen, _, terminated, truncated, info = await super().astep(text)
        if info["ending"]:
            Broken.played += 1
            self.trace[-1] = replace(self.trace[-1], reward=0.5 if Broken.played <= 43 else float("nan"))
        return *seen, self.trace[-1].reward, terminated, truncated, info


def test_a_reward_that_is_not_finite_stops_the_step_and_the_batch_is_dumped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 demonstrations, 8 evaluations, 12 episodes that start the tracker, 2 batches of 6; the third has the 44th
    of those that end with a step (three here have no room for one)."""
    gymnasium.register("broken/Broken-v0", entry_point=Broken, disable_env_checker=True)
    more = ["--set", "env.id=broken/Broken-v0"]
    assert main(arguments(tmp_path, "broken", *more)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("solostream: rewards that are not finite, mend the environment's scoring: tasks ")
    folder = tmp_path / "broken"
    dumped = [line.trajectory for line in read_lines(folder / "bad-batch-2.jsonl") if line.trajectory]
    assert len(dumped) == 6
    for t in dumped:
        assert (t.task_id in line) is math.isnan(t.reward)
    assert steps_done(folder) == 2
    Broken.played = -1000  # mended
    assert main(arguments(tmp_path, "broken", *more, "--resume")) == 0


def test_the_streams_of_a_prompt_share_its_frozen_value_and_go_their_own_way(tmp_path: Path) -> None:
    settings = ("rollout.mode=async", "algorithm.group_size=3", "algorithm.tracker.start_samples=0")
    more = [word for setting in settings for word in ("--set", setting)]
    assert main(arguments(tmp_path, "streams", *more, "--set", "cold_start.phases=[]")) == 0
    logged = [line.trajectory for line in read_lines(tmp_path / "streams" / "trajectories.jsonl") if line.trajectory]
    prompts = defaultdict(set)
    for t in logged:
        assert t.dispatch.group is None
        prompts[t.dispatch.event // 3].add((t.task_id, t.dispatch.value, t.dispatch.version))
    assert len(logged) >= 36
    assert all(len(frozen) == 1 for frozen in prompts.values())


def test_declared_rewards_are_mapped_and_others_are_refused_before_the_tracker_moves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gymnasium.register("signed/Signed-v0", entry_point=Signed, disable_env_checker=True)
    more = ["--set", "env.id=signed/Signed-v0", "--set", "run.steps=2"]
    assert main(arguments(tmp_path, "refused", *more)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"^solostream: rewards outside .0, 1., set algorithm.reward_range .*: tasks \S+ \((-1|3)\)", line)
    saved = [json.loads(p.read_text()) for p in (tmp_path / "refused" / "checkpoints").glob("*/trainer.json")]
    assert all(state["reinforcement"] is None for state in saved)  # the cold start asks for no rewards
    assert main(arguments(tmp_path, "mapped", *more, "--set", "algorithm.reward_range=[-1.0, 3.0]")) == 0
    logged = [line.trajectory for line in read_lines(tmp_path / "mapped" / "trajectories.jsonl") if line.trajectory]
    assert {t.reward for t in logged} <= {0.0, 1.0}
    assert all((t.reward == 1.0) is (t.answer is not None) for t in logged)


@pytest.mark.parametrize("cap", [0.0, 1.5])
def test_a_mismatch_is_told_and_switches_nothing(
    cap: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learner in bfloat16, a sampler in float32: TIS is what the configuration says, from first to last."""
    more = [
        "learner.dtype=bfloat16",
        "rollout.temperature=0.45",
        "run.steps=3",
        "cold_start.phases=[]",
        f"learner.tis_cap={cap}",
    ]
    assert main(arguments(tmp_path, "half", *(part for one in more for part in ("--set", one)))) == 0
    told = capsys.readouterr()
    rows = [row for row in read(tmp_path / "half" / "metrics.jsonl") if row["phase"] == "rl"]
    assert max(row["mismatch/on_policy_max"] for row in rows) > 0.01
    assert ["tis/weight" in row for row in rows] == [cap > 0] * 3
    words = " ".join((told.out + told.err).split())
    assert words.count("set learner.mask_outside = [0.5, 5.0]") == (cap == 0)
    assert words.count("no trust region bounds a stale token") == (cap > 0)  # told at the start


def test_an_existing_run_is_not_overwritten(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = fingerprint(whole)
    assert main(arguments(whole.parent, "whole")) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(arguments(whole.parent, "whole", "--resume", "--set", "learner.lr=5e-4")) == 2
    assert "another learner.lr" in capsys.readouterr().err
    assert fingerprint(whole) == before


def test_a_dry_run_prints_the_plan_of_every_run_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "runs", "plan", "--dry-run", "--set", "sweep.run.seed=[3, 4]")) == 0
    text = capsys.readouterr().out
    assert "plan-seed=3" in text
    assert "plan-seed=4" in text
    assert "episodes       68 in all" in text  # 12 start + 6 x 6 + 2 x 8 + 4 without the tool
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_refused_before_its_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep-seed=4").mkdir()
    sweep = ["--set", "sweep.run.seed=[3, 4]"]
    assert main(arguments(tmp_path, "sweep", *sweep)) == 2
    assert "sweep-seed=4 exists" in capsys.readouterr().err
    for option in (["--seed", "5"], ["--set", "run.seed=5"]):
        assert main(arguments(tmp_path, "other", *sweep, *option)) == 2
        assert "run.seed is swept and set" in capsys.readouterr().err
    assert [folder.name for folder in tmp_path.iterdir()] == ["sweep-seed=4"]
