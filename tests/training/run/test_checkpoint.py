from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from solostream.errors import UserError
from solostream.training.run import checkpoint
from solostream.training.run.checkpoint import State, complete, load, newest, repair, save, set_aside


def write_weights(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights")


def state(step: int) -> State:
    return State(step, {"note": step * 10}, {"moment": torch.full((3,), float(step))})


def test_what_is_saved_is_loaded_and_the_oldest_go(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, state(step), write_weights, keep=2)
    assert [p.name for p in complete(tmp_path)] == ["step-000002", "step-000003"]
    folder, loaded = newest(tmp_path)
    assert (folder.name, loaded.step, loaded.plain["note"]) == ("step-000003", 3, 30)
    assert loaded.tensors["moment"].tolist() == [3.0, 3.0, 3.0]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: flip(folder / "model.bin"),
        lambda folder: flip(folder / "trainer.pt"),
        lambda folder: (folder / "trainer.json").unlink(),
        lambda folder: (folder / "trainer.pt").write_bytes(b""),
        lambda folder: (folder / checkpoint.MANIFEST).write_text("{"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, harm) -> None:
    for step in (1, 2):
        save(tmp_path, state(step), write_weights, keep=3)
    harm(tmp_path / "step-000002")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load(tmp_path / "step-000002")
    with pytest.warns(UserWarning, match=r"step-000002.*trying the one before it"):
        assert newest(tmp_path)[1].step == 1


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    save(tmp_path, state(1), write_weights, keep=1)

    def fail(folder: Path) -> None:
        (folder / "model.bin").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, state(2), fail, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_the_same_step_is_replaced_and_a_kill_between_the_renames_is_mended(tmp_path: Path) -> None:
    save(tmp_path, state(1), write_weights, keep=1)
    save(tmp_path, State(1, {"note": 99}, {}), write_weights, keep=1)
    assert newest(tmp_path)[1].plain["note"] == 99
    os.rename(tmp_path / "step-000001", tmp_path / ".old-step-000001")
    assert complete(tmp_path) == []
    repair(tmp_path)
    assert [p.name for p in complete(tmp_path)] == ["step-000001"]
    assert newest(tmp_path)[1].plain["note"] == 99


def test_the_draft_of_a_killed_process_goes_with_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".draft-000001-4711").mkdir()
    (tmp_path / ".draft-000001").mkdir()
    save(tmp_path, state(2), write_weights, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000002"]


def test_what_comes_after_the_one_that_is_gone_on_from_is_kept_aside(tmp_path: Path) -> None:
    """Also a damaged one that was passed over, and one that a kill had left between two names."""
    for step in (1, 2, 3, 4):
        save(tmp_path, state(step), write_weights, keep=9)
    flip(tmp_path / "step-000003" / "model.bin")
    os.rename(tmp_path / "step-000004", tmp_path / ".old-step-000004")
    said: list[str] = []
    source = tmp_path / "step-000002"
    set_aside(tmp_path, source, load(source), said.append)
    set_aside(tmp_path, source, load(source), said.append)
    (line,) = said
    assert line.startswith("step-000003, step-000004 in ")
    assert newest(tmp_path)[1].step == 2
    save(tmp_path, state(3), write_weights, keep=1)
    assert [p.name for p in complete(tmp_path)] == ["step-000003"]
    assert load(tmp_path / "abandoned-step-000004").step == 4
    assert (tmp_path / "abandoned-step-000003").is_dir()
    other = tmp_path / "other"  # a run that goes on from another folder's checkpoint leaves its own of that step, too
    save(other, state(3), write_weights, keep=1)
    set_aside(other, tmp_path / "step-000003", state(3), said.append)
    assert complete(other) == []


def test_without_any_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no whole checkpoint in .*--name"):
        newest(tmp_path)


def test_killed_while_saving_there_is_always_a_whole_one(tmp_path: Path) -> None:
    code = """
        import itertools, sys, torch
        from pathlib import Path
        from solostream.training.run.checkpoint import State, save
        def weights(folder): (folder / "model.bin").write_bytes(b"w" * 200_000)
        for step in itertools.count(1):
            save(Path(sys.argv[1]), State(step, {}, {"m": torch.full((50_000,), float(step))}), weights, keep=2)
            print(step, flush=True)
    """
    for life in range(3):
        root = tmp_path / str(life)
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(root)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        seen = [child.stdout.readline() for _ in range(3)]
        time.sleep(0.003 * life)
        child.send_signal(signal.SIGKILL)
        seen += child.stdout.read().splitlines()
        child.wait()
        loaded = newest(root)[1]
        assert loaded.step >= int(seen[-1])
        assert loaded.tensors["m"][0] == loaded.step
