"""Kernels made to fit: a constant image gives what it gave, whatever the kernel's sizes, axes and channels."""

import pytest
import torch
from torch.nn import functional

from autoseg.networks.kernel_adaptation import MASK_PREFIX, fit_inputs, fit_kernel

MASK = f"{MASK_PREFIX}organ"


@pytest.mark.parametrize("before,after", [
    ((3, 3, 3), (1, 3, 3)), ((1, 3, 3), (3, 3, 3)), ((3, 3), (3, 3, 3)), ((3, 3), (1, 3, 3)), ((3, 3, 3), (3, 3)),
    ((1, 3, 3), (3, 3)), ((5, 5, 5), (3, 3, 3)), ((3, 3, 3), (5, 3, 1)), ((7, 3, 1), (3, 1, 1)),
])
def test_a_constant_image_gives_the_same_through_a_fitted_kernel(before, after) -> None:
    weight = torch.randn(4, 2, *before)
    fitted, how = fit_kernel(weight, after)
    assert fitted.shape == (4, 2, *after)
    axes = tuple(range(2, 2 + len(before))), tuple(range(2, 2 + len(after)))
    assert torch.allclose(fitted.sum(axes[1]), weight.sum(axes[0]), atol=1e-5)
    assert how == f"kernel {'×'.join(map(str, before))} → {'×'.join(map(str, after))}"


def test_every_slice_of_a_volume_gives_what_the_slice_gave_in_two_dimensions() -> None:
    weight, slices = torch.randn(4, 2, 3, 3), torch.randn(1, 2, 5, 8, 9)
    expected = torch.stack([functional.conv2d(slices[:, :, z], weight, padding=1) for z in range(5)], dim=2)
    for size in (1, 3):
        fitted, _ = fit_kernel(weight, (size, 3, 3))
        volume = functional.conv3d(slices, fitted, padding=(size // 2, 1, 1))
        assert torch.allclose(volume, expected, atol=1e-5)


def test_a_volume_that_is_constant_over_slices_gives_the_same_slice_in_two_dimensions() -> None:
    weight, image = torch.randn(4, 2, 3, 3, 3), torch.randn(1, 2, 8, 9)
    flat, _ = fit_kernel(weight, (3, 3))
    volume = functional.conv3d(image[:, :, None].expand(-1, -1, 7, -1, -1), weight, padding=(0, 1, 1))
    assert torch.allclose(functional.conv2d(image, flat, padding=1), volume[:, :, 2], atol=1e-5)


@pytest.mark.parametrize("before,after", [((2, 2, 2), (1, 2, 2)), ((1, 2, 2), (2, 2, 2)), ((2, 2), (2, 2, 2)),
                                          ((2, 2, 2), (2, 2)), ((2, 2), (1, 2, 2)), ((1, 2, 2), (4, 2, 2))])
def test_blocks_are_repeated_or_averaged(before, after) -> None:
    """Upsampling by transposed convolution: the mean of what a voxel becomes is what it was."""
    weight = torch.randn(3, 4, *before)
    fitted, _ = fit_kernel(weight, after, blockwise=True)
    assert fitted.shape == (3, 4, *after)
    assert torch.allclose(fitted.flatten(2).mean(2), weight.flatten(2).mean(2), atol=1e-5)
    image = torch.randn(1, 3, *(4,) * len(after))
    upsample = functional.conv_transpose2d if len(after) == 2 else functional.conv_transpose3d
    means = upsample(image, fitted, stride=after).flatten(2).mean(2)
    assert torch.allclose(means, torch.einsum("bi,io->bo", image.flatten(2).mean(2), weight.flatten(2).mean(2)),
                          atol=1e-5)


def test_what_no_rule_covers_is_none() -> None:
    assert fit_kernel(torch.randn(1, 1, 2, 3, 3), (3, 3, 3)) is None, "even"
    assert fit_kernel(torch.randn(1, 1, 4, 2, 2), (2, 2, 2), blockwise=True) is None
    assert fit_kernel(torch.randn(1, 1, 3), (3, 3, 3)) is None, "two axes more"


# ---------------------------------------------------------------- input channels
def test_equal_channels_stay_as_they_are() -> None:
    weight = torch.randn(4, 2, 3, 3, 3)
    fitted, how = fit_inputs(weight, ("T1", "FLAIR"), (" t1", "flair"))
    assert torch.equal(fitted, weight) and how == ""


def test_channels_find_their_kernel_by_name() -> None:
    weight = torch.randn(4, 3, 3, 3, 3)
    fitted, how = fit_inputs(weight, ("T1", "T2", "FLAIR"), ("FLAIR", "T1", "T2"))
    assert torch.equal(fitted, weight[:, [2, 0, 1]]) and "FLAIR by name" in how
    fewer, how = fit_inputs(weight, ("T1", "T2", "FLAIR"), ("T2",))
    assert torch.equal(fewer, weight[:, [1]]) and "T1, FLAIR not used" in how


def test_as_many_channels_that_are_left_go_in_order() -> None:
    weight = torch.randn(4, 2, 3, 3)
    fitted, how = fit_inputs(weight, ("CT", "T2"), ("T2", "PET"))
    assert torch.equal(fitted, weight[:, [1, 0]]) and "PET takes CT" in how
    other, how = fit_inputs(weight[:, :1], ("CT",), ("T1",))
    assert torch.equal(other, weight[:, :1]) and how == "input channels: T1 takes CT"


@pytest.mark.parametrize("given,wanted", [(1, 3), (3, 1), (2, 4), (4, 3)])
def test_the_response_to_equal_images_keeps_its_size(given: int, wanted: int) -> None:
    weight, image = torch.randn(5, given, 3, 3), torch.randn(1, 1, 8, 8)
    fitted, how = fit_inputs(weight, [f"a{i}" for i in range(given)], [f"b{i}" for i in range(wanted)])
    before = functional.conv2d(image.expand(-1, given, -1, -1), weight)
    after = functional.conv2d(image.expand(-1, wanted, -1, -1), fitted)
    assert torch.allclose(before, after, atol=1e-4)
    assert f"b0 takes the mean of {given}, times {given}/{wanted}" in how and "not used" not in how


def test_a_named_channel_keeps_its_kernel_and_the_others_take_the_mean() -> None:
    weight = torch.randn(4, 2, 3, 3)
    fitted, how = fit_inputs(weight, ("T1", "T2"), ("T1", "FLAIR", "PD", "CT"))
    assert torch.equal(fitted[:, 0], weight[:, 0])
    assert torch.allclose(fitted[:, 1], weight.mean(1) / 2) and "FLAIR takes the mean of 2, times 2/4" in how


def test_masks_of_a_previous_stage_are_no_images() -> None:
    weight = torch.randn(4, 1, 3, 3)
    with_mask, how = fit_inputs(weight, ("CT",), ("CT", MASK))
    assert torch.equal(with_mask[:, :1], weight) and not with_mask[:, 1].any() and f"{MASK} begins at zero" in how
    back, how = fit_inputs(torch.randn(4, 2, 3, 3), ("CT", MASK), ("MR", "PET"))
    assert back.shape == (4, 2, 3, 3) and f"{MASK} not used" in how and "times 1/2" in how
