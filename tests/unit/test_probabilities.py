"""Laws of combined models and of probabilities on the image's grid."""

import nibabel
import numpy as np
import pytest
from scipy.special import expit, softmax

from autoseg.data.preprocessing import Placement, labels_on_grid
from autoseg.data.previous_stage import one_hot
from autoseg.data.resampling import linear_operators, resample_labels, resample_linear
from autoseg.data.volume import Volume, read_image
from autoseg.geometry import Grid
from autoseg.inference import probabilities
from autoseg.inference.decoding import decode_labels
from autoseg.inference.probabilities import Part, mean_probabilities, segment
from autoseg.labelling import Labelled, Region

SHAPE = (9, 12, 10)
LABELS = Labelled(labels={"background": 0, "a": 3, "b": 7})
REGIONS = Labelled(
    labels={"background": 0, "edema": 1, "core": 5},
    regions=(Region(name="whole", values=(1, 5), painted=1), Region(name="core", values=(5,), painted=5)),
)


def part_of(seed: int, axes, target, channels=3, crop=((1, 9), (0, 11), (2, 10))) -> Part:
    """Random logits on a grid of `target` mm (plan order) inside an image of (2, 1, 1.5) mm."""
    spacing = (2.0, 1.0, 1.5)
    cropped = tuple(crop[axis][1] - crop[axis][0] for axis in axes)
    own = tuple(spacing[axis] for axis in axes)
    shape = tuple(round(n * s / t) for n, s, t in zip(cropped, own, target, strict=True))
    logits = np.random.default_rng(seed).standard_normal((channels, *shape), dtype=np.float32) * 3
    return Part(logits, Placement(SHAPE, spacing, crop, axes, cropped, own, shape, target))


def whole_probabilities(part: Part, overlapping: bool) -> np.ndarray:
    """All at once: (channel, z, y, x) on the image's grid."""
    where = part.placement
    operators = linear_operators(where.shape, where.spacing, where.cropped_shape, where.cropped_spacing)
    logits = np.stack([resample_linear(channel, operators) for channel in part.logits])
    result = np.zeros((len(logits), *SHAPE), np.float32)
    if not overlapping:
        result[0] = 1
    box = tuple(slice(*span) for span in where.crop)
    back = [0, *(where.axes.index(axis) + 1 for axis in range(3))]
    result[(slice(None), *box)] = (expit(logits) if overlapping else softmax(logits, axis=0)).transpose(back)
    return result


PARTS = [((0, 1, 2), (2.0, 1.0, 1.5)), ((2, 0, 1), (1.0, 2.5, 0.8)), ((1, 2, 0), (1.5, 1.5, 1.5))]


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("slab_values", [1, 700, 10**9])
def test_models_on_other_grids_and_axes_are_averaged_on_the_images(monkeypatch, overlapping, slab_values):
    monkeypatch.setattr(probabilities, "SLAB_VALUES", slab_values)
    parts = [part_of(seed, *how) for seed, how in enumerate(PARTS)]
    expected = np.mean([whole_probabilities(part, overlapping) for part in parts], axis=0)
    found = np.zeros_like(expected)
    for rows, slab in mean_probabilities(parts, overlapping):
        found[:, rows] = slab
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_mask_of_several_models_is_that_of_their_mean():
    parts = [part_of(seed, *how) for seed, how in enumerate(PARTS)]
    expected = np.mean([whole_probabilities(part, False) for part in parts], axis=0).argmax(0)
    assert (segment(parts, LABELS) == expected).mean() > 0.999


def test_one_models_mask_is_decoded_from_its_logits():
    part = part_of(4, *PARTS[1])
    np.testing.assert_array_equal(segment([part], LABELS), decode_labels(part.logits, part.placement))


@pytest.mark.parametrize("models", [1, 2])
def test_regions_are_painted_in_order_where_they_are_likelier_than_not(models):
    parts = [part_of(seed, *PARTS[seed], channels=2) for seed in range(models)]
    whole, core = np.mean([whole_probabilities(part, True) for part in parts], axis=0)
    expected = np.where(core > 0.5, 2, np.where(whole > 0.5, 1, 0))
    assert (segment(parts, REGIONS) == expected).mean() > 0.999


# ---------------------------------------------------------------- files
def image_file(path, shape=(10, 12, 9)) -> Volume:
    affine = np.diag([1.5, 1.0, 2.0, 1]) @ np.array(
        [[0.98, -0.2, 0, 5], [0.2, 0.98, 0, -3], [0, 0, -1, 7], [0, 0, 0, 1]]
    )
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.float32), affine), path)
    return read_image([path], 1)


@pytest.mark.parametrize("models", [1, 2])
def test_probabilities_lie_on_the_images_grid_with_channels_last(tmp_path, models):
    like = image_file(tmp_path / "image.nii.gz")
    parts = [part_of(seed, *PARTS[seed]) for seed in range(models)]
    path = tmp_path / "masks" / "case_probabilities.nii.gz"
    mask = segment(parts, LABELS, like, path)
    file, image = nibabel.load(path), nibabel.load(tmp_path / "image.nii.gz")
    values = np.asanyarray(file.dataobj)
    assert values.dtype == np.float32 and values.shape == (10, 12, 9, 3)
    np.testing.assert_array_equal(file.affine, image.affine)
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
    expected = np.mean([whole_probabilities(part, False) for part in parts], axis=0)
    np.testing.assert_allclose(values.T, expected, atol=1e-6)
    assert (mask == values.argmax(-1).T).mean() > 0.999
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    np.testing.assert_allclose(read_image([path], 3).voxels, values.T)


@pytest.mark.parametrize("is_2d", [False, True])
def test_other_formats_grids_become_nifti(tmp_path, is_2d):
    shape = (1, *SHAPE[1:]) if is_2d else SHAPE
    grid = Grid(shape, (2.0, 1.0, 1.5), (10.0, -4.0, 3.0), ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)), is_2d)
    like = Volume(np.zeros((1, 0, 0, 0), np.float32), grid, header=None)
    part = part_of(0, (0, 1, 2), (2.0, 1.0, 1.5))
    if is_2d:
        crop = ((0, 1), *part.placement.crop[1:])
        placement = Placement(shape, grid.spacing, crop, (0, 1, 2), (1, 11, 8), grid.spacing, (1, 11, 8), grid.spacing)
        part = Part(part.logits[:, :1].copy(), placement)
    segment([part], LABELS, like, tmp_path / "case_probabilities.nii.gz")
    file = nibabel.load(tmp_path / "case_probabilities.nii.gz")
    assert file.shape == (*shape[::-1], 3)
    np.testing.assert_allclose(file.affine @ [0, 0, 0, 1], [10, -4, 3, 1])
    np.testing.assert_allclose(file.header.get_zooms()[:3], (1.5, 1.0, 2.0))


# ---------------------------------------------------------------- a cascade's first masks
def test_a_mask_goes_to_the_second_grid_as_training_labels_do():
    where = part_of(0, (2, 0, 1), (1.0, 2.5, 0.8)).placement
    mask = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    found = labels_on_grid(mask, where)
    box = tuple(slice(*span) for span in where.crop)
    expected = resample_labels(mask[box].transpose(where.axes), where.cropped_spacing, where.shape, where.spacing)
    np.testing.assert_array_equal(found, expected)
    channels = one_hot(found, 3)
    assert channels.shape == (2, *where.shape) and channels.dtype == np.float32
    np.testing.assert_array_equal(channels.sum(0), found > 0)
    np.testing.assert_array_equal(channels[1] == 1, found == 2)
