"""The fingerprint measures what is in the files, weighs every case the same, and reports all problems together."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data.dataset import open_dataset
from autoseg.errors import UserError
from autoseg.planning.fingerprint import measure
from autoseg.planning.intensities import SKETCH_SIZE, Sketch, merge_sketches, sketch_channels


def write_dataset(folder: Path, cases: dict[str, tuple[list[np.ndarray], np.ndarray]], **facts: object) -> Path:
    """Cases as id → (channels (x, y, z), labels (x, y, z)), with spacing (x, y, z) = (1, 2, 3) mm."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    for case, (channels, labels) in cases.items():
        for number, channel in enumerate(channels):
            image = nibabel.Nifti1Image(channel.astype(np.float32), affine)
            nibabel.save(image, folder / "imagesTr" / f"{case}_{number:04d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), affine), folder / "labelsTr" / f"{case}.nii.gz")
    channel_count = len(next(iter(cases.values()))[0])
    manifest = {
        "channel_names": {str(number): f"channel {number}" for number in range(channel_count)},
        "labels": {"background": 0, "core": 2, "shell": 7}, "numTraining": len(cases), "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(manifest | facts))
    return folder


def random_case(seed: int, shape: tuple[int, int, int] = (10, 12, 14)) -> tuple[list[np.ndarray], np.ndarray]:
    """Two channels with an empty margin of different width, and labels 0, 2 and 7 inside."""
    rng = np.random.default_rng(seed)
    channels = [rng.normal(100 * (seed + 1), 20, shape), rng.normal(-5, 1, shape)]
    channels[0][:3], channels[1][:2] = 0, 0
    channels[0][:, :, -1], channels[1][:, :, -1] = 0, 0
    labels = rng.choice([0, 2, 7], shape)
    labels[:2] = 0
    return channels, labels


def test_shapes_spacings_boxes_and_volumes(tmp_path: Path) -> None:
    cases = {f"case_{seed}": random_case(seed) for seed in range(3)}
    fingerprint = measure(open_dataset(write_dataset(tmp_path / "made", cases)), workers=1)
    assert [case.id for case in fingerprint.cases] == list(cases)
    assert fingerprint.dataset == str((tmp_path / "made").resolve())
    for case in fingerprint.cases:
        labels = cases[case.id][1]
        assert case.shape == (14, 12, 10) and case.spacing == (3.0, 2.0, 1.0)
        assert case.cropped_shape == (13, 12, 8)
        assert case.left_right_axis == 2
        assert case.class_voxels == {
            name: int((labels == value).sum()) for name, value in (("background", 0), ("core", 2), ("shell", 7))
        }
        for name, value in (("core", 2), ("shell", 7)):
            places = np.argwhere(labels.transpose() == value)
            assert case.class_extents[name] == tuple(int(size) for size in np.ptp(places, axis=0) + 1)
        assert set(case.class_extents) == {"core", "shell"}
    assert fingerprint.median_relative_size_after_cropping == pytest.approx(13 * 8 / (14 * 10))


def test_a_label_that_a_case_lacks_has_no_extent(tmp_path: Path) -> None:
    cases = {f"case_{seed}": random_case(seed) for seed in range(2)}
    labels = cases["case_1"][1]
    labels[labels == 7] = 0
    labels[labels == 2] = 0
    labels[4:6, 5, 7:10] = 2
    _, case = measure(open_dataset(write_dataset(tmp_path / "made", cases)), workers=1).cases
    assert case.class_extents == {"core": (3, 1, 2), "shell": None}


def test_workers_change_nothing(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "made", {f"case_{seed}": random_case(seed) for seed in range(3)}))
    assert measure(dataset, workers=1) == measure(dataset, workers=2)


def test_labels_over_zeros_outside_the_box_do_not_count_as_intensities(tmp_path: Path) -> None:
    channels, labels = random_case(0)
    labels[0, 0, 0] = 2
    fingerprint = measure(open_dataset(write_dataset(tmp_path / "made", {"case": (channels, labels)})), workers=1)
    inside = labels[2:, :, :-1] > 0
    assert fingerprint.intensities[0].mean == pytest.approx(channels[0][2:, :, :-1][inside].mean(), rel=1e-5)


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    cases = {f"case_{seed}": random_case(seed) for seed in range(4)}
    cases["case_1"][0][1][5, 5, 5] = np.nan
    cases["case_3"][1][5, 5, 5] = 99
    with pytest.raises(UserError) as caught:
        measure(open_dataset(write_dataset(tmp_path / "made", cases)), workers=1)
    assert "case_1" in str(caught.value) and "case_3" in str(caught.value) and "99" in str(caught.value)
    assert "case_0" not in str(caught.value) and "case_2" not in str(caught.value)


def test_a_declared_label_that_no_case_has_is_an_error(tmp_path: Path) -> None:
    labels = {"background": 0, "core": 2, "shell": 7, "ghost": 9, "spirit": 11}
    folder = write_dataset(tmp_path / "made", {"case": random_case(0)}, labels=labels)
    with pytest.raises(UserError, match="ghost") as caught:
        measure(open_dataset(folder), workers=1)
    assert "spirit" in str(caught.value) and "shell" not in str(caught.value)


def test_flat_images_among_deep_ones_are_an_error(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "made", {f"case_{seed}": random_case(seed) for seed in range(3)})
    for path in (*(folder / "imagesTr").glob("case_1*"), *(folder / "labelsTr").glob("case_1*")):
        image = nibabel.load(path)
        plane = np.asanyarray(image.dataobj)[..., 5]
        nibabel.save(nibabel.Nifti1Image(plane, image.affine), path)
    with pytest.raises(UserError, match="case_1.*two datasets|two datasets"):
        measure(open_dataset(folder), workers=1)


def test_labels_only_outside_the_nonzero_part_are_an_error(tmp_path: Path) -> None:
    channels, labels = random_case(0)
    labels[:] = 0
    labels[0, 0, :2] = 2, 7
    with pytest.raises(UserError, match="outside the nonzero part"):
        measure(open_dataset(write_dataset(tmp_path / "made", {"case": (channels, labels)})), workers=1)


# ---------------------------------------------------------------- intensities
def sketch_of(values: np.ndarray) -> Sketch:
    image = values.astype(np.float32)[None, None, None]
    (sketch,) = sketch_channels(image, np.ones((1, 1, values.size), bool))
    return sketch


def test_one_small_case_has_numpys_statistics() -> None:
    values = np.random.default_rng(0).normal(3, 2, 1001).astype(np.float32)
    merged = merge_sketches([sketch_of(values)])
    assert merged.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-9)
    assert merged.std == pytest.approx(values.std(dtype=np.float64), rel=1e-9)
    assert (merged.min, merged.max, merged.median) == (values.min(), values.max(), np.median(values))
    low, high = np.percentile(values, [0.5, 99.5], method="inverted_cdf")
    assert (merged.percentile_00_5, merged.percentile_99_5) == (low, high)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_a_case_counts_the_same_however_often_its_voxels_are_repeated(seed: int, repeats: list[int]) -> None:
    rng = np.random.default_rng(seed)
    cases = [rng.normal(rng.normal(), 1, int(rng.integers(1, 60))) for _ in repeats]
    once = merge_sketches([sketch_of(case) for case in cases])
    repeated = merge_sketches([sketch_of(np.tile(case, times)) for case, times in zip(cases, repeats, strict=True)])
    for one, other in zip(once, repeated, strict=True):
        assert one[1] == pytest.approx(other[1], rel=1e-6, abs=1e-9)


def test_large_cases_keep_their_percentiles_within_the_sketch() -> None:
    rng = np.random.default_rng(1)
    cases = [rng.normal(0, 1, 300_000), rng.normal(4, 0.5, 70_000), rng.normal(-2, 3, 900)]
    merged = merge_sketches([sketch_of(case) for case in cases])
    everything = np.sort(np.concatenate(cases))
    weights = np.concatenate([np.full(case.size, 1 / case.size / 3) for case in cases])
    below = np.cumsum(weights[np.argsort(np.concatenate(cases))])
    for percent, found in ((0.5, merged.percentile_00_5), (50, merged.median), (99.5, merged.percentile_99_5)):
        rank = below[min(np.searchsorted(everything, found), below.size - 1)]
        assert abs(rank - percent / 100) <= 1 / SKETCH_SIZE
    assert merged.min == np.float32(everything[0]) and merged.max == np.float32(everything[-1])


def test_a_case_without_foreground_has_no_sketch() -> None:
    assert sketch_channels(np.ones((2, 2, 2, 2), np.float32), np.zeros((2, 2, 2), bool)) == ()
