"""What is trained on, and what tests it: two sources from the few words in which a person says so.

Two sources, two splits of one, or one source divided by the hash of its problems: wherever only one list of rows is
named, a tenth of it is held out. Problems that are made (`generators`) have two sides of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from solostream.envs.data import generators, sources
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
    seed: int = 0,
    made: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> tuple[Source, Source]:
    """(train, test) as `tasks` takes them. options: of `load`; those of rows do not hold for a preset as test_path.

    seed, made: of problems that are made; made: component -> its options.

    A preset brings its own test (`dapo-math-17k` is tested with `aime25`, `gsm8k` with its test split) where nothing
    else is said; so do a folder and a Hugging Face id with a split "test". Raises UserError for words that contradict
    each other. Nothing is read.
    """
    if test_share is not None and (test_path is not None or test_split is not None):
        raise UserError("data.test_share divides one source: leave it away, or data.test_path and data.test_split")
    of_made = partial(_made, seed=seed, made=made or {})
    if (train := of_made(path, split or "train")) is not None:
        if wrong := "test_share" if test_share is not None else next(iter(options), None):
            raise UserError(f"data.path = {path!r} is made, not read: data.{wrong} says nothing about it")
        other = path if test_path is None else test_path
        return train, of_made(other, test_split or "test") or _test(other, True, test_split, {})
    preset = sources.PRESETS.get(path.lower())
    if preset is not None:
        split = split or preset.train_split
        if test_path is None and test_split is None and test_share is None:
            test_path, test_split = preset.tested_with, preset.split if preset.train_split else None
    made_test = None if test_path is None else of_made(test_path, test_split or "test")
    one_list = sources.is_one_list(path) or (preset is not None and not preset.train_split)
    train = {"load": path, **options}
    if split or not one_list:
        train["split"] = split or "train"
    if test_share is not None or (test_path is None and test_split is None and one_list):
        divided = {**train, "test_share": DEFAULT_SHARE if test_share is None else test_share}
        return {**divided, "part": "train"}, {**divided, "part": "test"}
    if made_test is not None:
        return train, made_test
    return train, _test(path if test_path is None else test_path, test_path is not None, test_split, options)


def _made(path: str, split: str, seed: int, made: Mapping[str, Mapping[str, Any]]) -> Source | None:
    """The source, where `path` names problems that are made."""
    found = generators.component(path)
    if found is None:
        return None
    own = made.get(found[0])
    return {"load": path, "split": split, "seed": seed, **({"options": dict(own)} if own else {})}


def _test(path: str, another: bool, split: str | None, options: Mapping[str, Any]) -> Source:
    preset = sources.PRESETS.get(path.lower())
    test: Source = {"load": path, **({} if another and preset else options)}
    if split or not (preset or sources.is_one_list(path)):
        test["split"] = split or "test"
    return test
