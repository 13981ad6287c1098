"""Intensity changes, turning and placement against nnU-Net v2's own code, at the same parameters."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import (
        SpatialTransform,
        create_affine_matrix_2d,
        create_affine_matrix_3d,
    )
    from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
    from batchgeneratorsv2.transforms.utils.random import RandomTransform
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from autoseg.training import augmentation, draws, placement, spatial

SHAPES = [(3, 24, 31), (3, 12, 17, 10), (2, 4, 40, 33)]  # channels, then a 2-D, a 3-D and an anisotropic patch
TOLERANCE = 2e-5  # of intensities with standard deviation 1: float32 sums in another order


def picture(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Smooth structure and noise, a different mean per channel."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=shape)
    for axis in range(1, len(shape)):
        image = image + np.sin(np.arange(shape[axis]) / 3 + axis).reshape(
            [-1 if a == axis else 1 for a in range(len(shape))])
    return torch.from_numpy((image + np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


def every_channel(image: torch.Tensor) -> torch.Tensor:
    return torch.arange(image.shape[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_has_the_peers_scale(shape):
    image = torch.zeros((1, *shape))
    augmentation.add_noise(image, [draws.NoiseDraw(sigma=0.07, seed=3)])
    torch.manual_seed(3)
    peer = GaussianNoiseTransform((0, 0.1), 1, True)._apply_to_image(
        torch.zeros(shape), num_apply=shape[0], apply_idx=torch.arange(shape[0]), sigmas=0.07)
    assert_close(image[0], peer)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_blur(shape, seed):
    sigmas = np.random.default_rng(seed).uniform(0.5, 1, (shape[0], len(shape) - 1)).tolist()
    image = picture(shape, seed)
    peer = GaussianBlurTransform((0.5, 1.0), False, False, 1, benchmark=False)._apply_to_image(
        image.clone(), apply_to_channel=np.ones(shape[0], bool), sigmas=sigmas)
    assert_close(augmentation.blur(image, sigmas), peer)


@pytest.mark.parametrize("shape", SHAPES)
def test_brightness(shape):
    image, factors = picture(shape), torch.linspace(0.75, 1.25, shape[0])
    peer = MultiplicativeBrightnessTransform((0.75, 1.25), False)._apply_to_image(
        image.clone(), apply_to_channel=every_channel(image), multipliers=factors)
    assert torch.equal(augmentation.scale_brightness(image, factors.tolist()), peer)


@pytest.mark.parametrize("shape", SHAPES)
def test_contrast(shape):
    image, factors = picture(shape), torch.linspace(0.75, 1.25, shape[0])
    peer = ContrastTransform((0.75, 1.25), True, False)._apply_to_image(
        image.clone(), apply_to_channel=every_channel(image), multipliers=factors)
    assert_close(augmentation.change_contrast(image, factors.tolist()), peer)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(8))
def test_low_resolution(shape, seed):
    scales = np.random.default_rng(seed).uniform(0.5, 1, shape[0])
    exempt = shape[1] == 4
    per_axis = [[1.0 if exempt and axis == 0 else float(s) for axis in range(len(shape) - 1)] for s in scales]
    image = picture(shape, seed)
    peer = SimulateLowResolutionTransform((0.5, 1), False, True, (0,) if exempt else None)._apply_to_image(
        image.clone(), apply_to_channel=every_channel(image), scales=torch.tensor(per_axis))
    assert_close(augmentation.lower_resolution(image, per_axis), peer)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("invert", [False, True])
def test_gamma(shape, invert):
    image, gammas = picture(shape), torch.linspace(0.7, 1.5, shape[0])
    peer = GammaTransform((0.7, 1.5), float(invert), False, 1, 1)._apply_to_image(
        image.clone(), apply_to_channel=every_channel(image), gamma=gammas,
        retain_stats=torch.ones(shape[0], dtype=torch.bool), invert_image=torch.full((shape[0],), invert))
    change = augmentation.change_inverted_gamma if invert else augmentation.change_gamma
    assert_close(change(image, gammas.tolist()), peer)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
def test_mirroring(shape, axes):
    image = picture(shape)
    labels = (image[0] > 0).to(torch.uint8)
    ours, our_labels = image[None].clone(), labels[None].clone()
    augmentation.mirror(ours, our_labels, [axes])
    peer = MirrorTransform((0, 1, 2))
    assert torch.equal(ours[0], peer._apply_to_image(image, axes=list(axes)))
    assert torch.equal(our_labels, peer._apply_to_segmentation(labels[None], axes=list(axes)))


def test_matrices_are_the_peers():
    """Direction and order of the rotations."""
    angles, scale = np.array([0.3, -0.2, 0.5]), 1.3
    assert np.allclose(scale * draws._rotation_3d(angles), create_affine_matrix_3d(angles, [scale] * 3))
    assert np.allclose(scale * draws._rotation_2d(0.4), create_affine_matrix_2d(0.4, [scale] * 2))


def turned_by_peer(image, labels, matrix, patch):
    """batchgeneratorsv2's SpatialTransform around the region's middle, at a fixed matrix."""
    transform = SpatialTransform(patch, 0, False, p_rotation=1, rotation=(0.1, 0.2), p_scaling=1, scaling=(1, 1),
                                 bg_style_seg_sampling=False, border_mode_seg="constant", padding_value_seg=-1)
    with pytest.MonkeyPatch.context() as patched:
        module = "batchgeneratorsv2.transforms.spatial.spatial.create_affine_matrix_"
        patched.setattr(module + "2d", lambda *_: np.array(matrix))
        patched.setattr(module + "3d", lambda *_: np.array(matrix))
        parameters = transform.get_parameters(image=image)
    turned = transform._apply_to_segmentation(labels, **parameters)
    return transform._apply_to_image(image, **parameters), torch.where(turned == -1, 0, turned)


def blobs(shape, count, seed=1):
    """Labels 0 … count - 1 in blocks with ragged borders."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, count, [-(-length // 4) for length in shape])
    fine = coarse[np.ix_(*[np.arange(length) // 4 for length in shape])]
    return torch.from_numpy(fine.astype(np.int16))


@pytest.mark.parametrize(("region", "patch"), [((30, 34, 28), (16, 20, 14)), ((12, 11, 13), (16, 12, 20)),
                                               ((40, 37), (24, 26)), ((20, 21), (24, 20))])
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("count", [2, 6])
def test_turning(region, patch, scale, count):
    rng = np.random.default_rng(len(region))
    rotation = (draws._rotation_2d(rng.uniform(-3, 3)) if len(region) == 2
                else draws._rotation_3d(rng.uniform(-0.5, 0.5, 3)))
    matrix = tuple(tuple(row) for row in (scale * rotation).tolist())
    image, labels = picture((2, *region)), blobs((1, *region), count)
    coordinates = spatial.sample_coordinates(matrix, [(n - 1) / 2 for n in region], patch, torch.device("cpu"))
    peer_image, peer_labels = turned_by_peer(image, labels, matrix, patch)
    torch.testing.assert_close(spatial.resample_image(image, coordinates), peer_image, atol=1e-4, rtol=1e-4)
    # The peer compares scores in float16, so near ties may fall either way.
    agreement = (spatial.resample_labels(labels, coordinates) == peer_labels).float().mean()
    assert agreement > 0.998


def test_turning_slice_by_slice():
    """Dummy 2-D: the slices become planes."""
    region, patch = (4, 30, 34), (4, 20, 24)
    matrix = tuple(tuple(row) for row in (1.2 * draws._rotation_2d(2.0)).tolist())
    image, labels = picture((2, *region)), blobs((1, *region), 4)
    flat = Convert3DTo2DTransform()(image=image, segmentation=labels)
    flat["image"], flat["segmentation"] = turned_by_peer(flat["image"], flat["segmentation"], matrix, patch[1:])
    peer = Convert2DTo3DTransform()(**flat)
    coordinates = spatial.sample_coordinates(matrix, (14.5, 16.5), patch[1:], torch.device("cpu"))
    ours = spatial.resample_image(image.flatten(0, 1), coordinates).view(2, *patch)
    torch.testing.assert_close(ours, peer["image"], atol=1e-4, rtol=1e-4)
    assert (spatial.resample_labels(labels[0], coordinates) == peer["segmentation"][0]).float().mean() > 0.998


# ---------------------------------------------------------------- placement
PATCHES = [(40, 56, 40), (128, 128, 128), (20, 256, 224), (17, 33, 20), (48, 64), (64, 320), (41, 37)]


def peer_loader(patch, enlarged):
    loader = object.__new__(nnUNetDataLoader)
    loader.patch_size, loader.has_ignore = tuple(enlarged), False
    loader.need_to_pad = np.array(enlarged) - np.array(patch)
    loader.annotated_classes_key = (-1, 0, 1, 2)
    return loader


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("shape", [(35, 51, 36), (150, 131, 144), (1, 300, 310), (12, 19, 400)])
@pytest.mark.parametrize("training", [True, False])
def test_range_and_centering_of_patches(patch, shape, training, monkeypatch):
    """The peer's first and last random box, and its box around given voxels, seen from the patch in its middle."""
    small = np.array(placement.as_3d(patch))
    large = np.array(placement.enlarged_shape(patch)) if training else small
    loader, inset = peer_loader(small, large), large // 2 - small // 2
    monkeypatch.setattr(np.random, "randint", lambda low, high: low)
    first = np.array(loader.get_bbox(np.array(shape), False, None)[0]) + inset
    monkeypatch.setattr(np.random, "randint", lambda low, high: high - 1)
    last = np.array(loader.get_bbox(np.array(shape), False, None)[0]) + inset
    ranges = [placement.start_range(*lengths) for lengths in zip(shape, small.tolist(), large.tolist(), strict=True)]
    assert [low for low, _ in ranges] == first.tolist()
    assert [high for _, high in ranges] == last.tolist()
    rng = np.random.default_rng(0)
    for voxel in ((0, 0, 0), tuple(n - 1 for n in shape), tuple(n // 2 for n in shape)):
        locations = {1: np.array([[0, *voxel]])}
        peer = np.array(loader.get_bbox(np.array(shape), True, locations)[0]) + inset
        assert placement.draw_start(rng, shape, small.tolist(), large.tolist(), voxel) == tuple(peer.tolist())


@pytest.mark.parametrize("batch_size", range(1, 13))
def test_forced_foreground_samples(batch_size):
    loader = object.__new__(nnUNetDataLoader)
    loader.batch_size, loader.oversample_foreground_percent = batch_size, 0.33
    for sample in range(batch_size):
        assert draws.is_forced_foreground(sample, batch_size, 0.33) == loader._oversample_last_XX_percent(sample)


# ---------------------------------------------------------------- the table of probabilities and ranges
def trainer_setup(patch):
    """The rotation, mirroring and dummy-2D choices of nnU-Net's trainer for a patch shape."""
    trainer = object.__new__(nnUNetTrainer)
    trainer.configuration_manager = SimpleNamespace(patch_size=patch)
    trainer.print_to_log_file = lambda *_: None
    return trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()


@pytest.mark.parametrize("patch", PATCHES)
def test_rotation_rule_and_enlarged_patch_are_the_trainers(patch):
    rotation, dummy_2d, initial_patch, _ = trainer_setup(patch)
    rule = placement.rotation_rule(patch)
    assert rule.in_plane == (dummy_2d or len(patch) == 2)
    assert rotation == pytest.approx((-rule.max_angle, rule.max_angle))
    assert placement.enlarged_shape(patch) == placement.as_3d([int(n) for n in initial_patch])


def test_probabilities_ranges_and_order_are_the_trainers():
    patch = (20, 256, 224)
    rotation, dummy_2d, _, axes = trainer_setup(patch)
    steps = nnUNetTrainer.get_training_transforms(patch, rotation, None, axes, dummy_2d).transforms
    turn = next(step for step in steps if isinstance(step, SpatialTransform))
    assert (turn.p_rotation, turn.p_scaling, turn.scaling) == (
        draws.ROTATION_PROBABILITY, draws.SCALING_PROBABILITY, draws.SCALING_RANGE)
    assert (turn.p_synchronize_scaling_across_axes, turn.p_rot_per_axis, turn.p_elastic_deform) == (1, 1, 0)
    chosen = [(step.apply_probability, step.transform) for step in steps if isinstance(step, RandomTransform)]
    noise, blur, brightness, contrast, low, inverted, gamma = chosen
    assert (noise[0], tuple(noise[1].noise_variance)) == (draws.NOISE_PROBABILITY, draws.NOISE_RANGE)
    assert noise[1].synchronize_channels
    assert noise[1].p_per_channel == 1
    assert (blur[0], blur[1].p_per_channel, blur[1].blur_sigma) == (
        draws.BLUR_PROBABILITY, draws.BLUR_CHANNEL_PROBABILITY, draws.BLUR_RANGE)
    assert not blur[1].synchronize_axes
    assert (brightness[0], brightness[1].multiplier_range.contrast_range) == (
        draws.BRIGHTNESS_PROBABILITY, draws.BRIGHTNESS_RANGE)
    assert (contrast[0], contrast[1].contrast_range.contrast_range, contrast[1].preserve_range) == (
        draws.CONTRAST_PROBABILITY, draws.CONTRAST_RANGE, True)
    assert (low[0], low[1].p_per_channel, low[1].scale, low[1].ignore_axes, low[1].synchronize_axes) == (
        draws.LOW_RESOLUTION_PROBABILITY, draws.LOW_RESOLUTION_CHANNEL_PROBABILITY, draws.LOW_RESOLUTION_RANGE,
        (0,), True)
    assert (inverted[0], inverted[1].p_invert_image, gamma[0], gamma[1].p_invert_image) == (
        draws.INVERTED_GAMMA_PROBABILITY, 1, draws.GAMMA_PROBABILITY, 0)
    assert inverted[1].gamma.contrast_range == gamma[1].gamma.contrast_range == draws.GAMMA_RANGE
    for _, change in chosen[1:]:
        assert not change.synchronize_channels
    for _, change in (brightness, contrast, inverted, gamma):
        assert change.p_per_channel == 1
