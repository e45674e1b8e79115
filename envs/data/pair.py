"""What is trained on, and what tests it: two sources from the few words in which a person says so.

Two sources, two splits of one, or one source divided by the hash of its problems: wherever only one list of rows is
named, a tenth of it is held out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solostream.envs.data import sources
from solostream.envs.data.loader import DEFAULT_SHARE
from solostream.errors import UserError

Source = dict[str, Any]


def train_and_test(
    path: str,
    *,
    test_path: str | None = None,
    split: str | None = None,
    test_split: str | None = None,
    test_share: float | None = None,
    **options: Any,
) -> tuple[Source, Source]:
    """(train, test) as `tasks` takes them. options: of `load`; those of rows do not hold for a preset as test_path.

    A preset brings its own test (`dapo-math-17k` is tested with `aime25`, `gsm8k` with its test split) where nothing
    else is said; so do a folder and a Hugging Face id with a split "test". Raises UserError for words that contradict
    each other. Nothing is read.
    """
    if test_share is not None and (test_path is not None or test_split is not None):
        raise UserError("data.test_share divides one source: leave it away, or data.test_path and data.test_split")
    preset = sources.PRESETS.get(path.lower())
    if preset is not None:
        split = split or preset.train_split
        if test_path is None and test_split is None and test_share is None:
            test_path, test_split = preset.tested_with, preset.split if preset.train_split else None
    one_list = sources.is_one_list(path) or (preset is not None and not preset.train_split)
    train: Source = {"load": path, **options}
    if split or not one_list:
        train["split"] = split or "train"
    if test_share is not None or (test_path is None and test_split is None and one_list):
        divided = {**train, "test_share": DEFAULT_SHARE if test_share is None else test_share}
        return {**divided, "part": "train"}, {**divided, "part": "test"}
    return train, _test(path if test_path is None else test_path, test_path is not None, test_split, options)


def _test(path: str, another: bool, split: str | None, options: Mapping[str, Any]) -> Source:
    preset = sources.PRESETS.get(path.lower())
    test: Source = {"load": path, **({} if another and preset else options)}
    if split or not (preset or sources.is_one_list(path)):
        test["split"] = split or "test"
    return test
