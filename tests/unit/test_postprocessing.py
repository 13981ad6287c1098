"""Laws of keeping the largest component, and nnU-Net's rule of when to."""

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.inference.postprocessing import (
    ReferencedMask,
    TriedStep,
    choose_postprocessing,
    dice_after,
    judge_all,
    judge_one,
    keep_largest,
    keep_largest_components,
    values_of,
)
from autoseg.labelling import Labelled, Region

TWO = Labelled(labels={"background": 0, "a": 3, "b": 7})
REGIONS = Labelled(
    labels={"background": 0, "edema": 1, "core": 2},
    regions=(Region(name="whole", values=(1, 2), painted=1), Region(name="core", values=(2,), painted=2)),
)


def random_mask(seed: int, shape=(5, 8, 8), values=(0, 0, 3, 7)) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, shape).astype(np.uint8)


# ---------------------------------------------------------------- laws
@given(seed=st.integers(0, 10_000), values=st.sampled_from([(3,), (7,), (3, 7), (5,)]))
def test_nothing_is_added_and_a_second_time_changes_nothing(seed, values):
    mask = random_mask(seed)
    before = mask.copy()
    once = keep_largest(mask, values)
    np.testing.assert_array_equal(mask, before)
    assert ((once == mask) | (once == 0)).all()
    others = ~np.isin(mask, values)
    np.testing.assert_array_equal(once[others], mask[others])
    np.testing.assert_array_equal(keep_largest(once, values), once)


def test_corners_connect_and_equally_large_components_all_stay():
    mask = np.zeros((3, 9, 9), np.int16)
    mask[0, 0, 0] = mask[1, 1, 1] = 3  # by a corner
    mask[0, 5, 5] = mask[0, 5, 6] = 3  # as large
    mask[2, 8, 0] = 3  # smaller
    kept = keep_largest(mask, [3])
    assert kept[2, 8, 0] == 0
    assert np.count_nonzero(kept) == 4


def test_all_foreground_is_one_structure_and_a_region_one_too():
    mask = np.zeros((1, 3, 12), np.uint8)
    mask[0, 1, 0:4] = 3
    mask[0, 1, 4:6] = 7
    mask[0, 1, 8:11] = 7
    assert np.count_nonzero(keep_largest_components(mask, TWO, [None])) == 6
    assert np.count_nonzero(keep_largest_components(mask, TWO, ["b"])) == 7
    mask = np.where(mask == 3, 1, np.where(mask == 7, 2, 0))
    assert np.count_nonzero(keep_largest_components(mask, REGIONS, ["whole"])) == 6
    assert np.count_nonzero(keep_largest_components(mask, REGIONS, ["core"])) == 7
    assert values_of(REGIONS, "whole") == (1, 2)


# ---------------------------------------------------------------- the rule
@pytest.mark.parametrize(
    ("after", "accepted", "worse"),
    [
        ({"a": 0.9, "b": 0.5}, True, ()),
        ({"a": 0.8, "b": 0.5}, False, ()),  # as before
        ({"a": 0.99, "b": 0.49}, False, ("b",)),  # a better mean, but one label got worse
        ({"a": 0.7, "b": 0.5}, False, ("a",)),
        ({"a": 0.9, "b": None}, True, ()),
    ],
)
def test_all_foreground_needs_a_better_mean_and_no_label_worse(after, accepted, worse):
    step = judge_all({"a": 0.8, "b": 0.5}, after)
    assert (step.accepted, step.worse, step.of) == (accepted, worse, None)


@pytest.mark.parametrize(("before", "after", "accepted"), [
    (0.5, 0.6, True), (0.5, 0.5, False), (0.6, 0.5, False), (None, None, False), (0.5, None, False),
])  # fmt: skip
def test_a_label_needs_a_better_dice_of_its_own(before, after, accepted):
    assert judge_one("a", before, after) == TriedStep(of="a", accepted=accepted, dice_before=before, dice_after=after)


def write_case(folder, name, mask, reference, annotated=None) -> ReferencedMask:
    for kind, array in (("mask", mask), ("reference", reference)):
        nibabel.save(nibabel.Nifti1Image(array.T.astype(np.uint8), np.eye(4)), folder / f"{name}_{kind}.nii.gz")
    return ReferencedMask(name, folder / f"{name}_mask.nii.gz", folder / f"{name}_reference.nii.gz", annotated)


def line(*runs: tuple[int, int]) -> np.ndarray:
    """(value, voxels), one after another, in a row of voxels."""
    return np.concatenate([np.full(length, value, np.uint8) for value, length in runs])[None, None]


def test_stray_voxels_of_one_label_are_removed_and_two_organs_are_kept(tmp_path):
    """`a` has strays, which only its own removal improves; `b` is two organs, which must stay."""
    truth = line((0, 2), (3, 4), (0, 4), (7, 3), (0, 2), (7, 2), (0, 3))
    found = line((0, 2), (3, 4), (0, 1), (3, 1), (0, 2), (7, 3), (0, 2), (7, 2), (0, 3))
    cases = [write_case(tmp_path, f"case{number}", found, truth) for number in range(2)]
    steps = choose_postprocessing(cases, TWO)
    assert [(step.of, step.accepted) for step in steps] == [(None, False), ("a", True), ("b", False)]
    assert steps[0].worse == ("b",)
    assert steps[1].dice_before == pytest.approx(8 / 9) and steps[1].dice_after == 1
    assert dice_after(cases, TWO, ["a"]) == 1


def test_all_foreground_comes_first_and_labels_on_top_of_it(tmp_path):
    """Far strays go with all foreground; a stray of `a` that touches `b` goes with `a` alone."""
    truth = line((3, 4), (7, 4), (0, 9))
    found = line((3, 4), (7, 3), (3, 1), (0, 3), (7, 1), (0, 5))
    steps = choose_postprocessing([write_case(tmp_path, "case", found, truth)], TWO)
    assert [(step.of, step.accepted) for step in steps] == [(None, True), ("a", True), ("b", False)]
    assert steps[2].dice_before == steps[2].dice_after  # its stray is gone already


def test_regions_are_tried_one_on_top_of_the_other(tmp_path):
    """The core's stray lies inside the whole: removing it costs the whole a voxel, which is not asked."""
    truth = line((1, 5), (2, 3), (0, 8))
    found = line((1, 2), (2, 1), (1, 2), (2, 3), (0, 4), (1, 2), (0, 2))
    steps = choose_postprocessing([write_case(tmp_path, "case", found, truth)], REGIONS)
    assert [(step.of, step.accepted) for step in steps] == [(None, True), ("whole", False), ("core", True)]


def test_one_label_is_tried_once(tmp_path):
    one = Labelled(labels={"background": 0, "a": 3})
    case = write_case(tmp_path, "case", line((3, 3), (0, 1), (3, 1)), line((3, 3), (0, 2)))
    assert [(step.of, step.accepted) for step in choose_postprocessing([case], one)] == [(None, True)]


def test_voxels_and_labels_that_nobody_annotated_do_not_count(tmp_path):
    ignoring = TWO.model_copy(update={"ignore": 9})
    truth = line((3, 4), (0, 1), (9, 3), (0, 2))
    found = line((3, 4), (0, 2), (3, 1), (0, 3))
    case = write_case(tmp_path, "case", found, truth)
    first, *_ = choose_postprocessing([case], ignoring)
    assert (first.dice_before, first.dice_after, first.accepted) == (1, 1, False)
    strays = write_case(tmp_path, "other", line((7, 3), (0, 2), (7, 1)), line((3, 6)), annotated=("a",))
    assert not any(step.accepted for step in choose_postprocessing([case, strays], ignoring))
