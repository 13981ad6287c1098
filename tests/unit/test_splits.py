"""Folds: nnU-Net's, or leave-one-out; read back and checked."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data.splits import draw_folds, gaps_of, make_splits, read_splits, training_cases, write_splits
from autoseg.errors import UserError
from autoseg.schema import Split


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


def test_a_patient_on_both_sides_is_refused_and_all_leaks_are_named(tmp_path: Path) -> None:
    patients = {"a": "p", "b": "p", "c": "q", "d": "q", "e": "e"}
    write_splits([Split(train=("a", "c", "f"), val=("b", "e")), Split(train=("a", "b"), val=("c", "d")),
                  Split(train=("c", "e"), val=("d", "a"))], tmp_path / "splits.json")
    with pytest.raises(UserError) as caught:
        read_splits(tmp_path / "splits.json", list("abcdef"), patients)
    lines = str(caught.value).splitlines()[1:-1]
    assert lines == ["  - fold 0: patient 'p' is on both sides: train has a, val has b",
                     "  - fold 2: patient 'q' is on both sides: train has c, val has d"]
    assert len(read_splits(tmp_path / "splits.json", list("abcdef"))) == 3  # without patients there is no leak


@st.composite
def grouped_cases(draw: st.DrawFn) -> tuple[list[str], dict[str, str], dict[str, frozenset[str]]]:
    """Ids, patients of some of them, labels of each."""
    count = draw(st.integers(2, 40))
    ids = [f"case{number}" for number in range(count)]
    patients = {case: f"case{draw(st.integers(0, count // 2))}" for case in ids if draw(st.booleans())}
    presence = {case: draw(st.frozensets(st.sampled_from("abcd"))) for case in ids}
    return ids, patients, presence


@settings(max_examples=100, deadline=None)
@given(grouped_cases(), st.integers(0, 2**32 - 1))
def test_any_folds_are_a_partition_that_keeps_patients_whole_and_lack_no_more_than_nnunets(
    drawn: tuple[list[str], dict[str, str], dict[str, frozenset[str]]], seed: int
) -> None:
    ids, patients, presence = drawn
    folds = draw_folds(ids, seed, patients, presence)
    assert draw_folds(ids[::-1], seed, patients, presence) == folds
    count = len({(case in patients, patients.get(case, case)) for case in ids})
    assert len(folds.splits) == (0 if count == 1 else min(count, 5))
    for split in folds.splits:
        assert sorted(split.train + split.val) == sorted(ids) and split.train and split.val
        assert not {patients[case] for case in split.train if case in patients} & {
            patients[case] for case in split.val if case in patients}
    if folds.splits:
        assert sorted(case for split in folds.splits for case in split.val) == sorted(ids)
    plain = make_splits(ids, seed, patients)
    if len(plain) == 5:
        before = gaps_of(plain, patients, presence)
        assert (plain == folds.splits) if not before else set(folds.spread) == set(before)
        lacking = [sum(count == 0 for counts in gaps_of(splits, patients, presence).values() for count in counts)
                   for splits in (plain, folds.splits)]
        assert lacking[1] <= lacking[0] or folds.splits == plain
    else:
        assert folds.splits == plain


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 80), st.integers(2, 12), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_one_rare_label_is_spread_evenly(count: int, present: int, seed: int, random: object) -> None:
    ids = [str(number) for number in range(count)]
    chosen = set(random.sample(ids, min(present, count)))  # type: ignore[attr-defined]
    presence = {case: frozenset({"common", "rare"} if case in chosen else {"common"}) for case in ids}
    plain, folds = make_splits(ids, seed), draw_folds(ids, seed, None, presence)
    held = [len(chosen & set(split.val)) for split in plain]
    gap = (len(chosen) >= 5 and 0 in held) or max(held) == len(chosen) > 1
    assert (folds.splits == plain) == (not gap)
    if gap:
        assert max(folds.spread["rare"]) - min(folds.spread["rare"]) <= 1
        assert folds.spread["rare"] == tuple(len(chosen & set(split.val)) for split in folds.splits)
        assert max(len(split.val) for split in folds.splits) - min(len(split.val) for split in folds.splits) <= 1
        assert "stratified" in folds.rule and "rare" in folds.rule and "common" not in folds.rule


def test_fewer_than_five_patients_leave_one_patient_out() -> None:
    ids = list("abcdefg")
    folds = draw_folds(ids, 1, dict(zip(ids, "ppqqqrr", strict=True)))
    assert [split.val for split in folds.splits] == [("a", "b"), ("c", "d", "e"), ("f", "g")]
    assert "leave-one-out over 3 patients" in folds.rule
    assert make_splits(ids, 1, dict.fromkeys(ids, "p")) == ()


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
