"""Laws of the saliency map and of the fusion it steers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from autoseg.domains.saliency import fuse, saliency_map

PATCHES = [((32, 40), (3, 2)), ((30, 33), (4, 5)), ((4, 24, 21), (1, 3, 2)), ((6, 8, 7), (2, 2, 2))]


def gradients(samples: int, patch: tuple[int, ...], channels: int = 2) -> Tensor:
    return torch.randn(samples, channels, *patch, generator=torch.Generator().manual_seed(3))


def bump(x: float) -> float:
    """The box function convolved with itself twice, by counting on a fine grid."""
    grid = (np.arange(2000) + 0.5) / 2000 - 0.5
    # P(u + v + w near x) for u, v, w uniform in a box of width 1: the mean over u of the triangle at x − u.
    return float(np.maximum(1 - np.abs(x - grid), 0).mean())


def test_the_map_is_its_definition() -> None:
    gradient = gradients(1, (12, 9))
    strength = np.sqrt((gradient[0].double().numpy() ** 2).mean(0))
    means = strength.reshape(3, 4, 3, 3).mean((1, 3))
    padded = np.pad(means, 1, mode="edge")
    expected = np.zeros((12, 9))
    for row, column in np.ndindex(12, 9):
        for (i, j), mean in np.ndenumerate(padded):
            expected[row, column] += mean * bump((row + 0.5) / 4 - 0.5 - (i - 1)) * bump((column + 0.5) / 3 + 0.5 - j)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(saliency_map(gradient, (3, 3))[0, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("patch", "cells"), PATCHES)
def test_it_runs_from_0_to_1_in_every_sample(patch: tuple[int, ...], cells: tuple[int, ...]) -> None:
    gradient = gradients(3, patch)
    saliency = saliency_map(gradient, cells)
    assert saliency.shape == (3, 1, *patch) and saliency.dtype == torch.float32
    assert torch.equal(saliency.flatten(1).amin(1), torch.zeros(3))
    torch.testing.assert_close(saliency.flatten(1).amax(1), torch.ones(3))
    torch.testing.assert_close(saliency_map(gradient.flip(0), cells).flip(0), saliency)


def test_the_place_with_the_large_gradient_is_salient() -> None:
    gradient = 0.1 * gradients(1, (32, 32))
    gradient[0, 1, 20:, :8] *= 50
    saliency = saliency_map(gradient, (4, 4))[0, 0]
    assert saliency[31, 0] > 0.9 and saliency[3, 28] < 0.1


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 65536.0, 1e30])
def test_the_scale_of_the_loss_and_signs_do_not_matter(scale: float) -> None:
    gradient = gradients(2, (16, 16))
    expected = saliency_map(gradient, (2, 2))
    torch.testing.assert_close(saliency_map(-scale * gradient, (2, 2)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("patch", "cells"), PATCHES)
@pytest.mark.parametrize("value", [0.0, 0.1, -3e-12])
def test_a_constant_gradient_keeps_the_mild_view(patch: tuple[int, ...], cells: tuple[int, ...], value: float) -> None:
    assert torch.equal(saliency_map(torch.full((2, 2, *patch), value), cells), torch.ones(2, 1, *patch))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_keeps_the_mild_view_of_its_sample(value: float) -> None:
    gradient = gradients(2, (16, 16))
    expected = saliency_map(gradient, (2, 2))
    gradient[0, 1, 3, 5] = value
    saliency = saliency_map(gradient, (2, 2))
    assert torch.equal(saliency[0], torch.ones(1, 16, 16)) and torch.equal(saliency[1], expected[1])


def test_half_precision_gradients_and_autocast_give_float32() -> None:
    gradient = gradients(2, (16, 16)).half()
    expected = saliency_map(gradient.float(), (2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(saliency_map(gradient, (2, 2)), expected)


def test_one_cell_keeps_the_mild_view() -> None:
    assert torch.equal(saliency_map(gradients(1, (8, 9)), (1, 1)), torch.ones(1, 1, 8, 9))


def test_fusion_is_convex_and_exact_at_its_ends() -> None:
    mild, strong = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    saliency = torch.rand(2, 1, 8, 8)
    saliency[:, :, 0], saliency[:, :, 1] = 0, 1
    fused = fuse(mild, strong, saliency)
    assert (fused >= torch.minimum(mild, strong) - 1e-6).all() and (fused <= torch.maximum(mild, strong) + 1e-6).all()
    torch.testing.assert_close(fused, saliency * mild + (1 - saliency) * strong)
    assert torch.equal(fused[:, :, 0], strong[:, :, 0]) and torch.equal(fused[:, :, 1], mild[:, :, 1])
