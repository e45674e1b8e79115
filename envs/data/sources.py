"""Where rows come from: files, folders, the built-in lists, the Hugging Face Hub or its cache.

A row is (number, value): the line or row, from 1, and what is there, or a ValueError that says why nothing is.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TextIO

from solostream import hub
from solostream.errors import UserError

Row = tuple[int, Any]
_PROBLEMS = Path(__file__).parent / "problems"
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_ABOUT = re.compile(r"dataset_(?:infos?|dict)")  # stems of .json files that tell of data, and are none
_SHARD = re.compile(r"(?:[-_.]?\d+(?:[-_]of[-_]\d+)?)$")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class DataPreset:
    """Where a well-known data set lives. `answer_after`: the answer is what follows the last of these strings.

    What a policy is tested with that was trained on it: its `split` where it has a `train_split` as well, else the
    preset `tested_with`.
    """

    path: str
    split: str
    columns: Mapping[str, str]
    config: str | None = None
    answer_after: str = ""
    train_split: str | None = None
    tested_with: str | None = None


def _arena(path: str) -> DataPreset:
    return DataPreset(f"MathArena/{path}", "train", {"prompt": "problem", "answer": "answer", "id": "problem_idx"})


PRESETS: Mapping[str, DataPreset] = {
    "dapo-math-17k": DataPreset(
        "open-r1/DAPO-Math-17k-Processed",
        "train",
        {"prompt": "prompt", "answer": "solution"},
        config="en",
        tested_with="aime25",
    ),
    "aime24": DataPreset("HuggingFaceH4/aime_2024", "train", {"prompt": "problem", "answer": "answer", "id": "id"}),
    "aime25": _arena("aime_2025"),
    "hmmt25": _arena("hmmt_feb_2025"),
    "brumo25": _arena("brumo_2025"),
    "beyond-aime": DataPreset("ByteDance-Seed/BeyondAIME", "test", {"prompt": "problem", "answer": "answer"}),
    "math-500": DataPreset(
        "HuggingFaceH4/MATH-500",
        "test",
        {"prompt": "problem", "answer": "answer", "id": "unique_id", "level": "level", "subject": "subject"},
    ),
    "gsm8k": DataPreset(
        "openai/gsm8k",
        "test",
        {"prompt": "question", "answer": "answer"},
        config="main",
        answer_after="####",
        train_split="train",
    ),
}


def training_split(name: str) -> str | None:
    """Of a preset that has one beside its test split."""
    preset = PRESETS.get(name.lower())
    return preset.train_split if preset else None


def only_tests(name: str) -> bool:
    """Whether `name` is a preset without problems to learn from, whatever the split is called that it has."""
    preset = PRESETS.get(name.lower())
    return preset is not None and preset.train_split is None and preset.tested_with is None


def is_built_in(name: str) -> bool:
    """Whether `name` is one of the small lists that come with this package."""
    return name in ("sample", "lookup")


def is_one_list(name: str) -> bool:
    """Whether `name` is one list of rows, without splits: a file, or a folder that holds the parts of one."""
    path = Path(name)
    if path.is_dir():
        return not _in_folder(path, "train") and bool(_in_folder(path, None))
    return is_built_in(name) or path.is_file()


def stamps(name: str) -> Iterator[tuple[str, int, int]]:
    """(file, time of its last change in ns, size) of each data file behind `name`; none for what is on the Hub."""
    path = Path(name)
    files = [p for p in path.rglob("*") if p.suffix in SUFFIXES] if path.is_dir() else [path]
    for file in sorted(files):
        if file.is_file():
            yield str(file), file.stat().st_mtime_ns, file.stat().st_size


def rows(name: str, config: str | None, split: str | None) -> tuple[Iterator[Row], str]:
    """The rows of a file, a folder, a built-in list or a Hub data set, and what their numbers count."""
    path = Path(name)
    if is_built_in(name):
        path = _PROBLEMS / f"{name}.jsonl"
    elif path.is_dir():
        files = _in_folder(path, split)
        if len(files) > 1:
            return enumerate((row for file in files for _, row in _file_rows(file)), 1), f"of {len(files)} files, row"
        path = files[0] if files else path
        split = None
    if path.is_file():
        if split and path.stem != split:
            raise UserError(
                f"{name} is one file and has no split {split!r}: leave the split away; a test_share divides the file"
            )
        return _file_rows(path), "row" if path.suffix == ".parquet" else "line"
    if path.is_dir():
        files = [p for p in (*path.iterdir(), *path.glob("data/*")) if p.suffix in SUFFIXES and not _tells_of_data(p)]
        inside = ", ".join(sorted(str(p.relative_to(path)) for p in files)) or "no data file"
        raise UserError(f"{name} is a folder with {inside}: name a file, or a split that is one")
    if name.count("/") != 1 or path.suffix in SUFFIXES:
        near = get_close_matches(name, PRESETS, 1, 0.5)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"give a file, a Hugging Face id or one of: {', '.join(PRESETS)}"
        )
        raise UserError(f"no data {name!r}; {hint}")
    return hub_rows(name, config, split or "train"), "row"


def _in_folder(folder: Path, split: str | None) -> list[Path]:
    """The file of a split, or its parts in the order of their numbers; without a split all there is, if it is one set.

    As the Hub, `datasets` and Spark write them: SPLIT.*, SPLIT-00000-of-00002.*, SPLIT_0.*, SPLIT/*, data/SPLIT-*,
    part-0.*. Files of one suffix that are no set are not passed over for those of the next: nobody could tell which of
    them were meant. Raises UserError where parts are missing.
    """
    for suffix in SUFFIXES:
        inside = [*folder.glob(f"*{suffix}"), *folder.glob(f"data/*{suffix}")]
        inside = [path for path in inside if not _tells_of_data(path)]
        if split:
            if (folder / f"{split}{suffix}").is_file():
                return [folder / f"{split}{suffix}"]
            files = [p for p in inside if _SHARD.sub("", p.stem) == split] or [*folder.glob(f"{split}/*{suffix}")]
        elif len({_SHARD.sub("", p.stem) for p in inside}) > 1:
            return []
        else:
            files = inside
        if files:
            _all_there(files)
            return sorted(files, key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)])
    return []


def _tells_of_data(path: Path) -> bool:
    return path.suffix == ".json" and _ABOUT.fullmatch(path.stem) is not None


def _all_there(files: Sequence[Path]) -> None:
    for stem, total in {(m[1], int(m[2])) for p in files if (m := re.match(r"(.*?)\d+-of-(\d+)$", p.stem))}:
        parts = {int(m[1]) for p in files if (m := re.match(re.escape(stem) + r"(\d+)-of-\d+$", p.stem))}
        missing = [n for n in range(total) if n not in parts]
        if missing:
            raise UserError(
                f"{files[0].parent}: {len(missing)} of the {total} parts {stem}* are missing, first {missing[0]}"
            )


def _encoding(path: Path) -> str:
    """What the first bytes say (spreadsheets on Windows write such marks); UTF-8 where they say nothing."""
    with path.open("rb") as file:
        start = file.read(4)
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    return "utf-8"


def _text(path: Path, newline: str) -> TextIO:
    """A byte that is not UTF-8 becomes a lone surrogate, which makes its row a bad one; the others have no such way."""
    encoding = _encoding(path)
    return path.open(newline=newline, encoding=encoding, errors="surrogateescape" if "8" in encoding else "replace")


def _file_rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        try:
            from pyarrow import ArrowInvalid, parquet
        except ImportError:
            raise UserError(f"reading {path} needs pyarrow: pip install 'solostream[train]'") from None
        try:
            table = parquet.read_table(path)
        except ArrowInvalid as error:
            raise UserError(f"{path} is no Parquet file: {error}") from None
        yield from enumerate(table.to_pylist(), 1)
    elif path.suffix == ".csv":
        with _text(path, newline="") as file:
            reader = csv.DictReader(file)
            yield from _csv_rows(_with_header(path, reader))
    elif path.suffix == ".json":
        try:
            yield from enumerate(json.loads(path.read_text(encoding=_encoding(path))), 1)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is no JSON list: {error}") from None
    elif path.suffix == ".jsonl":
        with _text(path, newline="\n") as file:
            for number, line in enumerate(file, 1):
                line = line.strip("\ufeff \t\r\n")  # a mark begins each part of files that were joined
                if line:
                    yield number, _json_line(line)
    else:
        raise UserError(f"{path}: data must end in one of {', '.join(SUFFIXES)}")


def _with_header(path: Path, reader: csv.DictReader[str]) -> csv.DictReader[str]:
    """Raises UserError where the first line names no columns: the file is something else."""
    with suppress(csv.Error):  # of the line, not of the file: its row is told as a bad one
        if re.search("[\0\udc80-\udcff]", "".join(reader.fieldnames or ())):  # bytes that are not UTF-8, see `_text`
            raise UserError(f"{path} is no CSV file: its first line has to name the columns, in UTF-8")
    return reader


def _csv_rows(reader: csv.DictReader[str]) -> Iterator[Row]:
    """Each with the line in which it begins: a cell may hold line breaks."""
    start = 1
    while True:
        try:
            start = reader.line_num + 1 if reader.fieldnames else 1  # reads the header
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, ValueError(f"not CSV ({error})")
        else:
            yield start, ValueError("more cells than the header") if None in row else row


def _json_line(line: str) -> Any:
    try:
        line.encode()  # a byte that is not UTF-8 became a lone surrogate
        return json.loads(line)
    except UnicodeEncodeError:
        return ValueError("not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON ({error})")


def hub_rows(path: str, config: str | None, split: str) -> Iterator[Row]:
    """From the cache where it is there, else from the network."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"loading {path} needs the datasets library: pip install 'solostream[train]'") from None
    for place in (*_snapshot(path), path):
        try:
            with hub.asked(place):
                rows = datasets.load_dataset(place, config, split=split)
            break
        except Exception as error:  # a snapshot of which a part is missing, offline mode, the HTTP client's own errors
            said, why = str(error).replace("\n", " "), hub.why(path, error, "datasets/")
            if isinstance(error, ValueError) and "cache" not in said:
                raise UserError(f"{path}: {said}") from None  # a wrong split or configuration: it names the right ones
    else:
        raise UserError(
            f"data set {path} cannot be loaded: {why}. Run `hf download --repo-type dataset {path}` with a network, "
            f"point HF_HOME to its cache, or give a local file"
        )
    yield from enumerate(rows, 1)


def _snapshot(path: str) -> list[str]:
    """The folder that `hf download` left, if it did; `datasets` by itself finds only what it has loaded before."""
    from huggingface_hub import snapshot_download

    try:
        return [snapshot_download(path, repo_type="dataset", local_files_only=True)]
    except (OSError, ValueError):
        return []
