"""Folds: nnU-Net's, or leave-one-out; read back and checked."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data.splits import make_splits, read_splits, training_cases, write_splits
from autoseg.errors import UserError


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 300), st.integers(0, 2**31))
def test_five_folds_are_nnunets(count: int, seed: int) -> None:
    """Oracle: scikit-learn's KFold, which nnU-Net calls; and nnU-Net's own function for its seed."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    from sklearn.model_selection import KFold

    ids = [f"case_{number}" for number in range(count)]
    ordered = np.sort(ids)
    expected = [(tuple(ordered[train].tolist()), tuple(ordered[val].tolist()))
                for train, val in KFold(5, shuffle=True, random_state=seed).split(ordered)]
    shuffled = np.random.default_rng(seed).permutation(ids).tolist()
    assert [(split.train, split.val) for split in make_splits(shuffled, seed)] == expected
    theirs = generate_crossval_split([str(case) for case in ordered], seed=12345, n_splits=5)
    assert [split.model_dump(mode="json") for split in make_splits(ids)] == [
        {side: list(map(str, fold[side])) for side in ("train", "val")} for fold in theirs
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60))
def test_every_case_validates_once(count: int) -> None:
    ids = [str(number) for number in range(count)]
    splits = make_splits(ids)
    assert len(splits) == min(count, 5)
    assert sorted(case for split in splits for case in split.val) == sorted(ids)
    assert all(sorted(split.train + split.val) == sorted(ids) for split in splits)


def test_few_cases_leave_one_out_and_one_case_has_no_folds() -> None:
    assert [(split.train, split.val) for split in make_splits(["b", "a", "c"])] == [
        (("b", "c"), ("a",)), (("a", "c"), ("b",)), (("a", "b"), ("c",)),
    ]
    assert make_splits(["a"]) == ()


def test_there_and_back(tmp_path: Path) -> None:
    ids = [str(number) for number in range(12)]
    write_splits(make_splits(ids), tmp_path / "splits.json")
    assert read_splits(tmp_path / "splits.json", ids) == make_splits(ids)
    assert set(json.loads((tmp_path / "splits.json").read_text())[0]) == {"train", "val"}  # nnU-Net's form
    write_splits((), tmp_path / "splits.json")
    assert read_splits(tmp_path / "splits.json", ["a"]) == ()


@pytest.mark.parametrize(("content", "needles"), [
    ([{"train": ["a", "x"], "val": ["b", "a"]}, {"train": ["a", "a"], "val": []}],
     ("unknown case 'x'", "'a' is both", "'a' stands 2 times", "val is empty")),
    ([{"train": ["a"]}], ("0.val",)),
    ({"train": ["a"], "val": ["b"]}, ("splits.json",)),
])
def test_bad_splits_are_refused(content: object, needles: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_splits(tmp_path / "splits.json", ["a", "b"])
    for needle in (*needles, str(tmp_path / "splits.json")):
        assert needle in str(caught.value)


def test_absent_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="autoseg plan"):
        read_splits(tmp_path / "splits.json", ["a"])


def test_folds_by_name() -> None:
    ids = [str(number) for number in range(7)]
    splits = make_splits(ids)
    assert training_cases(splits, "3", ids) == (splits[3].train, splits[3].val)
    assert training_cases(splits, "all", ids) == (tuple(ids), tuple(ids))
    for fold in ("5", "-1", "x", "1.0", ""):
        with pytest.raises(UserError, match="0 to 4, one at a time, and 'all'"):
            training_cases(splits, fold, ids)
    with pytest.raises(UserError, match="--fold all"):
        training_cases((), "0", ["a"])
    assert training_cases((), "all", ["a"]) == (("a",), ("a",))
