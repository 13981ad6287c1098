"""Windows, importance and whole logits against nnunetv2's own predictor."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from autoseg.inference.sliding_window import WindowSettings, ensemble_logits, predict_logits
from autoseg.inference.windows import lay_windows, window_importance

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    nnunet = pytest.importorskip("nnunetv2.inference.predict_from_raw_data")
    windows = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")

CPU = torch.device("cpu")
EXACT = WindowSettings(device=CPU)
CASES_3D = [
    ((9, 21, 30), (8, 16, 12)),
    ((5, 40, 11), (8, 16, 12)),
    ((8, 16, 12), (8, 16, 12)),
    ((25, 7, 13), (8, 9, 13)),
]


class SmallNetwork(torch.nn.Module):
    """Two convolutions that see neighbors, so that window borders and mirroring matter."""

    def __init__(self, dimensions: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        convolution = torch.nn.Conv3d if dimensions == 3 else torch.nn.Conv2d
        self.layers = torch.nn.Sequential(
            convolution(2, 6, 3, padding=1), torch.nn.LeakyReLU(), convolution(6, classes, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * self.layers(x)


def oracle_logits(network, image, patch_shape, mirror_axes):
    """nnUNetPredictor's logits for one network on the CPU."""
    predictor = nnunet.nnUNetPredictor(device=CPU, use_mirroring=bool(mirror_axes), allow_tqdm=False)
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=list(patch_shape))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=3)
    predictor.allowed_mirroring_axes = tuple(mirror_axes) or None
    return predictor.predict_sliding_window_return_logits(image).float()


@pytest.mark.parametrize("length", [8, 9, 11, 12, 17, 40, 63, 64, 65, 200])
@pytest.mark.parametrize("patch", [1, 4, 5, 8])
def test_windows_start_where_nnunet_starts_them(length, patch):
    expected = windows.compute_steps_for_sliding_window((length,) * 3, (patch,) * 3, 0.5)
    starts = lay_windows((length,) * 3, (patch,) * 3, 0.5).starts
    assert [list(axis) for axis in starts] == expected


@pytest.mark.parametrize("patch", [(40, 56, 40), (7, 12, 5), (1, 3, 2), (32, 17), (512, 448)])
def test_importance_is_nnunets(patch):
    expected = windows.compute_gaussian(patch, value_scaling_factor=10, dtype=torch.float32, device=CPU)
    torch.testing.assert_close(window_importance(patch), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mirror_axes", [(), (0, 1, 2), (0, 2)])
@pytest.mark.parametrize(("shape", "patch"), CASES_3D)
def test_logits_equal_a_float32_nnunet(monkeypatch, shape, patch, mirror_axes):
    monkeypatch.setattr(torch, "half", torch.float32)  # nnU-Net's accumulators
    monkeypatch.setattr(nnunet, "compute_gaussian", in_float32)
    network, image = SmallNetwork(3, 3).eval(), torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    expected = oracle_logits(network, image, patch, mirror_axes)
    torch.testing.assert_close(
        predict_logits(network, image, patch, mirror_axes, EXACT), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("mirror_axes", [(), (0, 1), (1,)])
@pytest.mark.parametrize(("shape", "patch"), [((3, 40, 21), (16, 24)), ((1, 12, 30), (16, 16)), ((4, 9, 9), (9, 9))])
def test_a_2d_network_sees_every_slice_as_in_nnunet(monkeypatch, shape, patch, mirror_axes):
    monkeypatch.setattr(torch, "half", torch.float32)
    monkeypatch.setattr(nnunet, "compute_gaussian", in_float32)
    network, image = SmallNetwork(2, 3).eval(), torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    expected = oracle_logits(network, image, patch, mirror_axes)
    settings = WindowSettings(device=CPU, batch_voxels=5 * patch[0] * patch[1])
    torch.testing.assert_close(
        predict_logits(network, image, patch, mirror_axes, settings), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("shape", "patch"), CASES_3D)
def test_logits_are_near_the_shipped_half_precision_nnunet(shape, patch):
    network, image = SmallNetwork(3, 3).eval(), torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    ours = predict_logits(network, image, patch, (0, 1, 2), EXACT)
    difference = (ours - oracle_logits(network, image, patch, (0, 1, 2))).abs()
    # Where only the outskirts of windows reach, half precision holds the weights to few bits: leave those out.
    grid = lay_windows(shape, patch, 0.5)
    weight = torch.zeros([n + before + after for n, (before, after) in zip(shape, grid.padding, strict=True)])
    for z, y, x in grid.corners:
        weight[z : z + patch[0], y : y + patch[1], x : x + patch[2]] += window_importance(patch)
    inner = [slice(before, before + n) for n, (before, _) in zip(shape, grid.padding, strict=True)]
    certain = weight[tuple(inner)] > 0.01
    assert certain.float().mean() > 0.3
    assert difference[:, certain].max() < 1e-2


def test_folds_are_averaged_as_logits(monkeypatch):
    monkeypatch.setattr(torch, "half", torch.float32)
    monkeypatch.setattr(nnunet, "compute_gaussian", in_float32)
    image, patch = torch.randn(2, 9, 21, 30, generator=torch.Generator().manual_seed(4)), (8, 16, 12)
    networks = [SmallNetwork(3, 3, seed).eval() for seed in range(3)]
    expected = sum(oracle_logits(network, image, patch, (0, 1)) for network in networks) / 3
    ours = ensemble_logits([(network, (0, 1)) for network in networks], image, patch, EXACT)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def in_float32(tile_size, sigma_scale, value_scaling_factor, device):
    return windows.compute_gaussian(tile_size, sigma_scale, value_scaling_factor, torch.float32, device)
