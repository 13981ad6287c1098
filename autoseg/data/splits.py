"""Which cases train and which validate: nnU-Net's five folds, or leave-one-out for fewer than five cases."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, RootModel

from autoseg.errors import UserError, all_of
from autoseg.records import read_record, write_json
from autoseg.schema import Split

FOLDS = 5


class _Splits(RootModel[tuple[Split, ...]]):
    """splits.json: a list of folds."""


def make_splits(ids: Sequence[str], seed: int = 12345) -> tuple[Split, ...]:
    """nnU-Net's folds: the sorted ids are shuffled with the legacy generator, then cut into five consecutive
    blocks (the first n mod 5 are one longer); a block validates, the rest trains. Equal to scikit-learn's
    KFold(5, shuffle=True, random_state=seed).

    Fewer than five cases: leave-one-out in sorted order. One case: no folds (only `--fold all` can train).
    """
    ordered = sorted(ids)
    if len(ordered) < 2:
        return ()
    if len(ordered) < FOLDS:
        blocks = [np.array([position]) for position in range(len(ordered))]
    else:
        shuffled = np.arange(len(ordered))
        np.random.RandomState(seed).shuffle(shuffled)  # noqa: NPY002 (the generator that made nnU-Net's splits)
        blocks = np.array_split(shuffled, FOLDS)
    return tuple(
        Split(train=tuple(case for position, case in enumerate(ordered) if position not in block),
              val=tuple(ordered[position] for position in sorted(block)))
        for block in (set(block.tolist()) for block in blocks)
    )


def write_splits(splits: Sequence[Split], path: Path) -> None:
    """Write splits.json: a list of {"train": […], "val": […]}, as nnU-Net's splits_final.json."""
    write_json([split.model_dump(mode="json") for split in splits], path)


def read_splits(path: Path, ids: Sequence[str]) -> tuple[Split, ...]:
    """The folds in a file.

    Raises
    ------
    UserError : not a list of folds; or, together: unknown cases, a case on both sides or twice, an empty
        side.
    """
    record: BaseModel = read_record(_Splits, path, "Run `autoseg plan` to write it anew.")
    splits: tuple[Split, ...] = record.root if isinstance(record, _Splits) else ()
    problems = [problem for fold, split in enumerate(splits) for problem in _problems(fold, split, set(ids))]
    if problems:
        raise all_of(problems, f"{path} does not fit the dataset:", "Correct it, or remove it and plan anew.")
    return splits


def training_cases(
    splits: Sequence[Split], fold: str, ids: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training ids, validation ids) of fold "0", "1", … or of "all": every case on both sides.

    Raises
    ------
    UserError : a fold that does not exist.
    """
    if fold == "all":
        return tuple(sorted(ids)), tuple(sorted(ids))
    if fold in map(str, range(len(splits))):
        split = splits[int(fold)]
        return split.train, split.val
    if not splits:
        raise UserError(f"fold {fold} does not exist: with {len(ids)} case{'s' * (len(ids) != 1)} there are "
                        "no folds. Train with --fold all, or add cases.")
    raise UserError(f"fold {fold} does not exist; the folds of this run are 0 to {len(splits) - 1}, one "
                    "at a time, and 'all'. Choose one of these.")


def _problems(fold: int, split: Split, known: set[str]) -> list[str]:
    both = sorted(set(split.train) & set(split.val))
    unknown = sorted((set(split.train) | set(split.val)) - known)
    problems = [f"fold {fold}: unknown case '{case}'" for case in unknown]
    problems += [f"fold {fold}: case '{case}' is both in train and in val" for case in both]
    for side, cases in (("train", split.train), ("val", split.val)):
        problems += [f"fold {fold}: case '{case}' stands {times} times in {side}"
                     for case, times in Counter(cases).items() if times > 1]
        if not cases:
            problems.append(f"fold {fold}: {side} is empty")
    return problems
