"""Laws of the batched augmentation, beyond what the oracle test compares."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from autoseg.training import augmentation, spatial
from autoseg.training.draws import IntensityDraw, NoiseDraw

NOTHING = IntensityDraw(noise=None, blur=(None, None), brightness=(None, None), contrast=(None, None),
                        low_resolution=(None, None), inverted_gamma=(None, None), gamma=(None, None))
EVERYTHING = IntensityDraw(noise=NoiseDraw(0.1, 7), blur=((0.6, 0.7, 0.8), None), brightness=(1.1, 0.9),
                           contrast=(0.8, 1.2), low_resolution=(None, (0.6, 0.6, 0.6)), inverted_gamma=(0.8, 1.2),
                           gamma=(1.3, 0.7))


@pytest.fixture
def batch():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, 9, 8, 10)).astype(np.float32))


def test_an_empty_draw_leaves_a_sample_untouched_bit_for_bit(batch):
    before = batch.clone()
    augmentation.change_intensities(batch, [NOTHING, EVERYTHING, NOTHING])
    assert torch.equal(batch[0], before[0])
    assert torch.equal(batch[2], before[2])
    assert not torch.isclose(batch[1], before[1]).any(dim=-1).all()


def test_a_sample_does_not_depend_on_its_neighbors(batch):
    alone = augmentation.change_intensities(batch[1:2].clone(), [EVERYTHING])
    together = augmentation.change_intensities(batch.clone(), [EVERYTHING, EVERYTHING, NOTHING])
    torch.testing.assert_close(together[1:2], alone)


def test_the_same_draws_give_the_same_batch_bit_for_bit(batch):
    draws = [EVERYTHING, NOTHING, EVERYTHING]
    one, other = (augmentation.change_intensities(batch.clone(), draws) for _ in range(2))
    assert torch.equal(one, other)


def test_only_the_chosen_channel_changes(batch):
    draw = replace(NOTHING, gamma=(None, 1.4))
    changed = augmentation.change_intensities(batch.clone(), [draw, NOTHING, NOTHING])
    assert torch.equal(changed[0, 0], batch[0, 0])
    assert not torch.equal(changed[0, 1], batch[0, 1])


def test_the_order_is_noise_blur_brightness_contrast_resolution_gammas(batch):
    """Applied one draw at a time in the documented order, the result is the same."""
    ordered = batch.clone()
    for field in ("noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma"):
        single = replace(NOTHING, **{field: getattr(EVERYTHING, field)})
        augmentation.change_intensities(ordered, [single] * 3)
    assert torch.equal(ordered, augmentation.change_intensities(batch.clone(), [EVERYTHING] * 3))


def test_outside_the_body_masked_channels_stay_zero(batch):
    batch[:, :, :3] = 0
    changed = augmentation.change_intensities(batch, [EVERYTHING] * 3, masked_channels=[1])
    assert (changed[:, 1, :3] == 0).all()
    assert (changed[:, 0, :3] != 0).any()


def test_gamma_keeps_mean_and_standard_deviation(batch):
    planes = batch.flatten(0, 1)
    for change in (augmentation.change_gamma, augmentation.change_inverted_gamma):
        changed = change(planes, [0.7, 0.9, 1.0, 1.1, 1.3, 1.5])
        torch.testing.assert_close(changed.mean((1, 2, 3)), planes.mean((1, 2, 3)), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(changed.std((1, 2, 3)), planes.std((1, 2, 3)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 20, 20), (1, 2, 3, 20), (1, 5, 1, 1)])
def test_thin_and_constant_patches_stay_finite(shape):
    """Axes of one to three voxels, where torch's reflecting padding gives up, and planes of one value."""
    planes = torch.full(shape, 3.0)
    axes = len(shape) - 1
    for changed in (augmentation.blur(planes, [[1.0] * axes]), augmentation.lower_resolution(planes, [[0.5] * axes]),
                    augmentation.change_gamma(planes, [1.4]), augmentation.change_contrast(planes, [1.2])):
        torch.testing.assert_close(changed, planes)


def test_turning_by_the_identity_changes_nothing():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(2, 6, 7, 8)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 5, (1, 6, 7, 8)).astype(np.uint8))
    identity = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    where = spatial.sample_coordinates(identity, (2.5, 3.0, 3.5), (6, 7, 8), torch.device("cpu"))
    torch.testing.assert_close(spatial.resample_image(image, where), image, atol=1e-5, rtol=1e-5)
    assert torch.equal(spatial.resample_labels(labels, where), labels)


@pytest.mark.parametrize("count", [2, 7, 300])
def test_label_vote_against_one_hot_interpolation(count):
    """The largest of all labels' interpolated indicators, computed for every label."""
    rng = np.random.default_rng(count)
    labels = torch.from_numpy(rng.integers(0, count, (1, 8, 9, 7)).astype(np.int16))
    matrix = ((0.9, 0.2, 0.1), (-0.2, 0.8, 0.3), (0.0, -0.3, 0.7))
    where = spatial.sample_coordinates(matrix, (3.4, 4.1, 2.9), (6, 6, 6), torch.device("cpu"))
    indicators = torch.stack([(labels[0] == label).float() for label in range(count)])
    scores = spatial.resample_image(indicators, where)
    inside = torch.stack([(c > 0.01) & (c < n - 1.01) for c, n in zip(where, (8, 9, 7), strict=True)]).all(0)
    assert inside.float().mean() > 0.5
    chosen = spatial.resample_labels(labels, where).long()
    own = scores.gather(0, chosen)[0]
    assert (own[inside] >= scores.max(0).values[inside] - 1e-5).all()


def test_label_resampling_invents_no_label():
    labels = torch.zeros((1, 10, 10), dtype=torch.uint8)
    labels[0, :, 5:] = 200
    where = spatial.sample_coordinates(((0.9, 0.3), (-0.3, 0.9)), (4.5, 4.5), (14, 14), torch.device("cpu"))
    assert set(spatial.resample_labels(labels, where).unique().tolist()) == {0, 200}
