"""Tasks from files, the Hub's cache, mixtures: on files made here."""

import copy
import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from solostream.envs.data import dedup, load, loader, mix, rows, sources, split, tasks
from solostream.envs.types import Task
from solostream.errors import UserError

GOOD = [{"prompt": "1+1?", "answer": 2}, {"prompt": "2+2?", "answer": "4", "id": "b"}]


def jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def key(found):
    return [(task.prompt, task.answer) for task in found]


def test_all_formats_hold_the_same_tasks(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    jsonl(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    (tmp_path / "a.csv").write_text("prompt,answer,id\n1+1?,2,\n2+2?,4,b\n")
    parquet.write_table(
        pa.table({"prompt": ["1+1?", "2+2?"], "answer": ["2", "4"], "id": [None, "b"]}), tmp_path / "a.parquet"
    )
    expected = [("1+1?", "2"), ("2+2?", "4")]
    for suffix in ("jsonl", "json", "csv", "parquet"):
        found = load(tmp_path / f"a.{suffix}")
        assert key(found) == expected
        assert [task.id for task in found] == ["0e99efdb8628054c", "b"]  # of the content: the same in every process


def test_columns_reach_into_nested_values(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "1+1?"}],
        "reward_model": {"ground_truth": "2"},
        "a.b": 7,
        "level": 3,
    }
    columns = {"prompt": "prompt.0.content", "answer": "reward_model.ground_truth", "level": "level", "dotted": "a.b"}
    (task,) = load(jsonl(tmp_path / "a.jsonl", [row]), columns=columns)
    assert (task.prompt, task.answer, task.meta) == ("1+1?", "2", {"level": 3, "dotted": 7, "row": row})


BAD = [
    GOOD[0],
    '{"prompt": "cut off"',
    {"question": "?", "answer": "1"},
    "",
    {"prompt": " ", "answer": "1"},
    {"prompt": "3+3?", "answer": True},
    {"prompt": "4+4?", "answer": None},
    {"prompt": "1+1?", "answer": "3"},
    "[1]",
    GOOD[1],
    {"prompt": "5?", "answer": "5", "id": "b"},
    {"prompt": "6\ud800", "answer": "5"},
]


def test_every_bad_row_is_reported_with_its_line(tmp_path, caplog):
    path = jsonl(tmp_path / "bad.jsonl", BAD)
    with pytest.raises(UserError) as caught:
        load(path)
    report = str(caught.value)
    assert "\n" not in report
    first = rows._content_id("1+1?", "2")
    for found in (
        "line 2: not JSON",
        "line 3: no 'prompt' (it has: question, answer)",
        "line 5: 'prompt' is empty",
        "line 6: 'answer' is not text",
        "line 7: no 'answer'",
        f"line 8: the prompt of task {first} again, with another answer",
        "line 9: not an object but list",
        "line 11: the id 'b' again, for another prompt",
        "line 12: 'prompt' holds a lone surrogate",
    ):
        assert found in report
    with caplog.at_level(logging.WARNING):
        assert key(load(path, skip_bad=True)) == [("1+1?", "2"), ("2+2?", "4")]
    assert "line 5: 'prompt' is empty" in caplog.text


def test_equal_faults_are_gathered(tmp_path):
    rows = [{"question": "?"}] * 3 + [{"prompt": "x", "answer": ""}] + [{"question": "?"}]
    with pytest.raises(UserError, match=r"lines 1-3, 5: no 'prompt'"):
        load(jsonl(tmp_path / "a.jsonl", rows))


def test_csv_lines_count_line_breaks_in_cells(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,answer\n"two\nlines",1\n,2\n')
    with pytest.raises(UserError, match="line 4: 'prompt' is empty"):
        load(tmp_path / "a.csv")


def test_bytes_that_are_no_text_and_cells_without_end_are_bad_rows(tmp_path):
    csv, lines = tmp_path / "a.csv", tmp_path / "a.jsonl"
    csv.write_bytes(b"prompt,answer\n\xff,1\n" + b"x" * 200_000 + b",1\n1+1?,2\n3,4,5\n")
    with pytest.raises(UserError) as caught:
        load(csv)
    for found in ("line 2: 'prompt' holds a lone", "line 3: not CSV (field larger", "line 5: more cells than"):
        assert found in str(caught.value)
    assert key(load(csv, skip_bad=True)) == [("1+1?", "2")]
    lines.write_bytes(b'{"prompt": "\xff"}\n' + b"[" * 100_000 + b'\n{"prompt": "x", "answer": NaN}\n')
    with pytest.raises(UserError, match=r"line 1: not UTF-8 text; line 2: not JSON .*line 3: 'answer' is nan"):
        load(lines)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aime52", "did you mean 'aime25'"),
        ("qwxyz", "one of: dapo-math-17k"),
        ("no/such/file.jsonl", "no data"),
        ("missing.jsonl", "no data"),
    ],
)
def test_what_is_nowhere(name, message):
    with pytest.raises(UserError, match=message):
        load(name)


def test_files_and_folders_and_their_splits(tmp_path):
    jsonl(tmp_path / "test.jsonl", GOOD)
    assert len(load(tmp_path, split="test")) == 2
    assert len(load(tmp_path / "test.jsonl", split="test")) == 2
    with pytest.raises(UserError, match="test_share divides the file"):
        load(tmp_path / "test.jsonl", split="train")
    with pytest.raises(UserError, match=r"folder with test\.jsonl"):
        load(tmp_path, split="train")
    with pytest.raises(UserError, match="must end in one of"):
        load(jsonl(tmp_path / "a.txt", GOOD))
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(UserError, match="no Parquet file"):
        load(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="holds no task"):
        load(jsonl(tmp_path / "none.jsonl", []))


def test_an_answer_within_its_solution(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "?", "answer": "so 3#### no\n#### 1,234"}])
    assert load(path, answer_after="####")[0].answer == "1,234"
    with pytest.raises(UserError, match="holds no 'so:'"):
        load(path, answer_after="so:")


# preset -> a row as its data set has it, and the task it must become
ROWS = {
    "dapo-math-17k": ({"prompt": "p", "solution": "34", "data_source": "math_dapo"}, ("p", "34")),
    "aime24": (
        {"id": 60, "problem": "p", "solution": "long", "answer": "204", "url": "u", "year": "2024"},
        ("p", "204"),
    ),
    "aime25": ({"problem_idx": 1, "problem": "p", "answer": 70, "problem_type": ["x"]}, ("p", "70")),
    "hmmt25": ({"problem_idx": 1, "problem": "p", "answer": "103", "problem_type": ["x"]}, ("p", "103")),
    "brumo25": ({"problem_idx": 1, "problem": "p", "answer": "1/2", "problem_type": ["x"]}, ("p", "1/2")),
    "beyond-aime": ({"problem": "p", "answer": 281}, ("p", "281")),
    "math-500": (
        {"problem": "p", "solution": "s", "answer": "x", "subject": "Algebra", "level": 2, "unique_id": "test/1.json"},
        ("p", "x"),
    ),
    "gsm8k": ({"question": "p", "answer": "48/2 = <<48/2=24>>24\n#### 72"}, ("p", "72")),
}


@pytest.mark.parametrize("name", loader.PRESETS)
def test_presets_map_the_columns_of_their_data_sets(name, tmp_path):
    """The data sets cannot be downloaded here: the rows above are of their published form."""
    row, expected = ROWS[name]
    preset = loader.PRESETS[name]
    path = jsonl(tmp_path / "a.jsonl", [row])
    (task,) = load(path, columns={"id": "none", **preset.columns}, answer_after=preset.answer_after)
    assert (task.prompt, task.answer) == expected


def offline(code, home):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_what_hf_download_left_is_loaded_without_a_network(tmp_path):
    """The Hub cache's own layout; `datasets` alone does not look there when it is offline."""
    import pyarrow as pa
    from pyarrow import parquet

    repository = tmp_path / "hub" / "datasets--openai--gsm8k"
    commit = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    files = repository / "snapshots" / commit
    (files / "main").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name, answer in (("train", "#### 1"), ("test", "6*7=42\n#### 42")):
        table = pa.table({"question": [f"{name}?"], "answer": [answer]})
        parquet.write_table(table, files / "main" / f"{name}-00000-of-00001.parquet")
    card = "configs:\n- config_name: main\n  data_files:\n"
    card += "".join(f"  - split: {name}\n    path: main/{name}-*\n" for name in ("train", "test"))
    (files / "README.md").write_text(f"---\n{card}---\n")
    code = "from solostream.envs.data import load\nfor split in (None, 'train'): print(*load('gsm8k', split=split))"
    done = offline(code, tmp_path)
    test, train = done.stdout.splitlines()
    assert "prompt='test?', answer='42'" in test
    assert "id='gsm8k/" in test  # of no other preset
    assert "prompt='train?'" in train
    wrong = offline("from solostream.envs.data import load\nload('gsm8k', split='tset')", tmp_path)
    assert "UserError: openai/gsm8k: Unknown split" in wrong.stderr.strip().splitlines()[-1]
    for table in (files / "main").iterdir():
        table.unlink()  # an interrupted download
    assert (
        "openai/gsm8k cannot be loaded: it is not in the cache"
        in offline("from solostream.envs.data import load\nload('gsm8k')", tmp_path).stderr
    )


def test_a_data_set_that_is_out_of_reach_names_the_remedy():
    done = offline("from solostream.envs.data import load\nload('aime25')", "/nonexistent")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("solostream.errors.UserError: data set MathArena/aime_2025 cannot be loaded: it is")
    assert "hf download --repo-type dataset MathArena/aime_2025" in last


def test_a_local_data_set_through_the_datasets_library(tmp_path, monkeypatch):
    """The Hub's path end to end: `datasets` reads a folder named org/name just as it would the cache."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    jsonl(folder / "test.jsonl", [{"question": "1+1?", "answer": "it is\n#### 2"}])
    monkeypatch.chdir(tmp_path)
    found = sources.hub_rows("org/name", None, "test")
    columns = {"prompt": "question", "answer": "answer"}
    assert key(rows.gathered(found, rows.Reader("x", columns, answer_after="####"), "row")) == [("1+1?", "2")]
    with pytest.raises(UserError, match="Should be one of"):
        list(sources.hub_rows("org/name", None, "trian"))


def numbered(prefix, n):
    return [Task(f"{prefix}{i}", f"{prefix} {i}?", str(i)) for i in range(n)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is X?", "What is X?  \n", True),
        ("a\nb", "a\r\nb", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("Is A = 3?", "Is a = 3?", False),
        ("for x in y:\n    a()\n    b()", "for x in y:\n    a()\nb()", False),
        ("a  b", "a b", False),
    ],
)
def test_dedup_keeps_problems_that_differ_in_case_or_indentation(one, other, same):
    kept = dedup([Task("a", one, "1"), Task("b", other, "1"), Task("c", "another", "1")])
    assert [task.id for task in kept] == (["a", "c"] if same else ["a", "b", "c"])


def test_problems_that_differ_in_their_first_indentation_are_two(tmp_path):
    rows = [{"prompt": "\n  x = 1\nWhat is x?", "answer": 1}, {"prompt": "x = 1\nWhat is x?", "answer": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [task.prompt for task in load(tmp_path / "a.jsonl")] == ["  x = 1\nWhat is x?", "x = 1\nWhat is x?"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-8"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_byte_order_marks_are_no_text(encoding, suffix, tmp_path):
    text = {
        ".jsonl": '{"prompt": "Wie viel ist 2·3?", "answer": 6}\n{"prompt": "数", "answer": 7}\n',
        ".json": '[{"prompt": "Wie viel ist 2·3?", "answer": 6}, {"prompt": "数", "answer": 7}]',
        ".csv": "prompt,answer\nWie viel ist 2·3?,6\n数,7\n",
    }[suffix]
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / f"a{suffix}").write_bytes((mark + text).encode(encoding))
    assert [(t.prompt, t.answer) for t in load(tmp_path / f"a{suffix}")] == [("Wie viel ist 2·3?", "6"), ("数", "7")]


def test_files_that_were_joined_have_marks_within(tmp_path):
    part = '\ufeff{"prompt": "p%d", "answer": 1}\n'
    (tmp_path / "a.jsonl").write_text(part % 1 + part % 2 + "\ufeff\n", encoding="utf-8")
    assert [task.prompt for task in load(tmp_path / "a.jsonl")] == ["p1", "p2"]


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"],
        ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
        ["train/part-9.jsonl", "train/part-10.jsonl", "test/part-0.jsonl"],
        ["train_9.jsonl", "train_10.jsonl", "test.jsonl"],
    ],
)
def test_a_folder_of_parts_is_one_data_set(names, tmp_path):
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"prompt": f"p{i}", "answer": str(i)}))
    assert [task.prompt for task in load(tmp_path, split="train")] == ["p0", "p1"]
    assert [task.prompt for task in load(tmp_path, split="test")] == ["p2"]
    if len({Path(name).parent for name in names}) > 1:
        assert [task.prompt for task in load(tmp_path / "train")] == ["p0", "p1"]


def test_missing_parts_and_bad_rows_of_parts_are_named(tmp_path):
    for i in (0, 2):
        (tmp_path / f"train-{i:05}-of-00003.jsonl").write_text(json.dumps({"prompt": f"p{i}", "answer": str(i)}))
    with pytest.raises(UserError, match=r"1 of the 3 parts train-\* are missing, first 1\b"):
        load(tmp_path, split="train")
    (tmp_path / "train-00001-of-00003.jsonl").write_text('{"prompt": ""}')
    with pytest.raises(UserError, match=r"of 3 files, row 2: 'prompt' is empty"):
        load(tmp_path, split="train")


def test_an_answer_may_be_a_list_of_those_that_are_right(tmp_path):
    rows = [
        {"prompt": "p", "answer": ["1/2", "0.5", "1/2"]},
        {"prompt": "q", "answer": ["7"]},
        {"prompt": "r", "answer": 3},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    one, two, three = load(tmp_path / "a.json")
    assert (one.answer, one.accepted, two.accepted, three.accepted) == ("1/2", ("1/2", "0.5"), ("7",), ("3",))
    assert Task(**json.loads(json.dumps(asdict(one)))).accepted == one.accepted
    (tmp_path / "b.json").write_text('[{"prompt": "p", "answer": []}]')
    with pytest.raises(UserError, match="'answer' is not text"):
        load(tmp_path / "b.json")


def test_split_is_stable_and_disjoint():
    everything = numbered("p", 2000)
    train, test = split(everything, 0.2)
    assert 340 < len(test) < 460  # 400 ± 3.4 standard deviations
    assert not {t.id for t in train} & {t.id for t in test}
    fewer = {t.id for t in split(everything[500:], 0.2)[1]}
    assert fewer == {t.id for t in test} & {t.id for t in everything[500:]}
    assert {t.id for t in split(everything, 0.2, seed=1)[1]} != {t.id for t in test}
    with pytest.raises(UserError, match="between 0 and 1"):
        split(everything, 1.0)


def test_mix_takes_exact_shares_and_starts_over_when_a_source_is_small():
    a, b = numbered("a", 3), numbered("b", 100)
    drawn = mix([(a, 1), (b, 2)], 10, seed=4)
    names = [task.id for task in drawn]
    assert sum(name[0] == "a" for name in names) == 3  # 3⅓ and 6⅔: the remainder goes to b
    assert len({n for n in names if n[0] == "b"}) == 7
    assert mix([(a, 1), (b, 2)], 10, seed=4) == drawn != mix([(a, 1), (b, 2)], 10, seed=5)
    twice = [task.id for task in mix([(a, 1)], 7)]
    assert sorted(map(twice.count, {"a0", "a1", "a2"})) == [2, 2, 3]
    for parts in ([], [(a, -1), (b, 2)], [(a, 0)], [([], 1)]):
        with pytest.raises(UserError, match="mix needs"):
            mix(parts, 3)


def test_task_sources(tmp_path):
    path = str(jsonl(tmp_path / "a.jsonl", GOOD))
    assert key(tasks(path)) == key(tasks({"load": path})) == key(tasks(GOOD))
    assert tasks(path) is tasks(path)  # loaded once a process
    assert len(tasks({"load": path, "limit": 1})) == 1
    assert [t.source for t in tasks({"generate": 3, "seed": 1, "kinds": ["gcd"]})] == ["arithmetic/gcd"] * 3
    mixed = tasks({"mix": [["sample", 1], [{"generate": 5, "seed": 0}, 3]], "n": 8})
    assert sum(task.source == "sample" for task in mixed) == 2
    with pytest.raises(UserError, match='"load", "generate" or "mix"'):
        tasks({"path": path})
    with pytest.raises(UserError, match="row 1: no 'prompt'"):
        tasks([{"q": 1}])


def test_an_index_is_made_once_and_one_id_is_one_problem():
    found = tasks({"generate": 20, "seed": 0})
    assert tasks(found) is found is copy.deepcopy(found)
    assert found.by_id[found[3].id] is found[3]
    assert found.by_id is tasks({"generate": 20, "seed": 0}).by_id
    with pytest.raises(UserError, match="'1' names two problems"):
        tasks([Task("1", "1+1?", "2"), Task("1", "2+2?", "4")])
    assert len(tasks(mix([(numbered("a", 2), 1)], 5))) == 5  # the same problem again is no other


def test_the_built_in_problems_have_answers_of_their_own_form():
    for name, n in (("sample", 16), ("lookup", 10)):
        found = load(name)
        assert len(found) == n
        assert len({task.id for task in found}) == n


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        (".jsonl", "not UTF-8 text"),
        (".csv", "is no CSV file: its first line has to name the columns, in UTF-8"),
        (".json", "is no JSON list"),
        (".parquet", "is no Parquet file"),
        ("", "data must end in one of"),
    ],
)
def test_a_file_of_bytes_is_told_as_one(suffix: str, said: str, tmp_path: Path) -> None:
    place = tmp_path / f"bytes{suffix}"
    place.write_bytes(b"\x89PNG\r\n\x1a\n\x1b[2J\xa4\xff,\x00\xfe\n" * 3)
    with pytest.raises(UserError, match=said):
        load(str(place))
