"""Resampling agrees with nnU-Net's own (skimage, scipy, batchgenerators) on all kinds of grids."""

import warnings

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from autoseg.data.resampling import (
    coarse_axis,
    linear_operators,
    resample_image,
    resample_labels,
    resample_linear,
)
from autoseg.geometry import resampled_shape

IMAGE_TOLERANCE = 2e-5  # times the image's std; single against double precision

# shape, spacing, target spacing (mm), array order
GRIDS = {
    "isotropic up": ((20, 23, 31), (1.5, 1.5, 1.5), (1.0, 1.0, 1.0)),
    "isotropic down": ((40, 33, 31), (1.0, 1.0, 1.0), (1.9, 1.9, 1.9)),
    "halved exactly": ((16, 24, 20), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0)),
    "times 1.5": ((20, 24, 30), (1.5, 1.5, 1.5), (1.0, 1.0, 1.0)),
    "coarse first axis": ((9, 40, 37), (8.0, 1.25, 1.25), (6.0, 1.1, 1.1)),
    "coarse first axis, more slices": ((9, 40, 37), (8.0, 1.25, 1.25), (2.5, 1.4, 1.4)),
    "coarse last axis": ((30, 28, 7), (1.0, 1.0, 5.0), (0.8, 0.8, 4.0)),
    "coarse middle axis": ((30, 7, 28), (1.0, 5.0, 1.0), (1.2, 7.0, 1.2)),
    "only the target is coarse": ((30, 28, 26), (1.5, 1.0, 1.0), (4.5, 1.0, 1.0)),
    "two axes share the largest": ((30, 12, 12), (0.24, 1.25, 1.25), (0.3, 1.0, 1.0)),
    "coarse axis keeps its slices": ((9, 40, 37), (8.0, 1.25, 1.25), (8.0, 1.0, 1.0)),
    "one slice": ((1, 40, 37), (1.0, 1.0, 1.0), (1.0, 0.7, 1.3)),
    "one slice, 999 mm": ((1, 40, 37), (999.0, 1.0, 1.0), (999.0, 0.7, 1.3)),
    "one voxel becomes many": ((1, 5, 2), (3.0, 1.0, 2.0), (1.0, 0.5, 0.5)),
    "many become one": ((6, 5, 4), (1.0, 1.0, 1.0), (6.0, 2.5, 2.0)),
    "unchanged": ((6, 9, 7), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
}


def random_grid(seed: int):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 45, 3))
    spacing = tuple(float(mm) for mm in rng.uniform(0.5, 4, 3))
    target = tuple(float(mm) for mm in np.maximum(rng.uniform(0.5, 2, 3) * spacing, 0.3))
    return shape, spacing, tuple(min(t, s * n) for t, s, n in zip(target, spacing, shape, strict=True))


ALL_GRIDS = {**GRIDS, **{f"random {seed}": random_grid(seed) for seed in range(12)}}


def oracle(array, spacing, target_shape, target, **how):
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return resample_data_or_seg_to_shape(
            array, target_shape, spacing, target, order_z=0, force_separate_z=None, **how
        )


def blobs(shape, seed, count=5):
    """Random smooth regions with labels 0 … count − 1, every one of them touching several others."""
    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.normal(size=shape), 2, mode="nearest") for _ in range(count)]
    return np.argmax(fields, axis=0)


@pytest.mark.parametrize("name", ALL_GRIDS)
def test_images(name):
    shape, spacing, target = ALL_GRIDS[name]
    image = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    target_shape = resampled_shape(shape, spacing, target)
    ours = resample_image(image, spacing, target_shape, target)
    theirs = oracle(image, spacing, target_shape, target, order=3)
    assert ours.shape == (2, *target_shape) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=IMAGE_TOLERANCE, rtol=0)


def test_images_far_from_zero_keep_their_precision():
    image = (1000 + np.random.default_rng(2).normal(size=(1, 20, 30, 25))).astype(np.float32)
    ours = resample_image(image, (3.0, 1.0, 1.0), (30, 41, 19), (2.0, 0.73, 1.3))
    theirs = oracle(image, (3.0, 1.0, 1.0), (30, 41, 19), (2.0, 0.73, 1.3), order=3)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("name", ALL_GRIDS)
def test_labels(name, dtype):
    shape, spacing, target = ALL_GRIDS[name]
    labels = blobs(shape, seed=3).astype(dtype)
    target_shape = resampled_shape(shape, spacing, target)
    ours = resample_labels(labels, spacing, target_shape, target)
    theirs = oracle(labels[None].astype(np.int16), spacing, target_shape, target, is_seg=True, order=1)[0]
    assert ours.dtype == dtype
    # Where two labels score the same by arithmetic, nnU-Net's winner depends on rounding in double precision;
    # everywhere else there is no difference, and ours is always one of those that tie.
    operators = linear_operators(shape, spacing, target_shape, target)
    scores = np.stack(
        [resample_linear((labels == label).astype(np.float32), operators) for label in range(5)]
    )
    ahead = scores.max(axis=0) - np.take_along_axis(scores, ours[None].astype(int), axis=0)[0]
    assert ahead.max() < 1e-5
    second, first = np.sort(scores, axis=0)[-2:]
    assert np.all((first - second)[ours != theirs] < 1e-6)
    assert np.mean(ours != theirs) < 3e-3, (
        "these labels are all surface; real ones agree to 99.99 % and better"
    )


def test_labels_in_thin_slabs_equal_labels_at_once(monkeypatch):
    labels = blobs((20, 21, 22), seed=4).astype(np.uint8)
    at_once = resample_labels(labels, (2.0, 1.0, 1.0), (33, 30, 13), (1.2, 0.7, 1.7))
    monkeypatch.setattr("autoseg.data.resampling.LABEL_VOXELS_AT_A_TIME", 30 * 13 * 4)
    np.testing.assert_array_equal(
        resample_labels(labels, (2.0, 1.0, 1.0), (33, 30, 13), (1.2, 0.7, 1.7)), at_once
    )


@pytest.mark.parametrize("name", ALL_GRIDS)
def test_logits(name):
    shape, spacing, target = ALL_GRIDS[name]
    logits = np.random.default_rng(5).normal(size=(1, *shape)).astype(np.float32)
    target_shape = resampled_shape(shape, spacing, target)
    ours = resample_linear(logits[0], linear_operators(shape, spacing, target_shape, target))
    theirs = oracle(logits, spacing, target_shape, target, order=1)[0]
    np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_slabs_of_logits_equal_the_whole(seed):
    shape, spacing, target = random_grid(seed)
    target_shape = resampled_shape(shape, spacing, target)
    logits = np.random.default_rng(6).normal(size=shape).astype(np.float32)
    z, y, x = linear_operators(shape, spacing, target_shape, target)
    whole = resample_linear(logits, (z, y, x))
    for start in range(0, target_shape[0], 5):
        stop = min(start + 5, target_shape[0])
        part, (first, last) = z.rows(start, stop)
        np.testing.assert_allclose(
            resample_linear(logits[first:last], (part, y, x)), whole[start:stop], atol=1e-6
        )


@pytest.mark.parametrize("name", ALL_GRIDS)
def test_coarse_axis(name):
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

    _, spacing, target = ALL_GRIDS[name]
    separate, axis = determine_do_sep_z_and_axis(None, spacing, target)
    assert coarse_axis(spacing, target) == (int(axis) if separate else None)
