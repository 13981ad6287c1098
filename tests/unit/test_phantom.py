"""The phantom is worth training on: intensity alone cannot solve it, and it is a valid dataset."""

import json

import nibabel
import numpy as np
import pytest

from autoseg.data.phantom import LABELS, make_phantom, write_phantom_dataset

ORGANS = [(name, value) for name, value in LABELS.items() if value]


@pytest.fixture(scope="module")
def phantoms():
    return [make_phantom(np.random.default_rng((7, index))) for index in range(8)]


def best_dice_of_an_intensity_classifier(intensities: np.ndarray, organ: np.ndarray, bins: int) -> float:
    """The Dice that no classifier of (binned) intensity exceeds, fitted on the very voxels it is scored on.

    Among classifiers that accept a set of bins, one that takes bins in falling order of the organ's share is
    best: Dice = 2 TP / (accepted + organ), a ratio of sums over accepted bins.
    """
    edges = np.quantile(intensities, np.linspace(0, 1, bins + 1)[1:-1])
    bin_of = np.searchsorted(edges, intensities)
    organ_voxels = np.bincount(bin_of, weights=organ, minlength=bins)
    voxels = np.bincount(bin_of, minlength=bins)
    order = np.argsort(-organ_voxels / np.maximum(voxels, 1))
    return float((2 * np.cumsum(organ_voxels[order]) / (np.cumsum(voxels[order]) + organ.sum())).max())


@pytest.mark.parametrize(("name", "value"), ORGANS)
def test_no_per_voxel_classifier_on_intensity_reaches_dice_of_six_tenths(phantoms, name, value):
    per_case = [best_dice_of_an_intensity_classifier(p.image.ravel(), p.labels.ravel() == value, bins=128)
                for p in phantoms]
    standardized = np.concatenate([((p.image - p.image.mean()) / p.image.std()).ravel() for p in phantoms])
    pooled = best_dice_of_an_intensity_classifier(
        standardized, np.concatenate([p.labels.ravel() == value for p in phantoms]), bins=1024)
    assert np.mean(per_case) < 0.6
    assert pooled < 0.6


def test_something_outside_the_organs_has_the_intensities_of_the_organs(phantoms):
    for phantom in phantoms:
        organ = phantom.image[phantom.labels > 0]
        low, high = np.percentile(organ, (10, 90))
        alike = (phantom.image > low) & (phantom.image < high)
        inside = np.count_nonzero(alike & (phantom.labels > 0))
        elsewhere = np.count_nonzero(alike) - inside
        assert elsewhere > inside


def test_every_case_holds_both_organs_inside_the_image(phantoms):
    for phantom in phantoms:
        for _, value in ORGANS:
            assert np.count_nonzero(phantom.labels == value) > 200
        border = phantom.labels.copy()
        border[1:-1, 1:-1, 1:-1] = 0
        assert not border.any()
        assert np.isfinite(phantom.image).all() and phantom.image.min() >= 0


def test_cases_differ_in_pose_size_shape_and_spacing(phantoms):
    assert len({phantom.image.shape for phantom in phantoms}) > 3
    centers = [np.argwhere(phantom.labels == 1).mean(axis=0) for phantom in phantoms]
    assert np.std(centers, axis=0).max() > 3
    volumes = [np.count_nonzero(p.labels == 1) * abs(np.linalg.det(p.affine)) for p in phantoms]
    assert max(volumes) > 1.2 * min(volumes)


def test_the_dataset_is_nnunet_raw_with_held_out_cases_on_oblique_grids(tmp_path):
    folder = write_phantom_dataset(tmp_path / "Dataset001_Phantom", cases=2, held_out=1, seed=5)
    manifest = json.loads((folder / "dataset.json").read_text())
    assert manifest["labels"] == LABELS
    assert manifest["numTraining"] == 2
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.nii.gz")) == [
        "imagesTr/phantom_000_0000.nii.gz", "imagesTr/phantom_001_0000.nii.gz",
        "imagesTs/phantom_002_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz", "labelsTr/phantom_001.nii.gz", "labelsTs/phantom_002.nii.gz",
    ]
    image = nibabel.load(folder / "imagesTr/phantom_000_0000.nii.gz")
    labels = nibabel.load(folder / "labelsTr/phantom_000.nii.gz")
    expected = make_phantom(np.random.default_rng((5, 0)))
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, expected.image)
    np.testing.assert_array_equal(np.asarray(labels.dataobj).T, expected.labels)
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-4)
    np.testing.assert_array_equal(image.affine, labels.affine)
    off_diagonal = image.affine[:3, :3] - np.diag(np.diag(image.affine[:3, :3]))
    assert np.abs(off_diagonal).max() > 0.01


def test_the_same_seed_gives_the_same_case_and_another_seed_another():
    one, same, other = (make_phantom(np.random.default_rng(seed)) for seed in ((1, 0), (1, 0), (2, 0)))
    np.testing.assert_array_equal(one.image, same.image)
    assert one.image.shape != other.image.shape or not np.array_equal(one.image, other.image)
