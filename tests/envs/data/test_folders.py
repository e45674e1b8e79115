"""What of a folder is data, where no split is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from solostream.envs.data import load, train_and_test
from solostream.envs.data.traces import read_traces
from solostream.errors import UserError

ROW = {"prompt": "What is 2 + 2?", "answer": "4"}
TRACE = {"prompt": "What is 2 + 2?", "completion": "4"}


def written(folder: Path, *names: str, row: dict[str, str] = ROW) -> Path:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        text = json.dumps(row) + "\n"
        (folder / name).write_text(f"[{text}]" if name.endswith(".json") else text)
    return folder


@pytest.mark.parametrize("name", ["dataset_infos.json", "dataset_info.json", "dataset_dict.json"])
def test_what_tells_of_data_is_none(name: str, tmp_path: Path) -> None:
    """As it lies beside the data in a checkout of the Hub: an object of objects."""
    (tmp_path / name).write_text(json.dumps({"default": {"description": "", "splits": {}}}))
    with pytest.raises(UserError, match="folder with no data file"):
        load(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "all.csv").write_text("prompt,answer\np,4\n")
    assert [task.prompt for task in load(tmp_path)] == ["p"]
    assert "part" in train_and_test(str(tmp_path))[0]  # one list, which is divided


@pytest.mark.parametrize("other", ["dataset_infos.json", "c.json", "c.csv"])
@pytest.mark.parametrize("place", ["", "data/"])
def test_files_that_are_no_set_are_not_passed_over(place: str, other: str, tmp_path: Path) -> None:
    folder = written(tmp_path, f"{place}a.jsonl", f"{place}b.jsonl", other, row=TRACE)
    told = rf"folder with (?:c\.\w+, )?{place}a\.jsonl, {place}b\.jsonl(?:, c\.\w+)?: name a file"
    with pytest.raises(UserError, match=told):
        read_traces(str(folder), ("fence",), False)
    with pytest.raises(UserError, match=told):
        load(folder)


def test_a_split_is_found_whatever_else_is_there(tmp_path: Path) -> None:
    folder = written(tmp_path, "a.jsonl", "b.jsonl", "train.json", "dataset_infos.json")
    assert len(load(folder, split="train")) == 1
