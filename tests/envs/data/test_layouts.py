"""Published forms of rows, as they stand in the data sets' own files; what is trained on and what tests it."""

import json
import logging

import pytest

from solostream.envs.data import load, tasks, train_and_test
from solostream.errors import UserError

CHAT = [{"role": "user", "content": "What is 6*7?"}]
SYSTEM = {"role": "system", "content": "Be brief."}
ROWS = {  # layout -> (row, source)
    "verl": (
        {
            "data_source": "openai/gsm8k",
            "prompt": [SYSTEM, *CHAT],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "42"},
            "extra_info": {"split": "train", "index": 3, "answer": "…#### 42", "question": "What is 6*7?"},
        },
        "openai/gsm8k",
    ),
    "trl": ({"prompt": "What is 6*7?", "solution": r"It is $\boxed{42}$.", "level": 2}, None),
    "trl-conversational": (
        {"prompt": CHAT, "completion": [{"role": "assistant", "content": r"6*7 = \boxed{42}"}]},
        None,
    ),
    "gsm8k": ({"question": "What is 6*7?", "answer": "6*7 = <<6*7=42>>42\n#### 42"}, None),
    "math": ({"problem": "What is 6*7?", "type": "Algebra", "solution": r"\boxed{41+1=\boxed{42}}"}, None),
    "messages": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 6*7?"}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "So\n#### 42"}]}]},
        None,
    ),
    "reasoning-gym": (
        {"question": "What is 6*7?", "answer": "42", "metadata": {"source_dataset": "products", "source_index": 7}},
        "products",
    ),
    "question-answer": ({"question": "What is 6*7?", "answer": 42}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_published_form_is_recognised_said_and_kept_whole(name, suffix, tmp_path, caplog):
    row, source = ROWS[name]
    place = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        place.write_text("\n" + json.dumps(row) + "\n")
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist([row]), place)
    with caplog.at_level(logging.INFO):
        (task,) = load(place)
    assert (task.prompt, task.answer, task.source) == ("What is 6*7?", "42", source or str(place))
    assert task.meta["row"] == row
    assert f"rows of the layout {name} (" in caplog.text
    assert [record.name for record in caplog.records].count("solostream.envs.data.loader") == 1
    (named,) = load(place, layout=name)
    assert named == task


def test_columns_come_before_the_layout_field_by_field(tmp_path, caplog):
    place = tmp_path / "a.jsonl"
    place.write_text(json.dumps({"question": "old", "asked": "new", "answer": "so\n#### 5", "n": 2}))
    with caplog.at_level(logging.INFO):
        (task,) = load(place, columns={"prompt": "asked", "difficulty": "n"})
    assert (task.prompt, task.answer, task.meta["difficulty"]) == ("new", "5", 2)
    assert "prompt from asked" in caplog.text
    (task,) = load(place, columns={"prompt": "question", "answer": "n", "source": "asked"})
    assert (task.prompt, task.answer, task.source) == ("old", "2", "new")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([ROWS["verl"][0], {**ROWS["verl"][0], "prompt": [*CHAT, *CHAT]}], "line 2: 'prompt' is not one question"),
        ([ROWS["verl"][0], {**ROWS["verl"][0], "prompt": "text"}], "line 2"),
        ([ROWS["verl"][0], {**ROWS["verl"][0], "reward_model": None}], "line 2"),
        ([ROWS["trl-conversational"][0], {"prompt": CHAT}], "line 2: no 'answer'"),
        ([ROWS["messages"][0], {"messages": CHAT}], "line 2: 'messages' do not end with the assistant's answer"),
        ([{"messages": [*CHAT, {"role": "assistant", "content": [{"type": "image_url"}]}]}], "content that is no text"),
        ([ROWS["gsm8k"][0], {"question": "?", "answer": "7"}], "line 2: 'answer' holds no '####'"),
        ([ROWS["reasoning-gym"][0], {"question": "?", "answer": None, "metadata": {}}], "line 2: no 'answer'"),
        ([ROWS["math"][0], {"problem": "?"}], "line 2: no 'answer'"),
        ([{"text": "?"}], "no 'prompt' (it has: text). Fix these rows, name the columns"),
    ],
)  # fmt: skip
def test_a_row_of_another_form_is_a_bad_row(rows, words, tmp_path):
    place = tmp_path / "a.jsonl"
    place.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError) as caught:
        load(place)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def problems(n, first=0):
    return "".join(json.dumps({"question": f"{i}+1?", "answer": i + 1}) + "\n" for i in range(first, first + n))


def test_one_file_is_divided_by_its_content_and_an_edit_moves_nothing_else(tmp_path):
    place = tmp_path / "a.jsonl"
    place.write_text(problems(200))
    sides = [tasks(side) for side in train_and_test(str(place))]
    train, test = ({task.prompt for task in side} for side in sides)
    assert len(train) + len(test) == 200
    assert not train & test
    assert 10 <= len(test) <= 32  # a tenth, 3 standard deviations
    other = tmp_path / "b.jsonl"
    other.write_text(problems(150, first=50))
    assert {task.prompt for task in tasks(train_and_test(str(other))[1])} == {p for p in test if int(p[:-3]) >= 50}
    halves = [tasks(side) for side in train_and_test(str(place), test_share=0.5)]
    assert 75 <= len(halves[1]) <= 125
    with pytest.raises(UserError, match="left none for test"):
        tasks({"load": str(place), "part": "test", "test_share": 1e-9})


def test_which_sources_train_and_test(tmp_path):
    place = str(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text(problems(3))
    (tmp_path / "train.csv").write_text("prompt,answer\n1,1\n")
    both = {"columns": {"prompt": "question"}}
    assert train_and_test("dapo-math-17k") == ({"load": "dapo-math-17k"}, {"load": "aime25"})
    assert train_and_test("gsm8k") == ({"load": "gsm8k", "split": "train"}, {"load": "gsm8k", "split": "test"})
    assert train_and_test("gsm8k", test_path="aime24")[0] == {"load": "gsm8k", "split": "train"}
    assert train_and_test("aime24")[1] == {"load": "aime24", "test_share": 0.1, "part": "test"}
    assert train_and_test(place, test_path="aime25", **both) == ({"load": place, **both}, {"load": "aime25"})
    assert train_and_test("a/b", test_path=place, **both)[1] == {"load": place, **both}
    assert train_and_test("a/b", split="main", test_split="dev")[1] == {"load": "a/b", "split": "dev"}
    assert train_and_test(str(tmp_path), test_share=0.3)[0] == {
        "load": str(tmp_path), "split": "train", "test_share": 0.3, "part": "train"
    }  # fmt: skip
    with pytest.raises(UserError, match=r"test_share divides one source"):
        train_and_test(place, test_path="aime25", test_share=0.1)


def test_an_edited_file_has_another_fingerprint(tmp_path):
    def fingerprint(text):
        (tmp_path / "a.jsonl").write_text(text)
        return tasks([*load(tmp_path / "a.jsonl")]).fingerprint

    first = fingerprint(problems(5))
    assert first == fingerprint(problems(5))
    changed = {
        fingerprint(problems(6)),
        fingerprint(problems(5).replace('"answer": 3', '"answer": 4')),
        fingerprint(problems(5).replace('"answer": 3', '"answer": 3, "level": 1')),  # a reward may read it
    }
    assert len(changed) == 3
    assert first not in changed
