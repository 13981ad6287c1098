"""Laws of random convolutions and of their two-view blend, and a slow reference of the definition."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from autoseg.domains.random_convolution import (
    Filters,
    RandomConvolutionSettings,
    draw_filters,
    random_convolution,
    random_convolution_views,
)
from autoseg.domains.splines import along_axes, cell_means, cell_spline, free_spline, gaussian
from autoseg.errors import UserError

PATCHES = [(20, 27), (1, 30), (6, 11, 9)]
ONE, TWO = RandomConvolutionSettings(), RandomConvolutionSettings(views=2, grid=8)


def batch(samples: int, patch: tuple[int, ...], channels: int = 1) -> Tensor:
    return 4 * torch.rand(samples, channels, *patch, generator=torch.Generator().manual_seed(3))


def chances(*samples: int) -> list[np.random.Generator]:
    return [np.random.default_rng([5, sample]) for sample in samples]


def reference(image: np.ndarray, filters: Filters) -> np.ndarray:
    """One voxel, one neighbor after the other, in float64; nothing but zeros past the border."""
    hidden = image
    for layer, (kernels, shifts) in enumerate(zip(filters.kernels, filters.shifts, strict=True)):
        size, axes = kernels.shape[-1], image.ndim - 1
        result = np.zeros((len(kernels), *image.shape[1:]))
        for out, voxel in product(range(len(kernels)), np.ndindex(*image.shape[1:])):
            total = float(shifts[out])
            for offset in product(range(size), repeat=axes):
                at = tuple(v + o - size // 2 for v, o in zip(voxel, offset, strict=True))
                if all(0 <= a < n for a, n in zip(at, image.shape[1:], strict=True)):
                    total += float(kernels[(out, slice(None), *offset)] @ hidden[(slice(None), *at)])
            last = layer == len(filters.kernels) - 1
            result[(out, *voxel)] = total if total > 0 or last else 0.01 * total
        hidden = result
    mixed = filters.alpha * hidden + (1 - filters.alpha) * image
    return mixed * np.linalg.norm(image) / np.linalg.norm(mixed)


@pytest.mark.parametrize(("patch", "channels"), [((7, 9), 1), ((6, 5), 3), ((3, 5, 4), 2)])
def test_filtering_is_its_definition(patch: tuple[int, ...], channels: int) -> None:
    image = batch(2, patch, channels)
    (view,) = random_convolution_views(image, chances(0, 1), ONE)
    for sample, rng in enumerate(chances(0, 1)):
        filters = draw_filters(rng, channels, len(patch), ONE)
        expected = reference(image[sample].double().numpy(), filters)
        np.testing.assert_allclose(view[sample].numpy(), expected, atol=2e-4)


def test_sizes_differ_between_layers_and_a_small_kernel_sits_in_the_center() -> None:
    drawn = [draw_filters(rng, 1, 3, ONE) for rng in chances(*range(40))]
    inner = (slice(None), slice(None), 1, 1, 1)
    small = np.array([[np.count_nonzero(k) == np.count_nonzero(k[inner]) for k in own.kernels] for own in drawn])
    assert (small.mean(0) > 0.25).all() and (small.mean(0) < 0.75).all()
    assert [kernel.shape for kernel in drawn[0].kernels] == [
        (n, m, 3, 3, 3) for m, n in [(1, 2), (2, 2), (2, 2), (2, 1)]
    ]
    values = np.concatenate([kernel.ravel() for own in drawn for kernel in own.kernels])
    assert np.std(values[values != 0]) == pytest.approx(1, abs=0.05)
    assert np.std([own.alpha for own in drawn]) == pytest.approx(12**-0.5, abs=0.06)


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_frobenius_norm_stays(patch: tuple[int, ...], channels: int) -> None:
    image = batch(3, patch, channels)
    (view,) = random_convolution_views(image, chances(0, 1, 2), ONE)
    assert view.shape == image.shape
    torch.testing.assert_close(view.flatten(1).norm(dim=1), image.flatten(1).norm(dim=1))
    assert not torch.allclose(view, image, atol=0.1)


@pytest.mark.parametrize("settings", [ONE, TWO])
@pytest.mark.parametrize("patch", PATCHES)
def test_a_sample_is_a_function_of_itself_and_its_own_chance(
    patch: tuple[int, ...], settings: RandomConvolutionSettings
) -> None:
    image = batch(3, patch, 2)
    views = random_convolution_views(image, chances(0, 1, 2), settings)
    again = random_convolution_views(image, chances(0, 1, 2), settings)
    other = random_convolution_views(image, chances(0, 7, 2), settings)
    turned = random_convolution_views(image.flip(0), chances(2, 1, 0), settings)
    alone = random_convolution_views(image[1:2], chances(1), settings)
    for view, same, changed, reverse, single in zip(views, again, other, turned, alone, strict=True):
        assert torch.equal(view, same)
        torch.testing.assert_close(changed[[0, 2]], view[[0, 2]])
        assert not torch.allclose(changed[1], view[1], atol=0.05)
        torch.testing.assert_close(reverse.flip(0), view)
        torch.testing.assert_close(single[0], view[1])


@pytest.mark.parametrize("patch", PATCHES)
def test_two_views_are_convex_blends_that_share_their_sum(patch: tuple[int, ...]) -> None:
    image = batch(2, patch, 2)
    first, second = random_convolution_views(image, chances(0, 1), TWO)
    drawn = [[draw_filters(rng, 2, len(patch), TWO) for _ in range(2)] for rng in chances(0, 1)]
    one, two = (random_convolution(image, [own[view] for own in drawn]) for view in range(2))
    torch.testing.assert_close(first + second, one + two, atol=1e-5, rtol=1e-5)
    low, high = torch.minimum(one, two) - 1e-5, torch.maximum(one, two) + 1e-5
    for view in (first, second):
        assert ((view >= low) & (view <= high)).all()
    # The map is one per sample, the same for every channel, and runs from 0 to 1.
    share = (first - two) / (one - two)
    clear = (one - two).abs() > 0.2
    for sample in range(2):
        both = clear[sample].all(0)
        torch.testing.assert_close(share[sample, 0][both], share[sample, 1][both], atol=1e-3, rtol=0)
    assert not torch.allclose(first, second, atol=0.1)


def test_the_first_view_is_the_same_draw_with_one_view_as_with_two() -> None:
    image = batch(1, (20, 20))
    (single,) = random_convolution_views(image, chances(0), ONE)
    first, second = random_convolution_views(image, chances(0), TWO)
    drawn = [draw_filters(rng, 1, 2, TWO) for rng in chances(0)]
    torch.testing.assert_close(random_convolution(image, drawn), single)
    # Somewhere the map is 0 and somewhere it is 1: there a view is g1 alone.
    assert (first - single).abs().amin() < 1e-5 and (second - single).abs().amin() < 1e-5


def test_without_a_share_the_image_stays() -> None:
    image = batch(2, (9, 8), 2)
    drawn = [replace(draw_filters(rng, 2, 2, ONE), alpha=0.0) for rng in chances(0, 1)]
    torch.testing.assert_close(random_convolution(image, drawn), image)


def test_one_layer_that_doubles_is_scaled_back() -> None:
    image = batch(1, (9, 8)) - 1
    doubled = Filters((np.full((1, 1, 1, 1), 2, np.float32),), (np.zeros(1, np.float32),), 1.0)
    torch.testing.assert_close(random_convolution(image, [doubled]), image)
    inverted = Filters((np.full((1, 1, 1, 1), -3, np.float32),), (np.zeros(1, np.float32),), 1.0)
    torch.testing.assert_close(random_convolution(image, [inverted]), -image)


def test_an_empty_image_stays_empty() -> None:
    image = torch.zeros(2, 1, 8, 8)
    image[1] = batch(1, (8, 8))[0]
    for view in random_convolution_views(image, chances(0, 1), TWO):
        assert torch.equal(view[0], image[0]) and view.isfinite().all()


def test_autocast_does_not_lower_the_precision() -> None:
    image = batch(2, (16, 16))
    expected = random_convolution_views(image, chances(0, 1), TWO)
    with torch.autocast("cpu", torch.bfloat16):
        views = random_convolution_views(image, chances(0, 1), TWO)
    for view, exact in zip(views, expected, strict=True):
        assert view.dtype == torch.float32 and torch.equal(view, exact)


@pytest.mark.parametrize(
    "wrong", [{"kernel_sizes": (2,)}, {"kernel_sizes": ()}, {"views": 3}, {"layers": 0}, {"channels": 0}, {"grid": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        RandomConvolutionSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("matrix", [free_spline(50, 24), free_spline(1, 24), cell_spline(50, 3), cell_spline(2, 2)])
def test_splines_are_partitions_of_one(matrix: np.ndarray) -> None:
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1)


def test_a_cubic_spline_reproduces_a_line_and_is_smooth() -> None:
    matrix = free_spline(60, 24)
    line = matrix @ (24.0 * np.arange(-1, matrix.shape[1] - 1))
    np.testing.assert_allclose(line, np.arange(60), atol=1e-9)
    steps = np.diff(matrix, axis=0)
    assert np.abs(steps).max() < 1 / 24 and np.abs(np.diff(steps, axis=0)).max() < 3 / 24**2


def test_cells_share_border_voxels_and_gaussians_keep_their_sum() -> None:
    np.testing.assert_allclose(cell_means(5, 2), np.array([[1, 1, 0.5, 0, 0], [0, 0, 0.5, 1, 1]]) / 2.5)
    np.testing.assert_allclose(cell_means(6, 3) @ np.arange(6), [0.5, 2.5, 4.5])
    smooth = gaussian(21, 1.5)
    assert smooth[:, 10].sum() == pytest.approx(1) and smooth[0].sum() < 1
    variance = smooth[:, 10] @ (np.arange(21) - 10.0) ** 2
    assert variance == pytest.approx(1.5**2, rel=0.05)


def test_every_axis_has_its_own_matrix() -> None:
    values = batch(2, (4, 5, 6))[:, 0]
    rng = np.random.default_rng(0)
    matrices = [rng.random((3, 4)), rng.random((7, 5)), rng.random((2, 6))]
    expected = np.einsum("pabc,xa,yb,zc->pxyz", values.double().numpy(), *matrices)
    np.testing.assert_allclose(along_axes(values, matrices).numpy(), expected, rtol=1e-4)
